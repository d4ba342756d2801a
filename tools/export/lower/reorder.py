"""Finds what only moves channels, in whatever operations it is written."""

from __future__ import annotations

import math

import numpy as np

from keras_lightnets.tools.export.lower import steps
from keras_lightnets.tools.quantize._graph import Graph, Step

# Kinds that move values and change none.
MOVES = ("reshape", "permute", "crop", "slice", "gather")


def gathers(graph: Graph) -> None:
    """Write each chain of moves that takes whole channels as one gather.

    That finds a channel shuffle (reshape, permute, reshape), a channel split (reshape,
    crop, reshape) and one behind the other; a flattening that reads channel by channel
    becomes one that reads place by place, and a gather of the vector. A chain that
    takes all channels in order goes away.
    """
    for step in list(graph):
        if step.kind not in MOVES or len(step.shape) not in (2, 4):
            continue
        found = _from_furthest(graph, step)
        if found is not None:
            _replace(graph, step, *found)
    steps.settle(graph)


def _from_furthest(graph: Graph, step: Step) -> tuple[str, list[int]] | None:
    """Return the tensor that a chain takes channels of, and which ones."""
    chain, best = [step], None
    while True:
        root = chain[-1].inputs[0]
        shape = steps.shape(graph, root)
        if len(shape) in (2, 4) and None not in shape[1:]:
            index = _taken(chain[::-1], shape)
            if index is not None and (len(chain) > 1 or step.kind in ("slice", "crop")):
                best = root, index
        before = graph.steps.get(root)
        if before is None or before.kind not in MOVES:
            return best
        chain.append(before)


def _taken(chain: list[Step], shape: tuple[int | None, ...]) -> list[int] | None:
    """Follow numbered values through a chain; return the channels it takes."""
    sides = [int(size or 1) for size in shape[1:]]
    whole = np.arange(math.prod(sides)).reshape(sides)
    found = whole
    for step in chain:
        found = move(step, found)
    if found.ndim == 1:
        return [int(i) for i in found]
    if len(sides) != 3 or found.shape[:2] != whole.shape[:2]:
        return None
    index = found[0, 0]
    starts = whole[:, :, :1]
    if index.max(initial=0) >= sides[2] or not np.array_equal(found, starts + index):
        return None
    return [int(i) for i in index]


def move(step: Step, values: np.ndarray) -> np.ndarray:
    """Do what a step of `MOVES` does to one sample, without its batch."""
    config = step.config
    if step.kind == "reshape":
        return values.reshape([int(size or 1) for size in step.shape[1:]])
    if step.kind == "permute":
        return values.transpose([d - 1 for d in config["dims"]])
    if step.kind == "gather":
        return np.take(values, config["indices"], axis=-1)
    if step.kind == "crop":
        (top, bottom), (left, right) = config["cropping"]
        high, wide = values.shape[:2]
        return values[top : high - bottom, left : wide - right]
    pairs = zip(config["begin"], config["size"], strict=True)
    keys = tuple(slice(b, None if s < 0 else b + s) for b, s in pairs)
    return values[keys]


def _replace(graph: Graph, step: Step, root: str, index: list[int]) -> None:
    shape = steps.shape(graph, root)
    source = root
    if len(shape) == 4 and len(step.shape) == 2:
        size = math.prod(int(s or 1) for s in shape[1:])
        flat = Step(
            f"{step.name}_flat", "reshape", (root,), {"target_shape": (size,)},
            shape=(shape[0], size),
        )  # fmt: skip
        source = steps.add(graph, flat).name
    if index == list(range(steps.channels(graph, source))):
        steps.redirect(graph, step.name, source)
        return
    step.kind, step.inputs, step.config = "gather", (source,), {"indices": index}
    step.source, step.roles, step.weights = None, (), {}
