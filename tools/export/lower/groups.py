"""Convolutions cut into parts of their channels.

Grouped ones become plain ones, as the version with groups is never mapped. Very wide
depthwise ones become several: TensorFlow's kernel does not return from them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from keras_lightnets.tools.export.lower import cost, steps
from keras_lightnets.tools.quantize._graph import Graph, Step

# TFLite's float depthwise kernel sums in a buffer of so many values, a pixel at a
# time; a wider pixel leaves it in an endless loop, be it while the converter calibrates
# or in an interpreter without XNNPACK. See DepthwiseConvImpl in TensorFlow's
# optimized/depthwiseconv_float.h.
WIDEST = 4832


def split_wide(graph: Graph) -> None:
    """Cut each depthwise convolution of more than `WIDEST` filters.

    Args:
        graph: Changed in place.
    """
    shared = graph.shared_steps()
    for step in list(graph):
        if step.kind == "depthwise" and step.name not in shared:
            parts = math.ceil(int(step.shape[-1] or 0) / WIDEST)
            if parts > 1:
                _cut(graph, step, parts)
    steps.settle(graph)


def ungroup(graph: Graph, streamed: bool = False) -> None:
    """Cut each grouped convolution into the number of plain ones that costs least.

    See `cost.best_parts`. Each part is a convolution with zeros between its groups,
    behind a slice of the channels; a concatenation joins the parts.

    Args:
        graph: Changed in place.
        streamed: Whether parameters do not fit the cache, see `cost.cycles`.
    """
    shared = graph.shared_steps()
    for step in list(graph):
        if step.kind != "conv" or step.config["groups"] == 1:
            continue
        parts = 1
        if step.name not in shared:
            given = steps.shape(graph, step.inputs[0])
            sizes = (step.config["groups"], int(given[-1] or 0), step.config["filters"])
            area = (cost.places(given), cost.places(step.shape))
            taps = math.prod(step.config["kernel_size"])
            parts = cost.best_parts(sizes, taps, area, streamed)[1]
        if parts == 1:
            steps.make_dense(step)
        else:
            _cut(graph, step, parts)
    steps.settle(graph)


def _cut(graph: Graph, step: Step, parts: int) -> None:
    """Replace a convolution by slices, convolutions and a concatenation.

    A ReLU behind it goes in front of the concatenation, where it is part of the
    convolutions.
    """
    given = steps.shape(graph, step.inputs[0])
    channels = steps.channels(graph, step.inputs[0])
    after = graph.sole_consumer(step.name, graph.consumers())
    relu = after if after is not None and after.kind == "relu" else None
    bounds = [channels * i // parts for i in range(parts + 1)]
    joined = []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        config = {"begin": [0, 0, start], "size": [-1, -1, stop - start]}
        shape = (*given[:-1], stop - start)
        name = f"{step.name}_cut{i}"
        cut = steps.add(graph, Step(name, "slice", step.inputs, config, shape=shape))
        part = _part(step, f"{step.name}_part{i}", (start, stop), channels)
        part.inputs = (cut.name,)
        last = steps.add(graph, part)
        if relu is not None:
            last = steps.add(
                graph,
                dataclasses.replace(
                    relu,
                    name=f"{relu.name}_part{i}",
                    inputs=(last.name,),
                    config=dict(relu.config),
                    shape=last.shape,
                    range=None,
                ),
            )
        joined.append(last.name)
    end = relu or step
    end.kind, end.inputs = "concat", tuple(joined)
    end.config, end.weights = {"axis": len(end.shape) - 1}, {}
    end.source, end.roles = None, ()


def _part(step: Step, name: str, taken: tuple[int, int], channels: int) -> Step:
    """Return the convolution of some of the channels, grouped ones made plain."""

    def share(whole: int) -> range:
        return range(*(whole * channel // channels for channel in taken))

    weights = {}
    for role, array in step.weights.items():
        axis = 2 if step.kind == "depthwise" and role == "kernel" else array.ndim - 1
        weights[role] = array.take(share(array.shape[axis]), axis)
    filters = len(share(int(step.shape[-1] or 0)))
    part = dataclasses.replace(
        step,
        name=name,
        config=dict(step.config),
        weights=weights,
        source=None,
        roles=(),
        shape=(*step.shape[:-1], filters),
        range=None,
    )
    if step.kind == "conv":
        groups = len(share(step.config["groups"]))
        part.config |= {"filters": filters, "groups": groups}
        steps.make_dense(part)
    return part
