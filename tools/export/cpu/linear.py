"""Runs of operations that are one linear map of the channels, multiplied out.

A grouped 1x1 convolution, a shuffle, another one, a normalisation: every place of the
map is multiplied with a matrix each time. One dense 1x1 convolution with the product
does the same; it does more multiplications, but kernels take small groups and single
channels at a fraction of their speed, and a shuffle moves every value for itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from keras_lightnets.tools.export.cpu import steps
from keras_lightnets.tools.quantize import rules
from keras_lightnets.tools.quantize._graph import Graph, Step

# Nanoseconds per value on one core with AVX2, fitted to XNNPACK's int8 kernels: of an
# output, of each of its products, of a value that is moved alone, or scaled alone.
OUTPUT, PRODUCT, MOVED, SCALED = 0.6, 0.018, 0.9, 0.25
# The kernels take channels and filters of a group in blocks of as many.
BLOCK = 8


@dataclasses.dataclass
class Link:
    """One linear map: of each place's channels x to x @ matrix + bias.

    Attributes:
        steps: The steps that it is made of.
        cost: Nanoseconds per place.
        matrix: (channels in, channels out).
        bias: (channels out,).
    """

    steps: list[Step]
    cost: float
    matrix: np.ndarray
    bias: np.ndarray


def multiply_out(graph: Graph) -> None:
    """Replace runs of linear maps by one 1x1 convolution where that is cheaper.

    In a graph with ranges, each convolution keeps the rounding of its own kernel: it
    takes in shuffles and factors, but no other convolution.
    """
    done: set[str] = set()
    for step in list(graph):
        if step.name in done or step.name not in graph.steps:
            continue
        links = list(_links(graph, step))
        done |= {part.name for link in links for part in link.steps}
        found = _best(links)
        if found is not None:
            _replace(graph, links[found])


def _links(graph: Graph, start: Step) -> Iterator[Link]:
    """Yield linear maps that follow each other, each alone reading the one before."""
    step: Step | None = start
    while step is not None:
        link = _link(graph, step)
        if link is None:
            return
        yield link
        step = graph.sole_consumer(link.steps[-1].name, graph.consumers())


def _link(graph: Graph, step: Step) -> Link | None:
    if len(step.shape) not in (3, 4) or step.name in graph.shared_steps():
        return None
    if step.kind == "reshape":
        return _shuffle(graph, step)
    if len(step.shape) != 4:
        return None
    if step.kind == "gather":
        index = np.asarray(step.config["indices"])
        size = steps.shape(graph, step.inputs[0])[-1]
        # XNNPACK has no gather: it must become a convolution in any case.
        return _moves([step], index, size, OUTPUT + PRODUCT * size)
    if step.kind not in ("conv", "depthwise"):
        return None
    sizes = (step.config["kernel_size"], step.config["strides"])
    if any(steps.pair(size) != (1, 1) for size in sizes):
        return None
    kernel = step.weights["kernel"].astype("float64")
    bias = step.weights.get("bias", np.zeros(int(step.shape[-1] or 0)))
    if step.kind == "conv":
        groups = step.config["groups"]
        matrix = dense(kernel, groups)[0, 0]
        _, cost = best_join(matrix.shape[0], matrix.shape[1], groups)
        return Link([step], cost, matrix, bias.astype("float64"))
    if step.config["depth_multiplier"] != 1:
        return None
    factors = kernel.reshape(-1)
    cost = SCALED * factors.size
    return Link([step], cost, np.diag(factors), bias.astype("float64"))


def _shuffle(graph: Graph, first: Step) -> Link | None:
    """Return the map of reshape, permute and reshape that permute channels."""
    readers = graph.consumers()
    permute = graph.sole_consumer(first.name, readers)
    if permute is None or permute.kind != "permute" or len(first.shape) != 4:
        return None
    last = graph.sole_consumer(permute.name, readers)
    shape = steps.shape(graph, first.inputs[0])
    if last is None or last.kind != "reshape" or len(shape) != 4:
        return None
    places, rows, columns = (int(size or 0) for size in first.shape[1:])
    same = tuple(int(size or 0) for size in last.shape[1:]) == shape[1:]
    swaps = tuple(permute.config["dims"]) == (1, 3, 2)
    if not same or not swaps or places != shape[1] * shape[2] or not places:
        return None
    index = np.arange(rows * columns).reshape(rows, columns).T.reshape(-1)
    parts = [first, permute, last]
    return _moves(parts, index, rows * columns, MOVED * index.size)


def _moves(parts: list[Step], index: np.ndarray, size: int, cost: float) -> Link:
    matrix = np.zeros((size, index.size))
    matrix[index, np.arange(index.size)] = 1.0
    return Link(parts, cost, matrix, np.zeros(index.size))


def dense(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Return a grouped kernel (h, w, channels / groups, filters) as a plain one."""
    if groups == 1:
        return kernel
    filters = kernel.shape[3] // groups
    made = np.zeros((*kernel.shape[:2], groups * kernel.shape[2], kernel.shape[3]))
    for group in range(groups):
        rows = slice(group * kernel.shape[2], (group + 1) * kernel.shape[2])
        columns = slice(group * filters, (group + 1) * filters)
        made[:, :, rows, columns] = kernel[:, :, :, columns]
    return made


def best_join(
    channels: int, filters: int, groups: int, taps: int = 1
) -> tuple[int, float]:
    """Return how many groups of a convolution become one at the least cost, and it.

    Args:
        channels: Channels in, of all groups.
        filters: Channels out, of all groups.
        groups: Number of groups.
        taps: Places that the kernel reads.

    Returns:
        The number, 1 to leave the groups as they are, and nanoseconds per place.
    """
    options = []
    for joined in (n for n in range(1, groups + 1) if groups % n == 0):
        rest = groups // joined
        blocks = math.ceil(channels / rest / BLOCK) * BLOCK
        outputs = math.ceil(filters / rest / BLOCK) * BLOCK * rest
        options.append((outputs * (OUTPUT + PRODUCT * taps * blocks), joined))
    cost, joined = min(options)
    return joined, cost


def _best(links: Sequence[Link]) -> slice | None:
    """Return the run that saves most when it is multiplied out."""
    found, most = None, 0.0
    for start, stop in itertools.combinations(range(len(links) + 1), 2):
        run = links[start:stop]
        convs = [s for link in run for s in link.steps if s.kind == "conv"]
        trained = any(step.range is not None for step in convs)
        if len(run) < 2 or (len(convs) > 1 and trained):
            continue
        sizes = (run[0].matrix.shape[0], run[-1].matrix.shape[1])
        saved = sum(link.cost for link in run) - best_join(*sizes, 1)[1]
        if saved > most:
            found, most = slice(start, stop), saved
    return found


def _replace(graph: Graph, run: Sequence[Link]) -> None:
    matrix, bias = run[0].matrix, run[0].bias
    for link in run[1:]:
        matrix, bias = matrix @ link.matrix, bias @ link.matrix + link.bias
    parts = [step for link in run for step in link.steps]
    last = parts[-1]
    ranges = [step.range for step in parts if step.weights or step is last]
    made = Step(
        last.name,
        "conv",
        parts[0].inputs,
        {
            "filters": matrix.shape[1],
            "kernel_size": (1, 1),
            "strides": (1, 1),
            "padding": "valid",
            "dilation_rate": (1, 1),
            "groups": 1,
            "use_bias": True,
        },
        {
            "kernel": matrix[None, None].astype("float32"),
            "bias": bias.astype("float32"),
        },
        shape=last.shape,
        range=ranges[-1] or (ranges[-2] if len(ranges) > 1 else None),
    )
    if all(rules.keeps_range(step) for step in parts):
        steps.keep_range(graph, made)
    for step in parts[:-1]:
        del graph.steps[step.name]
    steps.replace(graph, last.name, (made,))
