"""Resizing with aligned corners and area means, which no plain Keras layer does."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lightnets._errors import unknown

METHODS = ("aligned", "area")


@keras.saving.register_keras_serializable(package="keras_lightnets")
class Resample2D(keras.layers.Layer):
    """Resize a map of any size to a fixed one by two matrix products.

    Args:
        height: Rows of the result.
        width: Columns of the result.
        method: "aligned": bilinear, the corners' centres stay where they are; "area":
            the mean of the cells that each new cell touches.
        **options: Options of every layer, such as its name.

    Raises:
        ValueError: If the method is unknown or a side is not positive.

    Example:
        >>> x = keras.ops.reshape(keras.ops.arange(4.0), (1, 2, 2, 1))
        >>> y = Resample2D(3, 3, "aligned")(x)
        >>> [round(float(v), 2) for v in y[0, :, 0, 0]]
        [0.0, 1.0, 2.0]
    """

    def __init__(self, height: int, width: int, method: str, **options: Any) -> None:
        super().__init__(**options)
        if method not in METHODS:
            raise unknown("method of Resample2D", method, METHODS)
        if min(height, width) < 1:
            raise ValueError(
                f"Resample2D needs positive sides. Received: {height} x {width}"
            )
        self.height = height
        self.width = width
        self.method = method

    def matrices(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights for maps of rows x columns.

        Args:
            rows: Rows of a map.
            columns: Columns of a map.

        Returns:
            (height, rows) and (width, columns), float32; each row's sum is 1.
        """
        make = _aligned if self.method == "aligned" else _area
        return make(self.height, rows), make(self.width, columns)

    def call(self, inputs: Any) -> Any:
        """Return (batch, height, width, channels)."""
        rows, columns, channels = inputs.shape[1:]
        down, across = (
            ops.cast(matrix, inputs.dtype) for matrix in self.matrices(rows, columns)
        )
        x = ops.reshape(inputs, (-1, rows, columns * channels))
        x = ops.matmul(down, x)
        x = ops.reshape(x, (-1, columns, channels))
        x = ops.matmul(across, x)
        return ops.reshape(x, (-1, self.height, self.width, channels))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the shape of the result."""
        return (input_shape[0], self.height, self.width, input_shape[3])

    def get_config(self) -> dict[str, Any]:
        """Return what builds the layer again."""
        sides = {"height": self.height, "width": self.width}
        return {**super().get_config(), **sides, "method": self.method}


def resample(x: Any, sides: tuple[int, int], method: str, name: str) -> Any:
    """Resize a map: `{name}_resize`, a plain layer where one does the same.

    Args:
        x: Tensor of shape (batch, height, width, channels) of known sides.
        sides: (height, width) of the result.
        method: One of METHODS.
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, *sides, channels); `x` itself where it has them.

    Raises:
        ValueError: If height or width of `x` are not known.
    """
    before = tuple(x.shape[1:3])
    if None in before:
        raise ValueError(
            "This head resizes maps of known size: build the backbone with a fixed "
            f"input_shape. Received a map of shape {tuple(x.shape)}"
        )
    if before == tuple(sides):
        return x
    whole = [old % new == 0 for old, new in zip(before, sides, strict=True)]
    if method == "area" and all(whole):
        window = [old // new for old, new in zip(before, sides, strict=True)]
        return keras.layers.AveragePooling2D(window, name=f"{name}_resize")(x)
    return Resample2D(*sides, method, name=f"{name}_resize")(x)


def _aligned(out: int, size: int) -> np.ndarray:
    """Return (out, size) weights of the nearest two cells."""
    place = np.linspace(0, size - 1, out) if out > 1 else np.zeros(1)
    distance = np.abs(place[:, None] - np.arange(size))
    return np.maximum(1 - distance, 0).astype("float32")


def _area(out: int, size: int) -> np.ndarray:
    """Return (out, size) weights: from floor(i s / o) to ceil((i + 1) s / o)."""
    first = np.arange(out) * size // out
    last = -(-(np.arange(out) + 1) * size // out)
    cells = np.arange(size)
    hit = (cells >= first[:, None]) & (cells < last[:, None])
    return (hit / hit.sum(1, keepdims=True)).astype("float32")
