"""How a gather of channels changes places with the operation before or behind it."""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_lightnets.tools.export.lower import steps
from keras_lightnets.tools.quantize._graph import Graph, Step

# Kinds that treat each channel alone, and the axis of each array over the channels.
ALONE: dict[str, dict[str, int]] = {
    "depthwise": {"kernel": 2, "bias": 0},
    "scale": {"value": 0},
    "add_const": {"value": 0},
    "prelu": {"alpha": -1},
    "relu": {},
    "act": {},
    "max_pool": {},
    "avg_pool": {},
    "mean": {},
    "global_max": {},
    "zero_pad": {},
    "crop": {},
    "resize": {},
    "identity": {},
}
# How the name of a gather ends that stands in front of the other input of a pair.
BACK = "_back"
PAIRS = ("add", "subtract", "multiply", "maximum", "minimum")


def indices(step: Step) -> list[int]:
    """Return which channel each channel of a gather is."""
    return list(step.config["indices"])


def gather_of(graph: Graph, source: str, index: list[int], name: str) -> str:
    """Append a gather of a tensor's channels; return its name.

    A gather of all channels in order is not appended, one of a gather reads that one's
    input.
    """
    before = graph.steps.get(source)
    if before is not None and before.kind == "gather":
        inner = indices(before)
        return gather_of(graph, before.inputs[0], [inner[i] for i in index], name)
    shape = steps.shape(graph, source)
    if index == list(range(int(shape[-1] or 0))):
        return source
    step = Step(
        name, "gather", (source,), {"indices": index}, shape=(*shape[:-1], len(index))
    )
    return steps.add(graph, step).name


def is_permutation(index: list[int], channels: int) -> bool:
    """Say whether a gather takes each of so many channels once."""
    return sorted(index) == list(range(channels))


def backward(graph: Graph, gather: Step) -> list[str] | None:
    """Let the operation in front of a gather make the channels as they are taken.

    Args:
        graph: Changed in place.
        gather: A gather that alone reads its input.

    Returns:
        Names of the gathers that now stand in front of the operation, or None if it
        cannot be done; the graph is as it was then.
    """
    source, index = gather.inputs[0], indices(gather)
    step = graph.steps.get(source)
    if step is None or step.name in graph.shared_steps():
        return None
    if len(graph.consumers()[source]) != 1:
        return None
    if steps.is_kernel(graph, step):
        _take_outputs(step, index)
        made: list[str] = []
    elif (arrays := _alone(step)) is not None:
        for role, axis in arrays.items():
            step.weights[role] = np.take(step.weights[role], index, axis)
        made = [_front(graph, step, 0, index)]
    elif step.kind in PAIRS:
        whole = int(step.shape[-1] or 0)
        full = [steps.channels(graph, name) == whole for name in step.inputs]
        made = [_front(graph, step, i, index) for i in range(2) if full[i]]
    elif step.kind == "concat" and step.config["axis"] == len(step.shape) - 1:
        parts = _segments(graph, step, index)
        if parts is None:
            return None
        made = [_front(graph, step, i, part) for i, part in enumerate(parts)]
    else:
        return None
    step.shape = (*step.shape[:-1], len(index))
    steps.redirect(graph, gather.name, step.name)
    del graph.steps[gather.name]
    return [name for name in made if name in graph.steps and _is_gather(graph, name)]


def forward(graph: Graph, gather: Step) -> list[str] | None:
    """Let the one operation behind a gather read the channels as they are.

    Args:
        graph: Changed in place.
        gather: A gather with one reader.

    Returns:
        Names of the gathers that now stand elsewhere, or None if it cannot be done;
        the graph is as it was then.
    """
    source, index = gather.inputs[0], indices(gather)
    step = graph.sole_consumer(gather.name, graph.consumers())
    if step is None or step.name in graph.shared_steps():
        return None
    size = steps.channels(graph, source)
    if steps.is_kernel(graph, step):
        _spread_inputs(step, index, size)
        step.inputs = (source,)
        del graph.steps[gather.name]
        return []
    if step.kind == "gather":
        outer = indices(step)
        step.config["indices"] = [index[i] for i in outer]
        step.inputs = (source,)
        del graph.steps[gather.name]
        return []
    if step.kind == "reshape" and len(step.shape) == 2 and len(gather.shape) == 4:
        return _past_flatten(graph, gather, step)
    return _past(graph, gather, step)


def _past(graph: Graph, gather: Step, step: Step) -> list[str] | None:
    """Put a gather behind its reader."""
    source, index = gather.inputs[0], indices(gather)
    size = steps.channels(graph, source)
    made: list[str] | None = []
    after = index
    if (arrays := _alone(step)) is not None:
        spread = {
            role: _spread(step.weights[role], index, size, axis)
            for role, axis in arrays.items()
        }
        if any(array is None for array in spread.values()):
            return None
        step.weights.update({r: a for r, a in spread.items() if a is not None})
    elif step.kind in PAIRS:
        made = _turn_other(graph, gather, step)
    elif step.kind == "concat" and step.config["axis"] == len(step.shape) - 1:
        after, size = _joined(graph, gather, step)
    else:
        return None
    if made is None:
        return None
    step.inputs = tuple(source if i == gather.name else i for i in step.inputs)
    step.shape = (*step.shape[:-1], size)
    return [*made, *_behind(graph, gather, step, after)]


def _turn_other(graph: Graph, gather: Step, step: Step) -> list[str] | None:
    """Let the other input of a pair fit the channels as they are."""
    index, size = indices(gather), steps.channels(graph, gather.inputs[0])
    other = step.inputs[1 - step.inputs.index(gather.name)]
    twin = graph.steps.get(other)
    if steps.channels(graph, other) == 1 < len(index):
        return []
    if twin is not None and twin.kind == "gather" and indices(twin) == index:
        if steps.channels(graph, twin.inputs[0]) != size:
            return None
        turned = twin.inputs[0]
    elif is_permutation(index, size):
        back = [int(i) for i in np.argsort(index)]
        turned = gather_of(graph, other, back, f"{gather.name}{BACK}")
    else:
        return None
    step.inputs = tuple(turned if i == other else i for i in step.inputs)
    return [turned] if _is_gather(graph, turned) else []


def _joined(graph: Graph, gather: Step, step: Step) -> tuple[list[int], int]:
    """Return a concatenation's channels as they were, and how many there are now."""
    after: list[int] = []
    start = 0
    for name in step.inputs:
        count = kept = steps.channels(graph, name)
        taken = list(range(count))
        if name == gather.name:
            taken, kept = indices(gather), steps.channels(graph, gather.inputs[0])
        after += [start + i for i in taken]
        start += kept
    return after, start


def _behind(graph: Graph, gather: Step, step: Step, index: list[int]) -> list[str]:
    del graph.steps[gather.name]
    readers = graph.consumers()[step.name]
    name = gather_of(graph, step.name, index, f"{step.name}_order")
    if name == step.name:
        return []
    steps.redirect(graph, step.name, name, readers)
    return [name]


def _past_flatten(graph: Graph, gather: Step, step: Step) -> list[str]:
    source, index = gather.inputs[0], indices(gather)
    shape = steps.shape(graph, source)
    size = int(shape[-1] or 0)
    cells = int(np.prod([int(s or 1) for s in shape[1:-1]]))
    whole = [cell * size + i for cell in range(cells) for i in index]
    step.inputs = (source,)
    step.config["target_shape"] = (cells * size,)
    step.shape = (shape[0], cells * size)
    return _behind(graph, gather, step, whole)


def _is_gather(graph: Graph, name: str) -> bool:
    return name in graph.steps and graph.steps[name].kind == "gather"


def _alone(step: Step) -> dict[str, int] | None:
    """Return the arrays of a step that treats each channel alone, and their axes."""
    if step.kind not in ALONE or len(step.inputs) != 1:
        return None
    if step.config.get("function") == "softmax":
        return None
    if step.config.get("data_format") == "channels_first":
        return None
    if step.config.get("depth_multiplier", 1) != 1:
        return None
    found = {role: ALONE[step.kind][role] for role in step.weights}
    return {r: axis for r, axis in found.items() if step.weights[r].shape[axis] > 1}


def _front(graph: Graph, step: Step, position: int, index: list[int]) -> str:
    """Put a gather in front of one input of a step."""
    source = step.inputs[position]
    name = gather_of(graph, source, index, f"{step.name}_order")
    given = list(step.inputs)
    given[position] = name
    step.inputs = tuple(given)
    return name


def _segments(graph: Graph, step: Step, index: list[int]) -> list[list[int]] | None:
    """Cut the indices of a concatenation by its parts, where they are in its order."""
    parts: list[list[int]] = []
    start = at = 0
    for name in step.inputs:
        stop = start + steps.channels(graph, name)
        part = []
        while at < len(index) and start <= index[at] < stop:
            part.append(index[at] - start)
            at += 1
        if not part:
            return None
        parts.append(part)
        start = stop
    return parts if at == len(index) else None


def _take_outputs(step: Step, index: list[int]) -> None:
    if step.config.get("groups", 1) > 1:
        steps.make_dense(step)
    axis = steps.AXES[step.kind][1]
    step.weights["kernel"] = np.take(step.weights["kernel"], index, axis)
    if "bias" in step.weights:
        step.weights["bias"] = np.take(step.weights["bias"], index)
    count = "units" if step.kind == "dense" else "filters"
    step.config[count] = len(index)


def _spread_inputs(step: Step, index: list[int], size: int) -> None:
    if step.config.get("groups", 1) > 1:
        steps.make_dense(step)
    axis = steps.AXES[step.kind][0]
    kernel = np.moveaxis(step.weights["kernel"], axis, 0)
    made = np.zeros((size, *kernel.shape[1:]), kernel.dtype)
    np.add.at(made, index, kernel)
    step.weights["kernel"] = np.ascontiguousarray(np.moveaxis(made, 0, axis))


def _spread(
    array: np.ndarray, index: list[int], size: int, axis: int
) -> np.ndarray | None:
    """Return what each channel had where it was taken; None if it had two values."""
    taken = np.moveaxis(array, axis, 0)
    made = np.zeros((size, *taken.shape[1:]), taken.dtype)
    made[index] = taken
    if not np.array_equal(made[index], taken):
        return None
    return np.ascontiguousarray(np.moveaxis(made, 0, axis))


def split_reader(graph: Graph, gather: Step, readers: list[str]) -> Step:
    """Give some readers of a gather one of their own."""
    own = steps.add(graph, dataclasses.replace(gather, config=dict(gather.config)))
    steps.redirect(graph, gather.name, own.name, readers)
    return own
