"""Channels taken by index."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_lightnets")
class SelectChannels(keras.layers.Layer):
    """Takes channels by index: output channel i is input channel index[i].

    Keras has no layer that reorders channels freely. Indices are either fixed, a
    part of the layer's config, or learned elsewhere and loaded from files: a weight
    "index" that no optimiser changes.

    Args:
        indices: Fixed indices.
        count: Number of output channels whose indices are a weight. It starts with
            channels that are evenly spread; all of them, in order, where `count` is
            the input's channels.
        **kwargs: Name and dtype, as for every layer.

    Raises:
        ValueError: If not exactly one of `indices` and `count` is given, or an index
            is not below the number of channels.

    Example:
        >>> import numpy as np
        >>> layer = SelectChannels(indices=(2, 0, 0))
        >>> np.asarray(layer(np.array([[[[5.0, 6.0, 7.0]]]], "float32"))).tolist()
        [[[[7.0, 5.0, 5.0]]]]

    Reference:
        Huang et al. 2018, https://arxiv.org/abs/1711.09224, section 3.1.
    """

    def __init__(
        self,
        indices: Sequence[int] | None = None,
        count: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (indices is None) is (count is None):
            raise ValueError(
                "SelectChannels needs either indices (fixed) or count (indices are a "
                f"weight). Received: indices={indices!r}, count={count!r}"
            )
        self.indices = None if indices is None else [int(i) for i in indices]
        self.count = count
        self.index: Any = None

    def build(self, input_shape: Any) -> None:
        """Make the weight, or check the fixed indices.

        Args:
            input_shape: Shape of the input, channels last.
        """
        channels = input_shape[-1]
        if self.count is not None:
            start = np.arange(self.count) * channels // self.count
            self.index = self.add_weight(
                shape=(self.count,),
                initializer=lambda shape, dtype=None: ops.cast(start, "int32"),
                dtype="int32",
                trainable=False,
                name="index",
            )
        elif self.indices and not all(0 <= i < channels for i in self.indices):
            raise ValueError(
                f"The indices of {self.name!r} must be of 0 to {channels - 1}, as its "
                f"input has {channels} channels. Received: {min(self.indices)} to "
                f"{max(self.indices)}"
            )

    def call(self, inputs: Any) -> Any:
        """Take the channels.

        Args:
            inputs: Tensor of shape (batch, ..., channels).

        Returns:
            Tensor of shape (batch, ..., number of indices), of the same dtype.
        """
        index = np.asarray(self.indices) if self.index is None else self.index
        return ops.take(inputs, index, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape with the number of indices as channels."""
        count = self.count if self.indices is None else len(self.indices)
        return (*input_shape[:-1], count)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        own = {"indices": self.indices, "count": self.count}
        return {**super().get_config(), **own}
