"""A sum of feature maps with learned shares."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_lightnets")
class WeightedFusion(keras.layers.Layer):
    """Adds tensors of one shape, each with a learned share.

    "Fast normalised fusion": share i is relu(w_i) / (sum of relu(w) + epsilon), so the
    shares stay within 0 to 1 without a softmax. Keras has no layer with a trainable
    scalar per input.

    Args:
        epsilon: Keeps the division away from zero.
        **kwargs: Name and dtype, as for every layer.

    Example:
        >>> import numpy as np
        >>> one, three = np.full((1, 1), 1.0), np.full((1, 1), 3.0)
        >>> round(float(WeightedFusion()([one, three])[0, 0]), 3)
        2.0

    Reference:
        Tan et al. 2020, section 3.3, https://arxiv.org/abs/1911.09070.
    """

    def __init__(self, epsilon: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.edge_weights: Any = None

    def build(self, input_shape: Any) -> None:
        """Make one weight per input, all 1.

        Args:
            input_shape: Shapes of the inputs.

        Raises:
            ValueError: If there are fewer than two inputs.
        """
        if len(input_shape) < 2 or not isinstance(input_shape[0], Sequence):
            raise ValueError(
                f"{self.name!r} adds at least two tensors: pass them as a list. "
                f"Received an input of shape {input_shape}"
            )
        self.edge_weights = self.add_weight(
            shape=(len(input_shape),), initializer="ones", name="edge_weights"
        )

    def shares(self) -> Any:
        """Return the factor of each input, float32, shape (inputs,)."""
        weights = ops.relu(ops.cast(self.edge_weights, "float32"))
        return weights / (ops.sum(weights) + self.epsilon)

    def call(self, inputs: Any) -> Any:
        """Add.

        Args:
            inputs: List of tensors of one shape.

        Returns:
            Tensor of their shape and dtype.
        """
        shares = ops.cast(self.shares(), self.compute_dtype)
        total = inputs[0] * shares[0]
        for i, x in enumerate(inputs[1:], 1):
            total = total + x * shares[i]
        return total

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the first input."""
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}
