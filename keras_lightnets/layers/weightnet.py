"""WeightNet: convolutions whose kernels are computed from each image."""

import dataclasses
from typing import Any

import keras
from keras import initializers, layers, ops

from keras_lightnets.layers.conv import activate, bias_conv
from keras_lightnets.layers.conv2d import Conv2D


@keras.saving.register_keras_serializable(package="keras_lightnets")
class SampleConv2D(keras.layers.Layer):
    """Convolves each sample of a batch with a kernel of its own.

    Takes [samples, kernels]; no Keras layer has a kernel per sample. Pads
    kernel_size // 2 on every side, as PyTorch code does. Has no weights.

    Args:
        filters: Output channels; None convolves each channel on its own.
        kernel_size: Side of the kernel, odd.
        strides: Stride in both directions.
        dilation_rate: Dilation in both directions.
        **kwargs: Name and dtype, as for every layer.

    Example:
        >>> import numpy as np
        >>> samples = np.ones((2, 3, 3, 4), "float32")
        >>> kernels = np.ones((2, 1, 1, 5 * 4), "float32")
        >>> SampleConv2D(5)([samples, kernels]).shape
        (2, 3, 3, 5)

    Reference:
        Ma et al. 2020, https://arxiv.org/abs/2007.11823, section 3.2.
    """

    use_bias = False

    def __init__(
        self,
        filters: int | None,
        kernel_size: int = 1,
        strides: int = 1,
        dilation_rate: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation_rate = dilation_rate

    def build(self, input_shape: Any) -> None:
        """Check that the kernels have as many values as the convolution needs.

        Args:
            input_shape: Shapes of samples and kernels.
        """
        channels, found = input_shape[0][-1], input_shape[1][-1]
        if found != self._values(channels):
            raise ValueError(
                f"{self.name!r} needs kernels of {self._values(channels)} values per "
                f"sample for {channels} channels. Received: {found}"
            )

    def _values(self, channels: int) -> int:
        return channels * (self.filters or 1) * self.kernel_size**2

    def call(self, inputs: Any) -> Any:
        """Convolve.

        Args:
            inputs: Samples of shape (batch, height, width, channels), and kernels of
                shape (batch, 1, 1, filters * channels * kernel_size ** 2), the first
                of these factors changing slowest.

        Returns:
            Tensor of shape (batch, new height, new width, filters).
        """
        x, kernels = inputs
        channels, side = x.shape[-1], self.kernel_size
        pad = side // 2 * self.dilation_rate
        x = ops.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        shape = (self.filters, channels, side**2)
        kernels = ops.reshape(
            kernels, (-1, *(shape[1:] if not self.filters else shape))
        )
        total = None
        for tap in range(side**2):
            part = x[:, self._reach(tap // side), self._reach(tap % side)]
            kernel = kernels[..., tap]
            if self.filters:
                part = ops.einsum("bhwc,bfc->bhwf", part, kernel)
            else:
                part = part * kernel[:, None, None]
            total = part if total is None else total + part
        return total

    def _reach(self, tap: int) -> slice:
        """Return which rows (or columns) a tap of the kernel reads."""
        start = tap * self.dilation_rate
        end = start - (self.kernel_size - 1) * self.dilation_rate
        return slice(start, end or None, self.strides)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the convolved samples."""
        (count, height, width, channels), _ = input_shape
        sides = (
            None if side is None else -(-side // self.strides)
            for side in (height, width)
        )
        return (count, *sides, self.filters or channels)

    def madds(self, shape: tuple[int, ...], channels: int) -> int:
        """Return the multiply-adds of one sample.

        Args:
            shape: Output shape without the batch.
            channels: Input channels.
        """
        return shape[0] * shape[1] * self._values(channels)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        names = ("filters", "kernel_size", "strides", "dilation_rate")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **own}


@dataclasses.dataclass(frozen=True)
class Generated:
    """A convolution whose kernel WeightNet makes.

    Attributes:
        filters: Output channels; None for a depthwise convolution.
        kernel: Side of the kernel.
        units: Sigmoid units per output channel (the paper's M).
        groups: Groups per output channel of the layer behind them (G); divides M.
    """

    filters: int | None
    kernel: int = 1
    units: int = 2
    groups: int = 2


def weightnet_conv(
    x: Any,
    summary: Any,
    conv: Generated,
    name: str,
    stride: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve each image with a kernel that is made of its summary.

    Layers: `{name}_units_conv|act`, `{name}_kernel_conv` (grouped, the kernel's
    values), `{name}_conv` (with that kernel).

    Args:
        x: Tensor of shape (batch, height, width, channels).
        summary: Tensor of shape (batch, 1, 1, any), such as the reduced means.
        conv: The convolution.
        name: Stem of the layers' names.
        stride: Stride in both directions.
        dilation: Dilation in both directions.

    Returns:
        Tensor of shape (batch, height / stride, width / stride, filters).

    Raises:
        ValueError: If the units do not divide by the groups.

    Reference:
        Ma et al. 2020, https://arxiv.org/abs/2007.11823, section 3.2.
    """
    if conv.units % conv.groups:
        raise ValueError(
            "WeightNet needs units that divide by groups. Received: units="
            f"{conv.units}, groups={conv.groups}"
        )
    channels = x.shape[-1]
    taps = conv.kernel**2
    if conv.filters is None:
        units, groups = conv.units // conv.groups * channels, channels
        values = channels * taps
    else:
        units, groups = conv.units * conv.filters, conv.groups * conv.filters
        values = conv.filters * channels * taps
    y = activate(bias_conv(summary, units, f"{name}_units"), "sigmoid", f"{name}_units")
    make = Conv2D if groups > 1 else layers.Conv2D
    kernels = make(
        values,
        1,
        groups=groups,
        use_bias=False,
        kernel_initializer=initializers.RandomNormal(stddev=groups / values),
        name=f"{name}_kernel_conv",
    )(y)
    return SampleConv2D(
        conv.filters, conv.kernel, stride, dilation, name=f"{name}_conv"
    )([x, kernels])
