"""Anti-aliased pooling."""

from typing import Any

import keras
import numpy as np
from keras import ops

# The second row of Pascal's triangle, in both directions.
_BINOMIAL = np.outer((1.0, 2.0, 1.0), (1.0, 2.0, 1.0)) / 16.0


@keras.saving.register_keras_serializable(package="keras_lightnets")
class BlurPool(keras.layers.Layer):
    """Blurs by the 3x3 binomial filter and takes every second cell.

    The border is mirrored without its outermost cells, which no plain layer does.

    Example:
        >>> import numpy as np
        >>> x = np.arange(4.0).reshape(1, 2, 2, 1).astype("float32")
        >>> BlurPool()(x).shape
        (1, 1, 1, 1)

    Reference:
        Zhang 2019, https://arxiv.org/abs/1904.11486.
    """

    def call(self, inputs: Any) -> Any:
        """Blur and subsample.

        Args:
            inputs: Tensor of shape (batch, height, width, channels), sides of at
                least 2.

        Returns:
            Tensor of shape (batch, ceil(height / 2), ceil(width / 2), channels).
        """
        channels = inputs.shape[-1]
        x = ops.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        kernel = np.broadcast_to(_BINOMIAL[..., None, None], (3, 3, channels, 1))
        kernel = ops.convert_to_tensor(kernel.copy(), dtype=x.dtype)
        return ops.depthwise_conv(x, kernel, strides=2, padding="valid")

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return the output's shape."""
        batch, *sides, channels = input_shape
        halves = [None if side is None else -(-side // 2) for side in sides]
        return (batch, *halves, channels)


def blur_pool(x: Any, name: str) -> Any:
    """Take the largest of 3x3 cells, blur, halve: `{name}_pool`, `{name}_blur_pool`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        name: Stem of the layers' names.

    Returns:
        Tensor of shape (batch, ceil(height / 2), ceil(width / 2), channels).

    Reference:
        Zhang 2019, https://arxiv.org/abs/1904.11486.
    """
    x = keras.layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    return BlurPool(name=f"{name}_blur_pool")(x)
