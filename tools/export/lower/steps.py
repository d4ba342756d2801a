"""What the passes share: new steps, their order, dense kernels, ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_lightnets.tools.quantize import rules
from keras_lightnets.tools.quantize._graph import Graph, Step

POINT: dict[str, Any] = {
    "kernel_size": (1, 1),
    "strides": (1, 1),
    "padding": "valid",
    "dilation_rate": (1, 1),
    "groups": 1,
}
# Axes of a kernel that run over the input's and the output's channels.
AXES = {"conv": (2, 3), "dense": (0, 1), "conv_transpose": (3, 2)}


def channels(graph: Graph, name: str) -> int:
    """Return the size of a tensor's last axis."""
    return int(shape(graph, name)[-1] or 0)


def shape(graph: Graph, name: str) -> tuple[int | None, ...]:
    """Return the shape of a tensor, batch first."""
    return graph.inputs[name] if name in graph.inputs else graph.steps[name].shape


def unique(graph: Graph, name: str) -> str:
    """Return a name that no step has yet."""
    made, number = name, 1
    while made in graph.steps or made in graph.inputs:
        made, number = f"{name}_{number}", number + 1
    return made


def add(graph: Graph, step: Step) -> Step:
    """Append a step under a name of its own; `settle` puts it in its place."""
    step.name = unique(graph, step.name)
    graph.steps[step.name] = step
    return step


def redirect(graph: Graph, old: str, new: str, only: Sequence[str] = ()) -> None:
    """Let the readers of a tensor, or some of them, read another one.

    Args:
        graph: Changed in place.
        old: The tensor read so far.
        new: The tensor to read.
        only: Readers as `Graph.consumers` names them; all but `new` itself when empty.
    """
    for step in graph:
        if step.name != new and (not only or step.name in only):
            step.inputs = tuple(new if i == old else i for i in step.inputs)
    for key, value in graph.outputs.items():
        if value == old and (not only or f"output:{key}" in only):
            graph.outputs[key] = new


def settle(graph: Graph) -> None:
    """Drop what no output needs and put the steps in order of execution."""
    wanted: set[str] = set()
    waiting = list(graph.outputs.values())
    while waiting:
        name = waiting.pop()
        if name in graph.steps and name not in wanted:
            wanted.add(name)
            waiting += _before(graph.steps[name])
    done: dict[str, Step] = {}
    for name in graph.steps:
        if name in wanted:
            for before in _needs(graph.steps, name, done):
                done[before] = graph.steps[before]
    graph.steps = done


def _before(step: Step) -> list[str]:
    return [*step.inputs, *((step.shared,) if step.shared else ())]


def _needs(steps: dict[str, Step], name: str, done: dict[str, Step]) -> Iterator[str]:
    """Yield what has to run for a step, it last; `done` is filled meanwhile."""
    waiting = [name]
    while waiting:
        step = steps[waiting[-1]]
        missing = [i for i in _before(step) if i in steps and i not in done]
        if step.name in done:
            waiting.pop()
        elif missing:
            waiting.extend(missing)
        else:
            yield waiting.pop()


def dense_kernel(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Return a grouped kernel as a plain one, zeros between the groups.

    Args:
        kernel: (height, width, channels / groups, filters).
        groups: Number of groups.

    Returns:
        (height, width, channels, filters).
    """
    if groups == 1:
        return kernel
    high, wide, depth, filters = kernel.shape
    made = np.zeros((high, wide, groups, depth, groups, filters // groups), "float32")
    parts = kernel.reshape(high, wide, depth, groups, filters // groups)
    for i in range(groups):
        made[:, :, i, :, i] = parts[:, :, :, i]
    return made.reshape(high, wide, groups * depth, filters)


def make_dense(step: Step) -> None:
    """Turn a grouped convolution into a plain one of the same values."""
    step.weights["kernel"] = dense_kernel(step.weights["kernel"], step.config["groups"])
    step.config["groups"] = 1


def is_kernel(graph: Graph, step: Step | None) -> bool:
    """Say whether a step mixes channels by a kernel that may be rewritten."""
    return (
        step is not None
        and step.kind in AXES
        and len(step.inputs) == 1
        and step.name not in graph.shared_steps()
        # A dense layer on maps is a product over the last axis, as on vectors.
        and "kernel" in step.weights
    )


def range_at(graph: Graph, name: str) -> tuple[float, float] | None:
    """Return the range that a tensor has, or shares with the next that has one.

    A step whose output has no range of its own passes its input's values on, or
    leaves the range to the concatenation behind it.
    """
    at = name
    while at in graph.steps:
        step = graph.steps[at]
        if step.range is not None:
            return step.range
        if not keeps(step):
            break
        at = step.inputs[0]
    readers = graph.consumers()
    after = graph.sole_consumer(name, readers)
    while after is not None and after.range is None and keeps(after):
        after = graph.sole_consumer(after.name, readers)
    return after.range if after is not None else None


def keeps(step: Step) -> bool:
    """Say whether a step's output has the range of its input."""
    return step.kind != "concat" and rules.RULES.get(step.kind, rules.Rule()) == (
        rules.Rule(output=None)
    )
