"""What the passes share: shapes, pads, ranges, new steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_lightnets.tools.quantize import rules
from keras_lightnets.tools.quantize._graph import Graph, Step

Pads = tuple[tuple[int, int], tuple[int, int]]
NO_PADS: Pads = ((0, 0), (0, 0))


def pair(value: Any) -> tuple[int, int]:
    """Return a size, stride or pair of pads as two integers."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def shape(graph: Graph, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor, batch first; the batch and what is open are 0."""
    found = graph.inputs[name] if name in graph.inputs else graph.steps[name].shape
    return tuple(int(size or 0) for size in found)


def same_pads(
    sides: Sequence[int], size: Iterable[int], strides: Iterable[int]
) -> Pads:
    """Return the rows and columns that "same" pads on a map of (height, width)."""
    found = []
    for length, taps, stride in zip(sides, size, strides, strict=True):
        total = max((-(-length // stride) - 1) * stride + taps - length, 0)
        found.append((total // 2, total - total // 2))
    return found[0], found[1]


def pads_of(step: Step) -> Pads | None:
    """Return the rows and columns of a zero padding; None if it pads channels."""
    if step.config.get("data_format") == "channels_first":
        return None
    rows, columns = (pair(side) for side in step.config["padding"])
    return rows, columns


def replace(graph: Graph, name: str, steps: Sequence[Step]) -> None:
    """Put steps in the place of one; the last one carries its name."""
    pairs: list[tuple[str, Step]] = []
    for key, old in graph.steps.items():
        pairs += [(s.name, s) for s in steps] if key == name else [(key, old)]
    graph.steps = dict(pairs)


def reshape(name: str, source: str, sides: Iterable[int]) -> Step:
    """Make a reshape of one sample to the given sides."""
    target = tuple(sides)
    config = {"target_shape": target}
    return Step(name, "reshape", (source,), config, shape=(None, *target))


def depthwise(
    step: Step, kernel: np.ndarray, strides: tuple[int, int], padding: str = "valid"
) -> None:
    """Make a step a depthwise convolution with a kernel of (h, w, channels).

    Of one channel it is a plain one: TensorFlow's converter makes an empty file of
    two such depthwise ones whose kernels are the same.
    """
    one = kernel.shape[2] == 1
    step.kind, step.source, step.roles = "conv" if one else "depthwise", None, ()
    step.config = {
        "kernel_size": kernel.shape[:2],
        "strides": strides,
        "padding": padding,
        "dilation_rate": (1, 1),
        "use_bias": False,
        **({"filters": 1, "groups": 1} if one else {"depth_multiplier": 1}),
    }
    step.weights = {"kernel": kernel[..., None].astype("float32")}


def range_of(graph: Graph, name: str) -> tuple[float, float]:
    """Return the range of a tensor in int8, that of its values where it keeps them.

    Only for a graph that has ranges; (0, 0) where none is found.
    """
    step = graph.steps.get(name)
    while step is not None and step.range is None:
        step = graph.steps.get(step.inputs[0])
    return step.range if step is not None and step.range is not None else (0.0, 0.0)


def keep_range(graph: Graph, step: Step) -> None:
    """Give a step the range of its input, whose values it keeps.

    Where what makes these values left its range to a later step, such as a
    concatenation, both get that one's.
    """
    if step.range is not None:
        return
    maker = graph.steps.get(step.inputs[0])
    while maker is not None and maker.range is None and rules.keeps_range(maker):
        maker = graph.steps.get(maker.inputs[0])
    if maker is not None and maker.range is not None:
        step.range = maker.range
        return
    readers = graph.consumers()
    after = graph.sole_consumer(step.name, readers)
    while after is not None and after.range is None:
        after = graph.sole_consumer(after.name, readers)
    if after is not None:
        step.range = after.range
        if maker is not None:
            maker.range = after.range
