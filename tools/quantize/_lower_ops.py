"""Turns operations of `keras.ops` in a functional graph into steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lightnets.tools.quantize import _lower
from keras_lightnets.tools.quantize._lower import Lowering, UnsupportedLayerError


def _is_tensor(value: Any) -> bool:
    return isinstance(value, str)


def add(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """X + y, either of them a constant."""
    a, b = args
    if _is_tensor(a) and _is_tensor(b):
        return low.emit("add", op.name, [a, b], shape=shape)
    x, value = (a, b) if _is_tensor(a) else (b, a)
    return low.constant("add_const", op.name, x, value)


def subtract(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """X - y, either of them a constant."""
    a, b = args
    if _is_tensor(a) and _is_tensor(b):
        return low.emit("subtract", op.name, [a, b], shape=shape)
    if _is_tensor(a):
        return low.constant("add_const", op.name, a, -np.asarray(b, "float32"))
    x = low.constant("scale", f"{op.name}_negative", b, -1.0)
    return low.constant("add_const", op.name, x, a)


def multiply(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """X * y, either of them a constant."""
    a, b = args
    if _is_tensor(a) and _is_tensor(b):
        return low.emit("multiply", op.name, [a, b], shape=shape)
    x, value = (a, b) if _is_tensor(a) else (b, a)
    return low.constant("scale", op.name, x, value)


def divide(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """X / constant."""
    a, b = args
    if not _is_tensor(a) or _is_tensor(b):
        raise UnsupportedLayerError(
            f"The division {op.name!r} has a tensor as divisor; only division by a "
            "constant converts."
        )
    return low.constant("scale", op.name, a, 1.0 / np.asarray(b, "float64"))


def negative(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """Negate."""
    return low.constant("scale", op.name, args[0], -1.0)


def extreme(kind: str) -> Callable[..., str]:
    """Return the lowering of maximum or minimum of two tensors."""

    def lower(low: Lowering, op: Any, args: Any, shape: Any) -> str:
        a, b = args
        if _is_tensor(a) and _is_tensor(b):
            return low.emit(kind, op.name, [a, b], shape=shape)
        x, value = (a, b) if _is_tensor(a) else (b, a)
        if kind == "maximum" and np.all(np.asarray(value) == 0):
            return low.activation(x, "relu", op.name)
        raise UnsupportedLayerError(
            f"{kind} of a tensor and {value!r} in {op.name!r} has no counterpart; only "
            "maximum(x, 0) converts."
        )

    return lower


def clip(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """Clip from 0 to a top."""
    if op.x_min != 0:
        raise UnsupportedLayerError(
            f"clip from {op.x_min!r} in {op.name!r} has no counterpart; only clip "
            "from 0 converts."
        )
    return low.emit("relu", op.name, [args[0]], {"max_value": float(op.x_max)})


def function(kind: str) -> Callable[..., str]:
    """Return the lowering of an activation function."""

    def lower(low: Lowering, op: Any, args: Any, shape: Any) -> str:
        if getattr(op, "axis", -1) not in (-1, len(shape) - 1):
            raise UnsupportedLayerError(
                f"{op.name!r} works on axis {op.axis}; only the last one converts."
            )
        return low.activation(args[0], kind, op.name)

    return lower


def _spatial(low: Lowering, op: Any, args: Any) -> None:
    axes = op.axis if isinstance(op.axis, list | tuple) else [op.axis]
    rank = len(low.shape(args[0]))
    if rank != 4 or sorted(a % rank for a in axes if a is not None) != [1, 2]:
        raise UnsupportedLayerError(
            f"{op.name!r} reduces axes {op.axis!r} of a tensor of rank {rank}; only "
            "axes (1, 2) of rank 4 convert."
        )


def reduce(kind: str) -> Callable[..., str]:
    """Return the lowering of mean or max over height and width."""

    def lower(low: Lowering, op: Any, args: Any, shape: Any) -> str:
        _spatial(low, op, args)
        config = {"keepdims": bool(op.keepdims)}
        return low.emit(kind, op.name, [args[0]], config, shape=shape)

    return lower


def transpose(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """Transpose that leaves the batch in front."""
    axes = op.axes or tuple(reversed(range(len(shape))))
    if axes[0] != 0:
        raise UnsupportedLayerError(f"{op.name!r} moves the batch axis: {axes}.")
    config = {"dims": tuple(axes[1:])}
    return low.emit("permute", op.name, [args[0]], config, shape=shape)


def swap(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """Swapaxes, without the batch."""
    axes = list(range(len(shape)))
    a, b = op.axis1 % len(shape), op.axis2 % len(shape)
    axes[a], axes[b] = axes[b], axes[a]
    if axes[0] != 0:
        raise UnsupportedLayerError(f"{op.name!r} moves the batch axis.")
    config = {"dims": tuple(axes[1:])}
    return low.emit("permute", op.name, [args[0]], config, shape=shape)


def _slice(
    low: Lowering, name: str, x: str, ranges: list[tuple[int, int]], shape: Any
) -> str:
    config = {"begin": [b for b, _ in ranges], "size": [s for _, s in ranges]}
    return low.emit("slice", name, [x], config, shape=shape)


def split(low: Lowering, op: Any, args: Any, shapes: Any) -> list[str]:
    """Split as one slice per part."""
    whole = low.shape(args[0])
    axis = op.axis % len(whole)
    parts, start = [], 0
    for i, shape in enumerate(shapes):
        ranges = [(0, -1)] * (len(whole) - 1)
        ranges[axis - 1] = (start, int(shape[axis]))
        start += int(shape[axis])
        parts.append(_slice(low, f"{op.name}_{i}", args[0], ranges, shape))
    return parts


def get_item(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """Indexing with slices of step 1."""
    x, key = args[0], args[1]
    whole = low.shape(x)
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(whole) - len(keys) + 1)
    keys += [slice(None)] * (len(whole) - len(keys))
    plain = all(isinstance(k, slice) and k.step in (None, 1) for k in keys)
    if not plain or keys[0] != slice(None):
        raise UnsupportedLayerError(
            f"The indexing {key!r} in {op.name!r} has no counterpart; only slices of "
            "step 1 behind the batch axis convert."
        )
    ranges = []
    for k, size in zip(keys[1:], whole[1:], strict=True):
        begin, end, _ = k.indices(size) if size is not None else (0, -1, 1)
        ranges.append((begin, end - begin if size is not None else -1))
    return _slice(low, op.name, x, ranges, shape)


def pad(low: Lowering, op: Any, args: Any, shape: Any) -> str:
    """Zero padding of height and width."""
    width = op.pad_width
    fill = args[1] if len(args) > 1 else None
    outer = tuple(width[0]) + tuple(width[-1])
    if op.mode != "constant" or fill not in (None, 0) or any(outer) or len(width) != 4:
        raise UnsupportedLayerError(
            f"The padding {width} of {op.name!r} has no counterpart; only zeros around "
            "height and width convert."
        )
    config = {"padding": tuple(tuple(w) for w in width[1:3])}
    return low.emit("zero_pad", op.name, [args[0]], config, shape=shape)


def pool(kind: str) -> Callable[..., str]:
    """Return the lowering of ops.max_pool or ops.average_pool."""

    def lower(low: Lowering, op: Any, args: Any, shape: Any) -> str:
        config = {
            "pool_size": op.pool_size,
            "strides": op.strides or op.pool_size,
            "padding": op.padding,
        }
        return low.emit(kind, op.name, [args[0]], config, shape=shape)

    return lower


OPS: dict[str, Callable[..., Any]] = {
    "Add": add,
    "Subtract": subtract,
    "Multiply": multiply,
    "TrueDivide": divide,
    "Divide": divide,
    "Negative": negative,
    "Maximum": extreme("maximum"),
    "Minimum": extreme("minimum"),
    "Clip": clip,
    "Mean": reduce("mean"),
    "Max": reduce("global_max"),
    "Transpose": transpose,
    "Swapaxes": swap,
    "Reshape": _lower.reshape,
    "Squeeze": _lower.reshape,
    "ExpandDims": _lower.reshape,
    "Concatenate": _lower.concat,
    "Resize": _lower.resize,
    "Split": split,
    "GetItem": get_item,
    "Pad": pad,
    "MaxPool": pool("max_pool"),
    "AveragePool": pool("avg_pool"),
    "Identity": _lower.passthrough,
    **{
        name: function(kind)
        for name, kind in {
            "Relu": "relu",
            "Relu6": "relu6",
            "Sigmoid": "sigmoid",
            "HardSigmoid": "hard_sigmoid",
            "HardSilu": "hard_silu",
            "Silu": "silu",
            "Tanh": "tanh",
            "Softmax": "softmax",
            "Gelu": "gelu",
        }.items()
    },
}
