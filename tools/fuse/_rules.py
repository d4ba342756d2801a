"""The rewrites: fold a series of linear steps, merge parallel ones that are added.

Each rule goes over the graph once, rewrites what is exact and does not store more
than before, and returns why the rest stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras_lightnets.tools.fuse import _operator
from keras_lightnets.tools.fuse._graph import Linear, image_size, shape_of
from keras_lightnets.tools.fuse._operator import InexactError
from keras_lightnets.tools.quantize._graph import Graph, Step

Reasons = dict[str, str]


CONVOLUTIONS = ("Conv2D", "DepthwiseConv2D", "Dense")


@dataclasses.dataclass(frozen=True)
class Term:
    """Steps that become one.

    Attributes:
        steps: Their names, inputs first.
        linear: What they compute together.
        places: Which summands of an addition they make.
    """

    steps: tuple[str, ...]
    linear: Linear
    places: tuple[int, ...] = ()


def rewrite(graph: Graph, norms: bool) -> Reasons:
    """Apply the rules until nothing changes.

    Args:
        graph: Changed in place.
        norms: Whether series are folded too, not only branches merged.

    Returns:
        Why the rest stayed, by step name.
    """
    while True:
        before = _size(graph)
        reasons = merge_parallel(graph)
        if norms:
            reasons |= fold_series(graph)
        if _size(graph) == before:
            return reasons


def fold_series(graph: Graph) -> Reasons:
    """Join linear steps that follow each other, nothing else reading between them.

    Args:
        graph: Changed in place.

    Returns:
        Why steps with weights stayed apart, by the name of the later one.
    """
    reasons: Reasons = {}
    for name in list(graph.steps):
        if name not in graph.steps:
            continue
        found, reason = _longest(graph, upward(graph, name))
        if found is not None:
            _replace(graph, name, found)
        elif reason:
            reasons[name] = reason
    return reasons


def merge_parallel(graph: Graph) -> Reasons:
    """Join linear branches of one tensor that are added.

    Args:
        graph: Changed in place.

    Returns:
        Why branches stayed apart, by the name of the addition.
    """
    reasons: Reasons = {}
    for name in reversed(list(graph.steps)):
        step = graph.steps.get(name)
        if step is None or step.kind != "add" or name in graph.shared_steps():
            continue
        summands, inner = _summands(graph, name)
        for source, group in _by_source(graph, summands).items():
            found, reason = _cluster(graph, source, group)
            if found is not None:
                _rewrite_sum(graph, step, summands, inner, found)
                reasons.pop(name, None)
                break
            reasons[name] = reason
    return reasons


def upward(graph: Graph, name: str) -> list[str]:
    """Return the chain of linear steps that ends in a step, the first one first.

    Only the last one may be followed by an activation; nobody else reads the others.
    """
    readers, shared = graph.consumers(), graph.shared_steps()
    chain: list[str] = []
    while True:
        step = graph.steps.get(name)
        if step is None or step.kind != "linear" or name in shared:
            return chain
        if chain and (len(readers[name]) > 1 or step.config["linear"].activation):
            return chain
        chain.insert(0, name)
        name = step.inputs[0]


def join(first: Linear, second: Linear) -> Linear:
    """Return two linear steps, one after the other, as one.

    Raises:
        InexactError: If that is no single convolution.
    """
    return Linear(
        _operator.compose(first.operator, second.operator),
        _main(first, second),
        first.layers + second.layers,
        max(first.branches, second.branches),
        first.kernels + second.kernels,
        first.scales + second.scales,
        second.activation,
    )


def add(first: Linear, second: Linear, size: _operator.Size) -> Linear:
    """Return two linear steps, side by side, as one.

    Raises:
        InexactError: If that is no single convolution.
    """
    return Linear(
        _operator.merge([first.operator, second.operator], size),
        _main(first, second),
        first.layers + second.layers,
        first.branches + second.branches,
        first.kernels + second.kernels,
        first.scales + second.scales,
    )


def _main(first: Linear, second: Linear) -> Any:
    """Return the layer that lends its name: the one with the largest kernel."""

    def rank(linear: Linear) -> tuple[bool, int]:
        kind = type(linear.main).__name__
        return kind in CONVOLUTIONS, linear.operator.kernel.size

    if first.main is None or second.main is None:
        return first.main or second.main
    return max((first, second), key=rank).main


def _size(graph: Graph) -> int:
    return sum(1 + len(step.inputs) for step in graph)


def _linear(graph: Graph, name: str) -> Linear:
    found: Linear = graph.steps[name].config["linear"]
    return found


def _longest(graph: Graph, chain: Sequence[str]) -> tuple[Term | None, str]:
    """Return the longest end of a chain that is worth joining, or what hinders it.

    Two convolutions that are less work than one are no hindrance.
    """
    best: Term | None = None
    if not chain or not _linear(graph, chain[-1]).weighted:
        return best, ""
    linear = _linear(graph, chain[-1])
    for i in range(len(chain) - 2, -1, -1):
        before = _linear(graph, chain[i])
        try:
            size = _operator.composed_size(before.operator, linear.operator)
            kernels, scales = (
                before.kernels + linear.kernels,
                before.scales + linear.scales,
            )
            if before.weighted and size > (kernels or scales):
                return best, ""
            linear = join(before, linear)
        except InexactError as error:
            return best, f"behind {chain[i]}: {error}"
        if before.weighted:
            best = Term(tuple(chain[i:]), linear)
    return best, ""


def _summands(graph: Graph, name: str) -> tuple[list[str], list[str]]:
    """Return what an addition adds, and the additions in it that nobody else reads."""
    readers, shared = graph.consumers(), graph.shared_steps()
    summands: list[str] = []
    inner: list[str] = []
    for source in graph.steps[name].inputs:
        step = graph.steps.get(source)
        nested = step is not None and step.kind == "add" and source not in shared
        if nested and len(readers[source]) == 1:
            more, deeper = _summands(graph, source)
            summands += more
            inner += [source, *deeper]
        else:
            summands.append(source)
    return summands, inner


def _by_source(
    graph: Graph, summands: Sequence[str]
) -> dict[str, list[tuple[int, tuple[str, ...]]]]:
    """Return the tensors that several summands are linear in, the most used first.

    Each comes with the places of those summands and the steps that lead there.
    """
    readers = graph.consumers()
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for place, name in enumerate(summands):
        found.setdefault(name, []).append((place, ()))
        if len(readers[name]) > 1:
            continue
        chain = upward(graph, name)
        if not chain or _linear(graph, chain[-1]).activation:
            continue
        for i in range(len(chain) - 1, -1, -1):
            source = graph.steps[chain[i]].inputs[0]
            found.setdefault(source, []).append((place, tuple(chain[i:])))
    several = [(s, group) for s, group in found.items() if len(group) > 1]
    return dict(sorted(several, key=lambda pair: -len(pair[1])))


def _cluster(
    graph: Graph, source: str, group: Sequence[tuple[int, tuple[str, ...]]]
) -> tuple[Term | None, str]:
    """Return as many summands as are worth merging, or why none are."""
    shape, reason = shape_of(graph, source), ""
    size, channels = image_size(shape), int(shape[-1] or 0)
    terms = []
    for place, steps in group:
        try:
            terms.append(_term(graph, place, steps, channels))
        except InexactError as error:
            reason = f"{steps[-1]}: {error}"
    terms.sort(key=lambda term: -term.linear.operator.kernel.size)
    for i, first in enumerate(terms):
        best = first
        for other in terms[i + 1 :]:
            try:
                linear = add(best.linear, other.linear, size)
            except InexactError as error:
                reason = str(error)
                continue
            if linear.operator.kernel.size > linear.limit:
                reason = "merged, its branches would need more multiplications"
                continue
            steps = best.steps + other.steps
            best = Term(steps, linear, best.places + other.places)
        if best is not first:
            return best, ""
    return None, reason


def _term(graph: Graph, place: int, steps: tuple[str, ...], channels: int) -> Term:
    if not steps:
        return Term((), Linear(_operator.identity(channels), None, ()), (place,))
    linear = _linear(graph, steps[-1])
    for name in reversed(steps[:-1]):
        linear = join(_linear(graph, name), linear)
    return Term(steps, linear, (place,))


def _step(graph: Graph, term: Term, source: str, at: str) -> Step:
    name, shape = term.linear.main.name, graph.steps[at].shape
    size = int(term.linear.operator.kernel.size)
    linear = dataclasses.replace(term.linear, kernels=size, scales=0)
    return Step(name, "linear", (source,), {"linear": linear}, shape=shape)


def _replace(graph: Graph, at: str, term: Term) -> None:
    """Put one step in the place of a series that ends in `at`."""
    source = graph.steps[term.steps[0]].inputs[0]
    _put(graph, at, _step(graph, term, source, at), set(term.steps))


def _rewrite_sum(
    graph: Graph, step: Step, summands: list[str], inner: list[str], term: Term
) -> None:
    """Put one step in the place of some summands, or of the whole addition."""
    source = graph.steps[term.steps[0]].inputs[0]
    new = _step(graph, term, source, step.name)
    gone = {*term.steps, *inner}
    rest = [name for i, name in enumerate(summands) if i not in term.places]
    if not rest:
        _put(graph, step.name, new, gone)
        return
    first = min(term.places)
    before = sum(i not in term.places for i in range(first))
    rest.insert(before, new.name)
    dtype = {"dtype": term.linear.main.dtype_policy}
    less = Step(step.name, "add", tuple(rest), dtype, shape=step.shape)
    steps: dict[str, Step] = {}
    for name, old in graph.steps.items():
        if name == step.name:
            steps |= {new.name: new, less.name: less}
        elif name not in gone:
            steps[name] = old
    graph.steps = steps


def _put(graph: Graph, at: str, new: Step, gone: set[str]) -> None:
    """Put a step in the place of another; readers of that one read the new one."""
    steps: dict[str, Step] = {}
    for name, old in graph.steps.items():
        if name == at:
            steps[new.name] = new
        elif name not in gone:
            old.inputs = tuple(new.name if i == at else i for i in old.inputs)
            steps[name] = old
    graph.steps = steps
    graph.outputs = {k: new.name if v == at else v for k, v in graph.outputs.items()}
