"""Moves constant factors into kernels: a factor of its own costs an operation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_lightnets.tools.quantize._graph import Graph, Step

KERNELS = ("conv", "depthwise", "dense", "conv_transpose")

# Kinds that pass a positive factor on: f(v * x) = v * f(x).
PASS = (
    "multiply", "scale", "mean", "avg_pool", "max_pool", "global_max", "zero_pad",
    "crop", "resize",
)  # fmt: skip
# These move values between channels, so that all must have the same factor.
MIX = ("permute", "reshape", "slice", "gather")


def fold_scales(graph: Graph) -> None:
    """Fold positive constant factors into every kernel that reads them.

    A hard sigmoid ends in a factor of 1/6, a hard swish begins with one. Behind them
    stand convolutions, with products, means and poolings between, which a factor
    passes through: their kernels take it, and the tensors on the way lose it, ranges
    as well. A factor that meets anything else on any way stays.

    Args:
        graph: Steps with plain kernels; changed in place.
    """
    for step in list(graph):
        if step.kind != "scale" or not np.all(step.weights["value"] > 0):
            continue
        factor = step.weights["value"].astype("float64")
        found = _way(graph, step, factor)
        if found is None:
            continue
        tensors, kernels = found
        for name in tensors[1:]:
            passing = graph.steps[name]
            if passing.range is not None:
                low, high = passing.range
                passing.range = (low / factor[0], high / factor[0])
        for kernel in kernels:
            _multiply(kernel, factor)
        graph.remove(step.name)


def _way(
    graph: Graph, start: Step, factor: np.ndarray
) -> tuple[list[str], list[Step]] | None:
    """Return the tensors that carry the factor and the kernels that end it, if all do.

    A kernel's own output is right again, so the way ends there.
    """
    readers, shared = graph.consumers(), graph.shared_steps()
    tensors, kernels = [start.name], []
    for name in tensors:
        for reader in readers[name]:
            step = graph.steps.get(reader)
            if step is None or step.name in shared:
                return None
            if step.kind in KERNELS:
                kernels.append(step)
            elif not _passes(step, factor.size):
                return None
            elif step.name not in tensors:
                tensors.append(step.name)
    products = [graph.steps[n] for n in tensors if graph.steps[n].kind == "multiply"]
    if any(sum(i in tensors for i in p.inputs) != 1 for p in products):
        return None
    ranged = any(graph.steps[name].range for name in tensors[1:])
    return None if ranged and factor.size > 1 else (tensors, kernels)


def _passes(step: Step, channels: int) -> bool:
    if step.kind == "relu":
        return step.config.get("max_value") is None
    if step.kind in MIX:
        return channels == 1
    return step.kind in PASS and channels in (1, step.shape[-1])


def _multiply(step: Step, factor: np.ndarray) -> None:
    """Multiply a kernel with a factor of its input channels."""
    kernel = step.weights["kernel"].astype("float64")
    if factor.size > 1:
        factor = on_inputs(
            step.kind, kernel.shape, step.config.get("groups", 1), factor
        )
    step.weights = {**step.weights, "kernel": (kernel * factor).astype("float32")}


def on_inputs(
    kind: str, shape: Sequence[int], groups: int, values: np.ndarray
) -> np.ndarray:
    """Return a value per input channel in the shape in which it multiplies a kernel."""
    if kind == "depthwise":
        return values[:, None]
    if kind == "conv" and groups > 1:
        # (channels of a group, filters): each filter sees its own group's channels.
        own = values.reshape(groups, -1)
        return np.repeat(own, shape[-1] // groups, axis=0).T
    if kind == "conv_transpose":
        return values
    return values[:, None]
