"""Turns layers that resample a map into steps: products, pooling, mirrored borders.

And the convolution whose kernel is a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from keras_lightnets.tools.quantize._lower import Lowering

# The second row of Pascal's triangle, in both directions.
BINOMIAL = np.outer((1, 2, 1), (1, 2, 1)) / 16.0


def resample(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Resample2D as two products with constant matrices."""
    matrices = layer.matrices(*low.shape(args[0])[1:3])
    return _products(low, layer.name, args[0], matrices, shape)


def adaptive_average(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """AdaptiveAveragePooling2D: whole windows or copies where sides divide."""
    sides, wanted = low.shape(args[0])[1:3], shape[1:3]
    pairs = [(int(old or 0), new) for old, new in zip(sides, wanted, strict=True)]
    if all(old % new == 0 for old, new in pairs):
        window = tuple(old // new for old, new in pairs)
        config = {"pool_size": window, "strides": window, "padding": "valid"}
        return low.emit("avg_pool", layer.name, [args[0]], config, shape=shape)
    if all(new % old == 0 for old, new in pairs):
        copies = {"size": tuple(wanted), "method": "nearest"}
        return low.emit("resize", layer.name, [args[0]], copies, shape=shape)
    matrices = [_means(old, new) for old, new in pairs]
    return _products(low, layer.name, args[0], matrices, shape)


def _means(old: int, new: int) -> np.ndarray:
    """Return the matrix (new, old) of averages over windows that cover a side."""
    matrix = np.zeros((new, old), "float32")
    for i in range(new):
        start, stop = i * old // new, -(-(i + 1) * old // new)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix


def _products(
    low: Lowering, name: str, x: str, matrices: Sequence[np.ndarray], shape: Any
) -> str:
    """Multiply the rows, then the columns of a map with a constant matrix each."""
    batch, rows, columns, channels = low.shape(x)
    down, across = matrices
    height, width = shape[1:3]

    def turn(x: str, part: str, dims: tuple[int, ...], *sides: Any) -> str:
        config = {"dims": dims}
        return low.emit("permute", f"{name}_{part}", [x], config, shape=(batch, *sides))

    def product(x: str, part: str, matrix: Any, *sides: Any) -> str:
        config = {"units": len(matrix), "use_bias": False, "trainable": False}
        x = low.emit("dense", f"{name}_{part}", [x], config, shape=(batch, *sides))
        low.graph.steps[x].weights = {"kernel": matrix.T}
        return x

    x = turn(x, "turn", (2, 3, 1), columns, channels, rows)
    x = product(x, "rows", down, columns, channels, height)
    x = turn(x, "swap", (3, 2, 1), height, channels, columns)
    x = product(x, "columns", across, height, channels, width)
    return turn(x, "back", (1, 3, 2), height, width, channels)


def sample_conv(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """SampleConv2D, in files of floats only: int8 kernels are constants."""
    names = ("filters", "kernel_size", "strides", "dilation_rate")
    config = {name: getattr(layer, name) for name in names}
    return low.emit("sample_conv", layer.name, list(args[0]), config, shape=shape)


def blur(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """BlurPool as borders joined to the map and a constant depthwise convolution."""
    x = args[0]
    for axis, part in ((1, "rows"), (2, "columns")):
        x = _mirror(low, f"{layer.name}_{part}", x, axis)
    channels = int(shape[-1])
    config = {
        "kernel_size": (3, 3),
        "strides": (2, 2),
        "padding": "valid",
        "dilation_rate": (1, 1),
        "depth_multiplier": 1,
        "use_bias": False,
        "trainable": False,
    }
    x = low.emit("depthwise", layer.name, [x], config, shape=shape)
    kernel = np.broadcast_to(BINOMIAL[..., None, None], (3, 3, channels, 1))
    low.graph.steps[x].weights = {"kernel": kernel.astype("float32")}
    return x


def _mirror(low: Lowering, name: str, x: str, axis: int) -> str:
    """Repeat the second line in front of the first, and behind an odd number of them.

    Steps of 2 from the line in front do not reach behind an even number.
    """
    whole = low.shape(x)
    side = int(whole[axis] or 0)

    def line(place: int, part: str) -> str:
        begin = [place if i == axis else 0 for i in (1, 2, 3)]
        size = [1 if i == axis else -1 for i in (1, 2, 3)]
        one = tuple(1 if i == axis else n for i, n in enumerate(whole))
        config = {"begin": begin, "size": size}
        return low.emit("slice", f"{name}_{part}", [x], config, shape=one)

    parts = [line(1, "before"), x]
    if side % 2:
        parts.append(line(side - 2, "behind"))
    grown = side + len(parts) - 1
    joined = tuple(grown if i == axis else n for i, n in enumerate(whole))
    return low.emit("concat", name, parts, {"axis": axis}, shape=joined)
