"""Convolutions for which TensorFlow has faster kernels than Keras takes."""

import functools
from collections.abc import Sequence
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_lightnets")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` by faster kernels, for groups and for pooled maps.

    Same arguments, config, weights and results as the parent, on the TensorFlow
    backend another kernel in two cases:

    - Groups. Keras 3 compiles every grouped convolution with XLA, on a CPU afresh in
      each eager call; a training step of one takes 10 to 250 times as long as the
      kernel that TensorFlow has for it.
    - 1x1 convolutions of maps that are known to be 1x1, as in squeeze-and-excite:
      they are matrix products, which take a quarter to a half of the time.

    Example:
        >>> import numpy as np
        >>> layer = Conv2D(8, 3, padding="same", groups=4, use_bias=False)
        >>> layer(np.zeros((2, 5, 5, 16), "float32")).shape
        (2, 5, 5, 8)

    Reference:
        Krizhevsky et al. 2012, section 3.5 (groups).
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolve.

        Args:
            inputs: Tensor of shape (batch, height, width, channels).
            kernel: Tensor of shape (height, width, channels / groups, filters).

        Returns:
            Tensor of shape (batch, new height, new width, filters).
        """
        matrix = (
            self.groups == 1
            and self.kernel_size == self.strides == (1, 1)
            and tuple(inputs.shape[1:3]) == (1, 1)
        )
        if (
            keras.backend.backend() != "tensorflow"
            or self.data_format != "channels_last"
            or not (matrix or self.groups > 1)
        ):
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        if matrix:
            channels = inputs.shape[-1]
            flat = tf.reshape(inputs, (-1, channels))
            product = tf.matmul(flat, tf.reshape(kernel, (channels, self.filters)))
            return tf.reshape(product, (-1, 1, 1, self.filters))
        return convolve_groups(
            inputs, kernel, self.groups, self.strides, self.padding, self.dilation_rate
        )


def convolve_groups(
    inputs: Any,
    kernel: Any,
    groups: int,
    strides: Sequence[int],
    padding: str,
    dilations: Sequence[int],
) -> Any:
    """Convolve with kernels that TensorFlow can train here.

    Without oneDNN, as on processors without AVX-512, it has no gradient of a grouped
    kernel, nor of a dilated one: groups are convolved one by one then, and dilated
    kernels as plain ones on cells taken apart.

    Args:
        inputs: Tensor of shape (batch, height, width, channels).
        kernel: Tensor of shape (height, width, channels / groups, filters).
        groups: Number of groups.
        strides: Of rows and columns.
        padding: "same" or "valid".
        dilations: Of rows and columns.

    Returns:
        Tensor of shape (batch, new height, new width, filters).
    """
    import tensorflow as tf

    inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
    options = {"strides": list(strides), "padding": padding.upper()}
    options["dilations"] = list(dilations)
    plain = groups == 1 and tuple(dilations) == (1, 1)
    if plain or _differentiable(inputs.dtype):
        return tf.nn.conv2d(inputs, kernel, **options)
    if groups == 1:
        return tf.nn.convolution(inputs, kernel, **options)
    parts = zip(
        tf.split(inputs, groups, axis=-1),
        tf.split(kernel, groups, axis=-1),
        strict=True,
    )
    made = [tf.nn.convolution(x, part, **options) for x, part in parts]
    return tf.concat(made, axis=-1)


@functools.cache
def _differentiable(dtype: Any) -> bool:
    """Return whether TensorFlow has the gradient of a grouped convolution here.

    On a CPU that depends on the type and on oneDNN, which no public function tells.
    """
    import tensorflow as tf

    gradient = tf.raw_ops.Conv2DBackpropInput
    with tf.init_scope():
        kernel, output = tf.ones((1, 1, 2, 4), dtype), tf.ones((1, 3, 3, 4), dtype)
        try:
            gradient(
                input_sizes=(1, 3, 3, 4),
                filter=kernel,
                out_backprop=output,
                strides=(1, 1, 1, 1),
                padding="VALID",
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True
