"""Takes gathers of channels out of a graph: into kernels, or as little as is left.

A gather is carried backward or forward through what treats each channel alone, until
a convolution or dense layer makes the channels in that order, or reads them so: rows
or columns of its kernel change places, and no operation is left. A grouped
convolution that takes a gather becomes a plain one with zeros between its groups.
Where no neighbour can take it, or only for more than it costs, the gather itself
becomes a slice, some slices and a concatenation, or a 1x1 convolution by ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from keras_lightnets.tools.export.lower import cost, moves, steps
from keras_lightnets.tools.quantize._graph import Graph, Step

Move = Callable[[Graph, Step], list[str] | None]
# What a graph costs, and the graph with one gather, by name, as other operations.
Price = Callable[[Graph], float]
Realise = Callable[[Graph, str], Graph]

# How far a gather is carried: more than the longest block between two convolutions.
FURTHEST = 16
# With more readers than this, all of them take a gather or none does.
FEW_READERS = 3


def fold_gathers(graph: Graph, streamed: bool = False) -> None:
    """Replace every gather by the cheapest equal form, first ones first.

    Args:
        graph: Changed in place.
        streamed: Whether parameters do not fit the cache, see `cost.cycles`.
    """
    fold(
        graph,
        functools.partial(cost.cycles, streamed=streamed),
        functools.partial(_realised, streamed=streamed),
    )


def fold(graph: Graph, price: Price, realise: Realise) -> None:
    """Replace gathers by the cheapest equal form, first ones first.

    Args:
        graph: Changed in place.
        price: Returns what a graph costs.
        realise: Returns a graph with one gather as operations of its own, or the
            graph as it is where a gather may stay.
    """
    kept: set[str] = set()
    while True:
        gathers = [step.name for step in graph if step.kind == "gather"]
        left = [name for name in gathers if name not in kept]
        if not left:
            return
        options = [
            realise(graph, left[0]),
            *_taken_by_producer(graph, left[0]),
            *_taken_by_readers(graph, left[0], realise),
        ]
        best = min(options, key=price)
        if best is graph:
            kept.add(left[0])
        graph.steps, graph.outputs = best.steps, best.outputs


def _taken_by_producer(graph: Graph, name: str) -> Iterator[Graph]:
    trial = graph.copy()
    if _absorbed(trial, name, moves.backward, FURTHEST):
        steps.settle(trial)
        yield trial


def _taken_by_readers(graph: Graph, name: str, realise: Realise) -> Iterator[Graph]:
    """Yield graphs in which some readers, or all, take a gather."""
    readers = list(dict.fromkeys(graph.consumers()[name]))
    able = [reader for reader in readers if reader in graph.steps]
    sizes = range(1, len(able) + 1)
    if len(readers) > FEW_READERS:
        sizes = range(len(readers), len(able) + 1)
    for count in sizes:
        for chosen in itertools.combinations(able, count):
            trial = graph.copy()
            own = [
                moves.split_reader(trial, trial.steps[name], [reader]).name
                for reader in chosen
            ]
            if all(_absorbed(trial, n, moves.forward, FURTHEST) for n in own):
                steps.settle(trial)
                left = name in trial.steps
                yield realise(trial, name) if left else trial


def _absorbed(graph: Graph, name: str, move: Move, further: int) -> bool:
    """Carry a gather one way until nothing is left of it; say whether that worked.

    The graph is of no use if not. A gather that meets another becomes one with it.
    """
    if name not in graph.steps or graph.steps[name].kind != "gather":
        return True
    if not further:
        return False
    made = move(graph, graph.steps[name])
    if made is None and move is moves.forward:
        made = _each_reader(graph, name)
    if made is None:
        return False
    # What stands in front of the other input of a pair goes backward.
    return all(
        _absorbed(
            graph, n, moves.backward if n.endswith(moves.BACK) else move, further - 1
        )
        for n in made
    )


def _each_reader(graph: Graph, name: str) -> list[str] | None:
    """Give each reader a gather of its own; None if there is only one reader."""
    readers = list(dict.fromkeys(graph.consumers()[name]))
    if len(readers) < 2:
        return None
    return [
        moves.split_reader(graph, graph.steps[name], [reader]).name
        for reader in readers
    ]


def _realised(graph: Graph, name: str, streamed: bool) -> Graph:
    """Return a graph with one gather as operations of its own."""
    made = graph.copy()
    gather = made.steps[name]
    source, index = gather.inputs[0], moves.indices(gather)
    size = steps.channels(made, source)
    area = cost.places(gather.shape)
    sliced = cost.slice_cycles(index, area)
    if cost.conv_cycles(size, len(index), 1, area, streamed) < sliced:
        _by_ones(made, gather, size)
    else:
        _by_slices(made, gather)
    steps.settle(made)
    return made


def _by_ones(graph: Graph, gather: Step, size: int) -> None:
    """Make a gather a convolution, or of vectors a dense layer, by zeros and ones."""
    index = moves.indices(gather)
    matrix = np.zeros((size, len(index)), "float32")
    matrix[index, np.arange(len(index))] = 1.0
    gather.range = steps.range_at(graph, gather.inputs[0])
    if len(gather.shape) == 4:
        gather.kind = "conv"
        gather.config = {**steps.POINT, "filters": len(index), "use_bias": False}
        gather.weights = {"kernel": matrix[None, None]}
    else:
        gather.kind = "dense"
        gather.config = {"units": len(index), "use_bias": False}
        gather.weights = {"kernel": matrix}
    _close(graph, gather)


def _by_slices(graph: Graph, gather: Step) -> None:
    index = moves.indices(gather)
    starts = [i for i in range(len(index)) if i == 0 or index[i] != index[i - 1] + 1]
    parts: list[str] = []
    for start, stop in itertools.pairwise([*starts, len(index)]):
        rank = len(gather.shape) - 2
        config = {
            "begin": [*[0] * rank, index[start]],
            "size": [*[-1] * rank, stop - start],
        }
        shape = (*gather.shape[:-1], stop - start)
        name = f"{gather.name}_part{len(parts)}"
        part = Step(name, "slice", gather.inputs, config, shape=shape)
        parts.append(steps.add(graph, part).name)
    if len(parts) == 1:
        only = graph.steps[parts[0]]
        gather.kind, gather.config = only.kind, only.config
        return
    gather.range = steps.range_at(graph, gather.inputs[0])
    gather.kind, gather.inputs = "concat", tuple(parts)
    gather.config = {"axis": len(gather.shape) - 1}
    _close(graph, gather)


def _close(graph: Graph, gather: Step) -> None:
    """Give what stands in front of a new operation a range, where ranges are known.

    A tensor that left its range to the concatenation behind the gather now ends in an
    operation of its own, with that range.
    """
    at = graph.steps.get(gather.inputs[0])
    while gather.range is not None and at is not None and at.range is None:
        if not steps.keeps(at):
            at.range = gather.range
            return
        at = graph.steps.get(at.inputs[0])
