"""Learned group convolution: 1x1 convolutions that find their groups in training."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lightnets.layers.conv import kernel_init


@keras.saving.register_keras_serializable(package="keras_lightnets")
class LearnedGroupConv2D(keras.layers.Conv2D):
    """A 1x1 convolution whose groups of filters lose most of their inputs.

    Filter o belongs to group o modulo `learned_groups`. At each of `condense - 1`
    stages every group loses 1 / `condense` of the input channels, those of the least
    sum of absolute weights; the mask that does so is a weight that no optimiser
    changes. `tools.condense` then makes a grouped convolution of it.

    Args:
        filters: Output channels; divisible by `learned_groups`.
        learned_groups: Number of groups (the paper's G).
        condense: Condensation factor (the paper's C); divides the input channels.
        lasso: Factor of the group lasso, the sum over groups and inputs of the root
            of the squares' sum, which is added to the loss until the last stage.
        **kwargs: Of `keras.layers.Conv2D`. Kernel, stride, groups, bias and
            activation are fixed.

    Raises:
        ValueError: If the channels do not divide.

    Example:
        >>> import numpy as np
        >>> layer = LearnedGroupConv2D(4, learned_groups=2, condense=2)
        >>> layer(np.ones((1, 3, 3, 6), "float32")).shape
        (1, 3, 3, 4)
        >>> layer.advance(1)
        >>> np.asarray(layer.mask).sum(axis=0).tolist()
        [3.0, 3.0]

    Reference:
        Huang et al. 2018, https://arxiv.org/abs/1711.09224, section 3.1.
    """

    def __init__(
        self,
        filters: int,
        learned_groups: int = 4,
        condense: int = 4,
        lasso: float = 0.0,
        **kwargs: Any,
    ) -> None:
        fixed = {"kernel_size": 1, "use_bias": False}
        super().__init__(filters, **{**kwargs, **fixed})
        if filters % learned_groups:
            raise ValueError(
                "LearnedGroupConv2D needs filters that divide by learned_groups="
                f"{learned_groups}. Received: filters={filters}"
            )
        self.learned_groups = learned_groups
        self.condense = condense
        self.lasso = lasso
        self.mask: Any = None
        self.stage: Any = None

    def build(self, input_shape: Any) -> None:
        """Make kernel, mask (inputs, groups) and the number of stages passed.

        Args:
            input_shape: Shape of the input, channels last.
        """
        super().build(input_shape)
        channels = input_shape[-1]
        if channels % self.condense:
            raise ValueError(
                f"{self.name!r} needs input channels that divide by condense="
                f"{self.condense}. Received: {channels} channels"
            )
        self.mask = self.add_weight(
            shape=(channels, self.learned_groups),
            initializer="ones",
            trainable=False,
            name="mask",
        )
        self.stage = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            name="stage",
        )

    def call(self, inputs: Any) -> Any:
        """Convolve with what the mask leaves of the kernel.

        Args:
            inputs: Tensor of shape (batch, height, width, channels).

        Returns:
            Tensor of shape (batch, height, width, filters).
        """
        if self.lasso:
            open_ = ops.cast(self.stage < self.condense - 1, "float32")
            self.add_loss(self.lasso * open_ * self.group_lasso())
        return super().call(inputs)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolve with the masked kernel."""
        return super().convolution_op(inputs, kernel * self._whole_mask(kernel))

    def _whole_mask(self, kernel: Any) -> Any:
        """Return the mask in the kernel's shape; neighbouring filters alternate."""
        repeats = self.filters // self.learned_groups
        return ops.cast(ops.tile(self.mask, (1, repeats)), kernel.dtype)

    def group_lasso(self) -> Any:
        """Return the group lasso of the masked kernel, a scalar."""
        kernel = self.kernel[0, 0] * self._whole_mask(self.kernel)
        per_group = ops.reshape(kernel, (kernel.shape[0], -1, self.learned_groups))
        squares = ops.sum(ops.square(per_group), axis=1)
        return ops.sum(ops.sqrt(ops.maximum(squares, 1e-6)))

    def advance(self, stage: int) -> None:
        """Drop the inputs that are due up to a stage.

        Args:
            stage: 0 (none) to `condense` - 1 (each group keeps 1 / `condense`);
                stages that were passed do not return.
        """
        mask, groups = np.array(self.mask), self.learned_groups
        kernel = np.abs(np.asarray(self.kernel))[0, 0] * np.tile(
            mask, (1, self.filters // groups)
        )
        sums = kernel.reshape(mask.shape[0], -1, groups).sum(axis=1)
        dropped = min(stage, self.condense - 1) * mask.shape[0] // self.condense
        for group in range(groups):
            # Dropped ones first, even where a kept one's weights are all zero.
            order = np.lexsort((sums[:, group], mask[:, group]))
            mask[order[:dropped], group] = 0.0
        self.mask.assign(mask)
        self.stage.assign(max(min(stage, self.condense - 1), int(self.stage)))

    def save_own_variables(self, store: Any) -> None:
        """Save the mask and stage too, which the parent class does not know of."""
        for name in _VARIABLES:
            store[name] = np.asarray(getattr(self, name))

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` has saved."""
        for name in _VARIABLES:
            getattr(self, name).assign(store[name])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        config = super().get_config()
        own = {name: getattr(self, name) for name in _ARGUMENTS}
        return {k: v for k, v in config.items() if k not in _FIXED} | own


_ARGUMENTS = ("learned_groups", "condense", "lasso")
_VARIABLES = ("kernel", "mask", "stage")
_FIXED = ("kernel_size", "use_bias")


def learned_group_conv(
    x: Any, filters: int, groups: int, condense: int, name: str, lasso: float = 0.0
) -> Any:
    """Convolve 1x1 in groups that are learned: `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        groups: Number of groups.
        condense: Condensation factor.
        name: Stem of the layer's name.
        lasso: Factor of the group lasso.

    Returns:
        Tensor of shape (batch, height, width, filters).

    Reference:
        Huang et al. 2018, https://arxiv.org/abs/1711.09224.
    """
    return LearnedGroupConv2D(
        filters,
        learned_groups=groups,
        condense=condense,
        lasso=lasso,
        kernel_initializer=kernel_init(),
        name=f"{name}_conv",
    )(x)


def condensation_stage(progress: float, condense: int) -> int:
    """Return how many condensation stages are due.

    The stages are spread evenly over the first half of training.

    Args:
        progress: Share of the training steps that are done, 0..1.
        condense: Condensation factor.

    Returns:
        0 to `condense` - 1.

    Example:
        >>> [condensation_stage(p, 4) for p in (0.0, 0.17, 0.34, 0.5, 1.0)]
        [0, 1, 2, 3, 3]
    """
    return min(condense - 1, int(2 * progress * (condense - 1) + 1e-9))


class Condensation(keras.callbacks.Callback):
    """Condenses every learned group convolution of a model while it trains.

    On the JAX backend stages begin with an epoch, on others with any step.

    Example:
        >>> model.fit(images, epochs=120, callbacks=[Condensation()])  # doctest: +SKIP
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Start counting."""
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Condense what is due at an epoch's start."""
        self._epoch = epoch
        self._advance(0)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Condense what is due at a step."""
        if batch and keras.backend.backend() != "jax":
            self._advance(batch)

    def _advance(self, batch: int) -> None:
        params: Any = self.params
        steps = params.get("steps")
        part = batch / steps if steps else 0.0
        progress = (self._epoch + part) / params["epochs"]
        for layer in self.model.layers:
            if isinstance(layer, LearnedGroupConv2D):
                due = condensation_stage(progress, layer.condense)
                if due > int(np.asarray(layer.stage)):
                    layer.advance(due)
