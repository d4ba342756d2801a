"""Structural reparameterisation: the deployed form of a trained Keras model.

`fuse(model)` folds normalisations into convolutions and merges parallel linear
branches; `plan(model)` says what that will do, and what stays and why.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_lightnets.tools.fuse import _graph, _rules
from keras_lightnets.tools.quantize._graph import Graph, Step

__all__ = ["Fusion", "Kept", "Plan", "fuse", "merge_branches", "plan"]


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Layers that become one.

    Attributes:
        name: Name of the one layer.
        layers: Names of the layers it replaces; additions are not named.
        branches: How many parallel branches they were; 1 for a plain series.
    """

    name: str
    layers: tuple[str, ...]
    branches: int


@dataclasses.dataclass(frozen=True)
class Kept:
    """A layer that could have been fused and stays.

    Attributes:
        name: Its name.
        reason: Why it stays, in words.
    """

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What fusing a model does.

    Attributes:
        fused: Layers that become one, in order.
        kept: Normalisations, branches and series that stay, in order.
    """

    fused: tuple[Fusion, ...]
    kept: tuple[Kept, ...]

    def text(self) -> str:
        """Return one line per fusion and per layer that stays."""
        lines = [
            f"{f.name}: {' + '.join(f.layers)}"
            + (f" ({f.branches} branches)" if f.branches > 1 else "")
            for f in self.fused
        ]
        return "\n".join([*lines, *(f"{k.name} stays: {k.reason}" for k in self.kept)])


def fuse(model: Any, *, norms: bool = True) -> Any:
    """Return the deployed form of a model: fewer layers, the same outputs.

    Convolutions (of any groups) and dense layers take in the batch normalisations
    around them; parallel linear branches that are added become one convolution, and
    so do series of linear convolutions, where that needs no more multiplications.
    Only what is exact is done, at the border too, and the rest stays as it is: see
    `plan`. The result computes what the model computes with `training=False`, so
    it is not for training, and it is not compiled.

    Args:
        model: A functional or sequential `keras.Model`; it is not changed.
        norms: False only merges branches, and folds what stands within them. That
            is the form in which authors count and publish deployed networks.

    Returns:
        A functional `keras.Model` with inputs, outputs and remaining layer names of
        the model; a fused layer bears the name of its largest convolution.

    Raises:
        ValueError: If the model is not functional.

    Example:
        >>> import keras
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.Conv2D(4, 3, use_bias=False, name="stem_conv")(x)
        >>> y = keras.layers.BatchNormalization(name="stem_bn")(y)
        >>> [layer.name for layer in fuse(keras.Model(x, y)).layers[1:]]
        ['stem_conv']

    Reference:
        Ding et al. 2021, RepVGG, https://arxiv.org/abs/2101.03697.
    """
    graph = _graph.read(model)
    _rules.rewrite(graph, norms)
    return _graph.rebuild(graph, model)


def merge_branches(model: Any) -> Any:
    """Return a model without parallel linear branches, as int8 wants it.

    In int8 each branch is rounded by itself, with one scale for channels whose
    normalisations differ, before they are added; merged they are rounded once.

    Args:
        model: A functional or sequential `keras.Model`; it is not changed.

    Returns:
        `fuse(model, norms=False)` where branches become one, else the model itself.

    Raises:
        ValueError: If the model is not functional.
    """
    graph = _graph.read(model)
    _rules.rewrite(graph, norms=False)
    found = any(linear.branches > 1 for _, linear in _merged(graph))
    return _graph.rebuild(graph, model) if found else model


def plan(model: Any, *, norms: bool = True) -> Plan:
    """Return what `fuse` does to a model, and what stays.

    Args:
        model: A functional or sequential `keras.Model`; it is not changed.
        norms: As given to `fuse`.

    Returns:
        The plan.

    Raises:
        ValueError: If the model is not functional.
    """
    graph = _graph.read(model)
    reasons = _rules.rewrite(graph, norms)
    fused = [Fusion(name, row.layers, row.branches) for name, row in _merged(graph)]
    kept = []
    for step in graph:
        reason = reasons.get(step.name) or (_norm_reason(graph, step) if norms else "")
        if reason:
            kept.append(Kept(step.name, reason))
    return Plan(tuple(fused), tuple(kept))


def _merged(graph: Graph) -> list[tuple[str, _graph.Linear]]:
    """Return the steps that several layers became."""
    return [
        (step.name, step.config["linear"])
        for step in graph
        if step.kind == "linear" and "node" not in step.config
    ]


def _norm_reason(graph: Graph, step: Step) -> str:
    """Say why a batch normalisation stands alone; nothing for other steps."""
    if "node" not in step.config:
        return ""
    kind = type(step.config["node"].operation).__name__
    if kind != "BatchNormalization":
        return ""
    if step.name in graph.shared_steps():
        return "its layer is called several times"
    (name,) = step.inputs
    before = graph.steps.get(name)
    if before is None:
        return "it stands behind the input"
    if before.kind != "linear":
        called = before.config.get("node")
        what = type(called.operation).__name__ if called else "Add"
        return f"{name} before it ({what}) does not fuse"
    if before.config["linear"].activation:
        return f"{name} before it has an activation"
    others = [r for r in graph.consumers()[name] if r != step.name]
    if others:
        return f"{name} is also read by {', '.join(others)}"
    return f"folded into what is before {name}, it would need more multiplications"
