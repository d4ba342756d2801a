"""The way from a picture of three channels into a network.

Three channels leave most of a vector register empty: what is done per channel on the
picture itself costs more than whole stages behind it.
"""

from __future__ import annotations

import numpy as np

from keras_lightnets.tools.export.cpu import steps
from keras_lightnets.tools.export.cpu.steps import Pads
from keras_lightnets.tools.quantize._graph import Graph, Step

FEW_CHANNELS = 4


def normalise_rows(graph: Graph) -> None:
    """Subtract a picture's mean along whole rows; its factor goes on to the kernel.

    One constant per channel is added three values at a time; the same constants,
    repeated for every column of a row, fill the registers.
    """
    for step in list(graph):
        if step.kind != "depthwise" or step.inputs[0] not in graph.inputs:
            continue
        height, width, channels = (int(size or 0) for size in step.shape[1:])
        if not _is_affine(step) or not height * width or channels > FEW_CHANNELS:
            continue
        gain = step.weights["kernel"].astype("float64").reshape(-1)
        if np.any(gain <= 0):
            continue
        offset = step.weights["bias"] / gain
        rows = steps.reshape(
            f"{step.name}_rows", step.inputs[0], (height, width * channels)
        )
        shift = Step(
            f"{step.name}_shift",
            "add_const",
            (rows.name,),
            weights={"value": np.tile(offset, width).astype("float32")},
            shape=rows.shape,
        )
        if step.range is not None:
            shift.range = (float(offset.min()), 255.0 + float(offset.max()))
        back = steps.reshape(
            f"{step.name}_columns", shift.name, (height, width, channels)
        )
        scale = Step(
            step.name,
            "scale",
            (back.name,),
            weights={"value": gain.astype("float32")},
            shape=step.shape,
            range=step.range,
        )
        steps.replace(graph, step.name, (rows, shift, back, scale))


def _is_affine(step: Step) -> bool:
    config = step.config
    ones = ((1, 1), (1, 1))
    sizes = (steps.pair(config["kernel_size"]), steps.pair(config["strides"]))
    return sizes == ones and config["depth_multiplier"] == 1 and "bias" in step.weights


def pair_columns(graph: Graph) -> None:
    """Let the first convolution read two columns of 3 channels as one of 6.

    Int8 kernels take channels in groups of eight, for each tap of the window: three
    leave five empty. The paired picture is the same bytes; where the window ends
    within a pair the kernel has zeros. An odd last column gets a column of zeros.
    """
    for step in list(graph):
        if step.kind != "conv" or step.config["groups"] != 1:
            continue
        if (
            step.name in graph.shared_steps()
            or steps.pair(step.config["strides"])[1] != 2
        ):
            continue
        source, pads = _padding(graph, step)
        width, channels = steps.shape(graph, source)[-2:]
        if pads is None or not width or channels > FEW_CHANNELS:
            continue
        if _is_picture(graph, source):
            _pair_up(graph, step, source, pads)


def _padding(graph: Graph, step: Step) -> tuple[str, Pads | None]:
    """Return what a convolution reads in front of its padding, and the padding."""
    (name,) = step.inputs
    if steps.pair(step.config["dilation_rate"]) != (1, 1):
        return name, None
    size, strides = step.config["kernel_size"], steps.pair(step.config["strides"])
    if step.config["padding"] == "same":
        return name, steps.same_pads(steps.shape(graph, name)[1:3], size, strides)
    before = graph.steps.get(name)
    if before is None or before.kind != "zero_pad":
        return name, steps.NO_PADS
    if len(graph.consumers()[name]) > 1:
        return name, None
    return before.inputs[0], steps.pads_of(before)


def _is_picture(graph: Graph, name: str) -> bool:
    """Say whether only an input and its normalisation lie in front of a tensor."""
    while name in graph.steps:
        step = graph.steps[name]
        if step.kind not in ("identity", "reshape", "add_const", "scale"):
            return False
        name = step.inputs[0]
    return True


def _pair_up(graph: Graph, step: Step, source: str, pads: Pads) -> None:
    height, width, channels = steps.shape(graph, source)[1:]
    kernel, (left, _) = step.weights["kernel"], pads[1]
    taps = kernel.shape[1]
    first, last = -left // 2, (taps - 1 - left) // 2
    wide = np.zeros(
        (kernel.shape[0], last - first + 1, 2, *kernel.shape[2:]), "float32"
    )
    for tap in range(taps):
        place, column = divmod(tap - left, 2)
        wide[:, place - first, column] = kernel[:, tap]
    wide = wide.reshape(*wide.shape[:2], 2 * channels, -1)
    outs = int(step.shape[2] or 0)
    right = outs - 1 + last - first + 1 - ((width + 1) // 2 - first)
    columns = (-first, max(right, 0))
    size, strides = wide.shape[:2], (steps.pair(step.config["strides"])[0], 1)
    sides = (height, (width + 1) // 2)
    if sides[1] + sum(columns) - size[1] + 1 != outs:
        return
    even = _even(graph, f"{step.name}_even", source)
    given = even[0].name if even else source
    pairs = steps.reshape(f"{step.name}_pairs", given, (*sides, 2 * channels))
    before, added = step.inputs[0], [*even, pairs]
    padding = "same"
    if steps.same_pads(sides, size, strides) != (pads[0], columns):
        padding = "valid"
        added += _pad(f"{step.name}_pad", pairs, (pads[0], columns))
    step.config = {
        **step.config, "kernel_size": size, "strides": strides, "padding": padding,
    }  # fmt: skip
    step.weights = {**step.weights, "kernel": wide}
    step.inputs = (added[-1].name,)
    steps.replace(graph, step.name, (*added, step))
    if before != source:
        del graph.steps[before]
    _join(graph, pairs)


def _even(graph: Graph, name: str, source: str) -> list[Step]:
    """Return the column of zeros that a map of an odd number of columns needs."""
    height, width, channels = steps.shape(graph, source)[1:]
    if width % 2 == 0:
        return []
    config = {"axis": 2, "first": 0, "last": 1}
    shape = (None, height, width + 1, channels)
    joined = Step(name, "join_zeros", (source,), config, shape=shape)
    held = steps.range_of(graph, source)
    # Without ranges the converter finds those of both.
    joined.range = held if any(held) else None
    return [joined]


def _pad(name: str, before: Step, pads: Pads) -> list[Step]:
    if pads == steps.NO_PADS:
        return []
    _, height, width, channels = before.shape
    sides = (int(height or 0) + sum(pads[0]), int(width or 0) + sum(pads[1]))
    config = {"padding": pads, "data_format": "channels_last"}
    shape = (None, *sides, channels)
    return [Step(name, "zero_pad", (before.name,), config, shape=shape)]


def _join(graph: Graph, step: Step) -> None:
    """Take out a reshape that a reshape alone reads."""
    before = graph.steps.get(step.inputs[0])
    if before is not None and before.kind == "reshape":
        if len(graph.consumers()[before.name]) == 1:
            graph.remove(before.name)
