"""Grouped convolution that TensorFlow's own kernels compute."""

import functools
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_lightnets")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose groups are convolved by TensorFlow's kernels.

    Same arguments, config, weights and results as the parent. On the TensorFlow
    backend Keras 3 compiles every grouped convolution with XLA, on a CPU afresh in
    each eager call; a training step of one takes 10 to 250 times as long as the
    kernel that TensorFlow has for it. Without groups, and on every other backend,
    this layer is the parent.

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
        plain = (
            self.groups == 1
            or keras.backend.backend() != "tensorflow"
            or self.data_format != "channels_last"
        )
        if plain:
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        convolve = functools.partial(
            tf.nn.conv2d,
            strides=self.strides,
            padding=self.padding.upper(),
            dilations=self.dilation_rate,
        )
        inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
        if _differentiable(inputs.dtype):
            return convolve(inputs, kernel)
        parts = zip(
            tf.split(inputs, self.groups, axis=-1),
            tf.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        return tf.concat([convolve(x, part) for x, part in parts], axis=-1)


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
