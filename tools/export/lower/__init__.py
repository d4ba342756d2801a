"""Operations that a target runs, in place of those that it does not: one table.

A network trains in the form it is published in. Before it becomes an int8 file, its
graph is rewritten for where the file shall run: `TARGETS` says by which passes, in
which order. Every pass is exact in float: the tensors it keeps have the same values,
so that the ranges of a model trained for int8 stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from keras_lightnets._errors import unknown
from keras_lightnets.tools.export import cpu
from keras_lightnets.tools.export._edgetpu_memory import CACHE_BYTES
from keras_lightnets.tools.export.lower import (
    channels,
    convs,
    cost,
    groups,
    onnx,
    reorder,
)
from keras_lightnets.tools.quantize import _passes
from keras_lightnets.tools.quantize._graph import Graph

Pass = Callable[[Graph], None]


def _mix(graph: Graph) -> None:
    """Choose plain kernels for gathers and groups; again if they do not fit the chip.

    What does not fit its cache is sent with every picture, so that bytes then count
    for more than operations.
    """
    for streamed in (False, True):
        trial = graph.copy()
        channels.fold_gathers(trial, streamed)
        convs.merge_affine(trial)
        groups.ungroup(trial, streamed)
        if cost.parameter_bytes(trial) <= CACHE_BYTES:
            break
    graph.steps, graph.outputs = trial.steps, trial.outputs


TARGETS: Mapping[str, tuple[Pass, ...]] = {
    # XNNPACK has fast kernels for grouped convolutions and transpositions.
    "cpu": (*cpu.INT8, groups.split_wide),
    "edgetpu": (
        _passes.expand_hard_swish,
        convs.fuse_pads,
        convs.name_depthwise,
        convs.widen_channelwise,
        reorder.gathers,
        _mix,
        groups.split_wide,
    ),
}
# Float .tflite files.
FLOAT: tuple[Pass, ...] = (*cpu.FLOAT, groups.split_wide)
# Float files in ONNX; their int8 form is made from the .tflite file.
ONNX: tuple[Pass, ...] = (
    reorder.gathers,
    onnx.fold_gathers,
    onnx.gather_in_front,
    onnx.write_gelus,
)


def lower(graph: Graph, target: str) -> Graph:
    """Rewrite a folded graph for a target.

    Args:
        graph: Steps, normalisations folded and baked; changed in place.
        target: Name in `TARGETS`.

    Returns:
        The graph.

    Raises:
        ValueError: If there is no such target.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    for change in TARGETS[target]:
        change(graph)
    return graph
