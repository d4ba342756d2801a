"""Removes residual connections from a trained model: its outputs stay the same.

Every convolution of a branch gets channels that carry the branch's input past the
others, and the last one adds them: what is left is a plain stack of convolutions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from keras_lightnets.tools.fuse import Fusion, Kept, Plan, _graph, _operator, _rules
from keras_lightnets.tools.fuse._graph import Linear, image_size, shape_of
from keras_lightnets.tools.fuse._operator import InexactError, Operator
from keras_lightnets.tools.quantize._graph import Graph, Step

__all__ = ["merge_residuals", "plan"]

# Layers that work on every value alone, so that channels may be cut out and joined.
_ALONE = ("Activation", "ELU", "LeakyReLU", "PReLU", "ReLU")
# Layers whose output lies within the bounds of their input.
_WITHIN = ("Dropout", "Identity", "MaxPooling2D", "SpatialDropout2D")
_ANY = (-np.inf, np.inf)


@dataclasses.dataclass(frozen=True)
class _Branch:
    """A residual branch.

    Attributes:
        add: Name of the addition.
        source: Tensor that the branch and the shortcut read.
        chain: Names of its steps, in order: linear ones and activations.
        shortcut: Names of the linear steps of the shortcut, in order; none where it
            is the source itself.
    """

    add: str
    source: str
    chain: tuple[str, ...]
    shortcut: tuple[str, ...]


def merge_residuals(model: Any) -> Any:
    """Return a model without residual connections that computes the same.

    Normalisations are folded and parallel branches merged first, as `fuse` does. A
    shortcut that projects, or thins out and pads, is merged into the branch's last
    convolution. What is concatenated of a tensor's channels and of a convolution of
    it becomes one convolution too, as RMNet's RepVGG is deployed. Activations leave
    carried channels as they are: a ReLU does where they are not negative anyway;
    otherwise it becomes a PReLU with slope 1 for them, and an activation that would
    cap them, such as ReLU6, is applied to the other channels alone.

    Convolutions become wider, so the result has more weights and multiplications:
    it is for what needs plain stacks, such as pruning without constraints, or
    devices on which additions of early maps are dear. It is not for training.

    Args:
        model: A functional or sequential `keras.Model`; it is not changed.

    Returns:
        A functional `keras.Model`. Additions that cannot be removed stay; see
        `plan`.

    Raises:
        ValueError: If the model is not functional.

    Example:
        >>> import keras
        >>> x = keras.Input((8, 8, 4))
        >>> y = keras.layers.Conv2D(6, 3, padding="same", name="first_conv")(x)
        >>> y = keras.layers.ReLU()(y)
        >>> y = keras.layers.Conv2D(4, 3, padding="same", name="second_conv")(y)
        >>> plain = merge_residuals(keras.Model(x, keras.layers.Add()([x, y])))
        >>> [tuple(layer.output.shape) for layer in plain.layers[1:]]
        [(None, 8, 8, 10), (None, 8, 8, 10), (None, 8, 8, 4)]

    Reference:
        Meng et al. 2021, RMNet, https://arxiv.org/abs/2111.00687.
    """
    graph = _graph.read(model)
    _rewrite(graph)
    return _graph.rebuild(graph, model)


def plan(model: Any) -> Plan:
    """Return which additions `merge_residuals` removes, and which stay and why.

    Args:
        model: A functional or sequential `keras.Model`; it is not changed.

    Returns:
        The plan: the removed additions with the layers of their branches, and the
        other ones.

    Raises:
        ValueError: If the model is not functional.
    """
    return _rewrite(_graph.read(model))


def _rewrite(graph: Graph) -> Plan:
    _rules.rewrite(graph, norms=True)
    _take_in_pads(graph)
    merged, kept = [], []
    for name in [step.name for step in graph if step.kind == "add"]:
        try:
            branch = _branch(graph, graph.steps[name])
            _merge(graph, branch)
        except InexactError as error:
            kept.append(Kept(name, str(error)))
            continue
        merged.append(Fusion(name, (*branch.chain, *branch.shortcut), 2))
    merged += _stack(graph)
    return Plan(tuple(merged), tuple(kept))


def _take_in_pads(graph: Graph) -> None:
    """Join padding with the convolution behind it, so that chains hold none."""
    shared = graph.shared_steps()
    for name in list(graph.steps):
        step = graph.steps[name]
        before = graph.steps.get(step.inputs[0]) if step.inputs else None
        if before is None or not _plain(step, shared) or not _plain(before, shared):
            continue
        first = _linear(graph, before.name)
        cuts = first.operator.groups < first.operator.inputs
        if first.weighted or cuts or not _linear(graph, name).weighted:
            continue
        if not _alone(graph, before.name):
            continue
        try:
            joined = _rules.join(first, _linear(graph, name))
        except InexactError:
            continue
        step.inputs, step.config = before.inputs, {"linear": joined}
        del graph.steps[before.name]


def _branch(graph: Graph, step: Step) -> _Branch:
    """Find the residual branch of an addition.

    Raises:
        InexactError: If what it adds is not a chain and its input.
    """
    shared = graph.shared_steps()
    if len(step.inputs) != 2 or step.name in shared:
        raise InexactError("it does not add two tensors")
    found = []
    for long, short in (step.inputs, step.inputs[::-1]):
        for source, shortcut in _sources(graph, short, shared):
            chain = _chain(graph, long, source, shared)
            if chain:
                found.append(_Branch(step.name, source, chain, shortcut))
    if not found:
        raise InexactError("no summand is a chain of convolutions of the other's input")
    return max(found, key=lambda branch: len(branch.chain))


def _sources(
    graph: Graph, name: str, shared: set[str]
) -> list[tuple[str, tuple[str, ...]]]:
    """Return what a shortcut may be: (source, linear steps behind it, in order)."""
    steps: tuple[str, ...] = ()
    found = [(name, steps)]
    while name in graph.steps and _alone(graph, name):
        step = graph.steps[name]
        if not _plain(step, shared):
            break
        steps, name = (name, *steps), step.inputs[0]
        found.append((name, steps))
    return found


def _chain(graph: Graph, name: str, source: str, shared: set[str]) -> tuple[str, ...]:
    """Return the steps from a source to a tensor, or none where that is no chain."""
    chain: list[str] = []
    while name != source:
        step = graph.steps.get(name)
        fits = step is not None and (_plain(step, shared) or _activates(step, shared))
        if step is None or not fits or not _alone(graph, name):
            return ()
        chain.insert(0, name)
        name = step.inputs[0]
    ends = [graph.steps[name] for name in (*chain[:1], *chain[-1:])]
    long = sum(graph.steps[name].kind == "linear" for name in chain) > 1
    return tuple(chain) if long and all(e.kind == "linear" for e in ends) else ()


def _alone(graph: Graph, name: str) -> bool:
    return len(graph.consumers()[name]) == 1


def _plain(step: Step, shared: set[str]) -> bool:
    if step.kind != "linear" or step.name in shared or len(step.shape) != 4:
        return False
    return not step.config["linear"].activation


def _activates(step: Step, shared: set[str]) -> bool:
    if step.kind != "node" or step.name in shared or len(step.inputs) != 1:
        return False
    layer = step.config["node"].operation
    soft = getattr(getattr(layer, "activation", None), "__name__", "") == "softmax"
    return type(layer).__name__ in _ALONE and not soft


def _merge(graph: Graph, branch: _Branch) -> None:
    """Carry the source through a branch and take out the addition.

    Raises:
        InexactError: If no convolution carries it; nothing is changed then.
    """
    count = int(shape_of(graph, branch.source)[-1] or 0)
    linears = [n for n in branch.chain if graph.steps[n].kind == "linear"]
    made, strides = {}, np.ones(2, int)
    for name in linears[:-1]:
        operator = _linear(graph, name).operator
        made[name] = _carry(operator, count, first=name == linears[0])
        strides *= operator.strides
    size = image_size(shape_of(graph, graph.steps[linears[-1]].inputs[0]))
    made[linears[-1]] = _join(
        _linear(graph, linears[-1]).operator,
        _shortcut(graph, branch, count, tuple(int(s) for s in strides)),
        size,
    )
    for name, operator in made.items():
        _widen(graph.steps[name], operator)
    bounds = _bounds(graph, branch.source)
    for name in branch.chain:
        if graph.steps[name].kind == "node":
            _spare(graph, graph.steps[name], count, bounds)
    gone = {branch.add, *branch.shortcut}
    graph.steps = {k: v for k, v in graph.steps.items() if k not in gone}
    _redirect(graph, branch.add, linears[-1])


def _linear(graph: Graph, name: str) -> Linear:
    found: Linear = graph.steps[name].config["linear"]
    return found


def _widen(step: Step, operator: Operator) -> None:
    """Give a step another operator; its shape follows."""
    linear = dataclasses.replace(
        step.config["linear"], operator=operator, kernels=int(operator.kernel.size)
    )
    step.config = {"linear": linear}
    step.shape = (*step.shape[:3], operator.outputs)


def _tap(operator: Operator) -> tuple[int, int]:
    """Return the place in a kernel that sees the pixel of an output itself."""
    if operator.pads is None:
        raise InexactError("padding depends on the input's size, which is unknown")
    taps = []
    for side, rate, (pad, _) in zip(
        operator.size, operator.dilation, operator.pads, strict=True
    ):
        if pad % rate or pad // rate >= side:
            raise InexactError("a kernel does not see the pixel that it must carry")
        taps.append(pad // rate)
    return taps[0], taps[1]


def _carry(operator: Operator, count: int, first: bool) -> Operator:
    """Return an operator with `count` channels in front that pass as they are.

    Args:
        operator: The convolution.
        count: Carried channels.
        first: Whether it reads the source, whose channels are these, and nothing
            in front of it.
    """
    tap, bias = _tap(operator), np.r_[np.zeros(count), operator.bias]
    if first:
        if operator.groups > 1:
            raise InexactError("its first convolution has groups")
        kept = np.zeros((*operator.size, count, count))
        kept[tap] = np.eye(count)
        kernel = np.concatenate([kept, operator.kernel], axis=3)
        return dataclasses.replace(operator, kernel=kernel, bias=bias)
    rows, cols = operator.kernel.shape[2], operator.outputs // operator.groups
    if operator.groups > 1 and rows == cols and count % rows == 0:
        kept = np.zeros((*operator.size, rows, count))
        kept[tap] = np.tile(np.eye(rows), count // rows)
        kernel = np.concatenate([kept, operator.kernel], axis=3)
        groups = operator.groups + count // rows
        return dataclasses.replace(operator, kernel=kernel, bias=bias, groups=groups)
    dense = _operator.regroup(operator, 1)
    shape = (*operator.size, count + operator.inputs, count + operator.outputs)
    kernel = np.zeros(shape)
    kernel[(*tap, slice(count), slice(count))] = np.eye(count)
    kernel[:, :, count:, count:] = dense.kernel
    return dataclasses.replace(dense, kernel=kernel, bias=bias)


def _shortcut(
    graph: Graph, branch: _Branch, count: int, strides: tuple[int, ...]
) -> Operator:
    """Return the shortcut as it looks from the input of the last convolution."""
    if not branch.shortcut:
        return _operator.identity(count)
    steps = [_linear(graph, name) for name in branch.shortcut]
    operator = functools.reduce(_rules.join, steps).operator
    if strides == (1, 1):
        return operator
    left = tuple(a // b for a, b in zip(operator.strides, strides, strict=True))
    whole = all(a % b == 0 for a, b in zip(operator.strides, strides, strict=True))
    if operator.size != (1, 1) or operator.pads != _operator.NO_PADS or not whole:
        raise InexactError("its shortcut sees more than the strided pixels")
    return dataclasses.replace(operator, strides=(left[0], left[1]))


def _join(last: Operator, shortcut: Operator, size: _operator.Size) -> Operator:
    """Return the last convolution with the shortcut of the carried channels added."""
    last, shortcut = (_operator.regroup(o, 1) for o in (last, shortcut))
    blank = np.zeros((*last.size, shortcut.inputs, last.outputs))
    ours = np.concatenate([blank, last.kernel], axis=2)
    blank = np.zeros((*shortcut.size, last.inputs, last.outputs))
    theirs = np.concatenate([shortcut.kernel, blank], axis=2)
    return _operator.merge(
        [
            dataclasses.replace(last, kernel=ours),
            dataclasses.replace(shortcut, kernel=theirs),
        ],
        size,
    )


def _stack(graph: Graph) -> list[Fusion]:
    """Make one convolution of what carries channels by a concatenation."""
    merged = []
    for name in [step.name for step in graph if step.kind == "node"]:
        parts = _parts(graph, graph.steps[name])
        if not parts:
            continue
        linears = [_linear(graph, part) for part in parts]
        whole, at = int(graph.steps[name].shape[-1] or 0), 0
        operators = []
        for linear in linears:
            behind = whole - at - linear.operator.outputs
            spread = _operator.choice(
                np.pad(np.eye(linear.operator.outputs), ((0, 0), (at, behind)))
            )
            operators.append(_operator.compose(linear.operator, spread))
            at += linear.operator.outputs
        source = graph.steps[parts[0]].inputs[0]
        try:
            joined = _operator.merge(operators, image_size(shape_of(graph, source)))
        except InexactError:
            continue
        main = max(linears, key=lambda linear: linear.kernels)
        last = graph.steps[parts[linears.index(main)]]
        _widen(last, joined)
        gone = {name, *parts} - {last.name}
        graph.steps = {k: v for k, v in graph.steps.items() if k not in gone}
        _redirect(graph, name, last.name)
        layers = tuple(layer for linear in linears for layer in linear.layers)
        merged.append(Fusion(name, layers, len(parts)))
    return merged


def _parts(graph: Graph, step: Step) -> tuple[str, ...]:
    """Return the linear steps that a concatenation joins: some choose, some convolve.

    None where it joins anything else, or tensors of different origin.
    """
    layer, shared = step.config["node"].operation, graph.shared_steps()
    last = getattr(layer, "axis", None) in (-1, len(step.shape) - 1)
    if type(layer).__name__ != "Concatenate" or not last:
        return ()
    steps = [graph.steps.get(name) for name in step.inputs]
    if not all(s and _plain(s, shared) and _alone(graph, s.name) for s in steps):
        return ()
    weighted = {_linear(graph, name).weighted for name in step.inputs}
    sources = {s.inputs[0] for s in steps if s}
    several = len(set(step.inputs)) == len(step.inputs)
    fits = weighted == {True, False} and len(sources) == 1 and several
    return step.inputs if fits else ()


def _redirect(graph: Graph, old: str, new: str) -> None:
    """Make readers of a tensor read another."""
    for step in graph.steps.values():
        step.inputs = tuple(new if i == old else i for i in step.inputs)
    graph.outputs = {k: new if v == old else v for k, v in graph.outputs.items()}


def _bounds(graph: Graph, name: str) -> tuple[float, float]:
    """Return between which values a tensor lies for certain."""
    step = graph.steps.get(name)
    if step is not None and step.kind == "linear" and not _linear(graph, name).weighted:
        low, high = _bounds(graph, step.inputs[0])
        return min(low, 0.0), max(high, 0.0)  # zeros and means
    if step is None or step.kind != "node":
        return _ANY
    layer = step.config["node"].operation
    if type(layer).__name__ in _WITHIN:
        return _bounds(graph, step.inputs[0])
    return _relu(layer) or _ANY


def _relu(layer: Any) -> tuple[float, float] | None:
    """Return the bounds of a ReLU that is the identity in between, or None."""
    if type(layer).__name__ == "Activation":
        caps = {"relu": np.inf, "relu6": 6.0}
        cap = caps.get(getattr(layer.activation, "__name__", ""))
        return None if cap is None else (0.0, cap)
    if type(layer).__name__ != "ReLU" or layer.negative_slope or layer.threshold:
        return None
    return 0.0, np.inf if layer.max_value is None else float(layer.max_value)


def _spare(graph: Graph, step: Step, count: int, bounds: tuple[float, float]) -> None:
    """Make an activation leave the first channels as they are."""
    import keras

    layer = step.config["node"].operation
    channels = count + int(step.shape[-1] or 0)
    shape, dtype = (*step.shape[:3], channels), layer.dtype_policy
    kept = _relu(layer)
    if kept and kept[0] <= bounds[0] and bounds[1] <= kept[1]:
        step.shape = shape
        return
    if kept == (0.0, np.inf):
        slopes = np.r_[np.ones(count), np.zeros(channels - count)][None, None]
        made = keras.layers.PReLU(shared_axes=[1, 2], name=layer.name, dtype=dtype)
        weights = {"alpha": slopes.astype("float32")}
        new = Step(step.name, "layer", step.inputs, {"layer": made}, weights)
        graph.steps[step.name] = dataclasses.replace(new, shape=shape)
        return
    stem = step.name.removesuffix("_act")
    parts = (f"{stem}_kept", (0, channels - count)), (stem, (count, 0))
    fresh = []
    for part, cut in parts:
        # Read as channels first, the channels are what is cut.
        made = keras.layers.Cropping2D(
            ((0, 0), cut), "channels_first", name=f"{part}_split", dtype=dtype
        )
        size = channels - sum(cut)
        name = f"{part}_split"
        new = Step(name, "layer", step.inputs, {"layer": made})
        fresh.append(dataclasses.replace(new, shape=(*shape[:3], size)))
    step.inputs = (fresh[1].name,)
    made = keras.layers.Concatenate(name=f"{stem}_concat", dtype=dtype)
    inputs = (fresh[0].name, step.name)
    whole = Step(f"{stem}_concat", "layer", inputs, {"layer": made}, shape=shape)
    steps: dict[str, Step] = {}
    for name, old in graph.steps.items():
        if name == step.name:
            steps |= {s.name: s for s in (*fresh, step, whole)}
            continue
        old.inputs = tuple(whole.name if i == step.name else i for i in old.inputs)
        steps[name] = old
    graph.steps = steps
