"""Normalisation by the channels around, of the networks before batch normalisation."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_lightnets")
class LocalResponseNormalization(keras.layers.Layer):
    """Divides by a power of the mean square of each channel and those around it.

    y = x / (bias + alpha * mean of squares)^beta, with zeros beyond the first and the
    last channel. No plain layer computes it.

    Args:
        size: Channels in a mean, the own one in the middle.
        alpha: Factor of the mean.
        beta: Exponent.
        bias: Added to the mean.
        **kwargs: As given to any Keras layer.

    Example:
        >>> import numpy as np
        >>> x = np.ones((1, 2, 2, 8), "float32")
        >>> LocalResponseNormalization()(x).shape
        (1, 2, 2, 8)

    Reference:
        Krizhevsky et al. 2012, section 3.3, ImageNet classification with deep
        convolutional neural networks.
    """

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        bias: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.bias = bias

    def call(self, inputs: Any) -> Any:
        """Normalise.

        Args:
            inputs: Tensor of shape (batch, height, width, channels).

        Returns:
            Tensor of the same shape.
        """
        before = self.size // 2
        edges = (before, self.size - 1 - before)
        squares = ops.pad(ops.square(inputs), ((0, 0), (0, 0), (0, 0), edges))
        count = inputs.shape[-1]
        total = squares[..., :count]
        for start in range(1, self.size):
            total = total + squares[..., start : start + count]
        mean = total / self.size
        return inputs * ops.power(self.bias + self.alpha * mean, -self.beta)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the output's shape, which is the input's."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        own = {"size": self.size, "alpha": self.alpha}
        return {**super().get_config(), **own, "beta": self.beta, "bias": self.bias}


def local_response(x: Any, name: str) -> Any:
    """Normalise by the channels around, as AlexNet does: `{name}_response_scale`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        name: Stem of the layer's name.

    Returns:
        Tensor of the same shape.

    Reference:
        Krizhevsky et al. 2012, section 3.3.
    """
    return LocalResponseNormalization(name=f"{name}_response_scale")(x)
