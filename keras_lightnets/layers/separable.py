"""Separable convolutions as two layers, and what stands around them in Xception."""

from typing import Any

from keras import layers

from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import (
    activate,
    conv_bn,
    kernel_init,
    normalise,
    padded_depthwise,
)


def separable_conv(
    x: Any,
    filters: int,
    spec: ModelSpec,
    name: str,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve each channel, then mix them: `{name}_dw_conv`, `{name}_pw_conv|bn`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        spec: Gives padding, epsilon and momentum.
        name: Stem of the layers' names.
        kernel: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        dilation: Its dilation.

    Returns:
        Tensor of shape (batch, height / stride, width / stride, filters).

    Reference:
        Chollet 2016, Xception, https://arxiv.org/abs/1610.02357.
    """
    x = padded_depthwise(x, kernel, spec, f"{name}_dw", stride, dilation)
    return conv_bn(x, filters, 1, spec, f"{name}_pw")


def separable_conv_bn(
    x: Any,
    filters: int,
    spec: ModelSpec,
    name: str,
    act: str = "linear",
    stride: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve each channel, then mix them, normalised and activated both times.

    Layers: `{name}_dw_conv|bn|act`, `{name}_pw_conv|bn|act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        spec: Gives padding, epsilon and momentum.
        name: Stem of the layers' names.
        act: Activation behind either normalisation; "linear" for none.
        stride: Stride of the depthwise convolution.
        dilation: Its dilation.

    Returns:
        Tensor of shape (batch, height / stride, width / stride, filters).

    Reference:
        Chen et al. 2018, DeepLabv3+, section 3.2, https://arxiv.org/abs/1802.02611.
    """
    x = padded_depthwise(x, 3, spec, f"{name}_dw", stride, dilation)
    x = activate(normalise(x, spec, f"{name}_dw"), act, f"{name}_dw")
    return activate(conv_bn(x, filters, 1, spec, f"{name}_pw"), act, f"{name}_pw")


def valid_conv_bn(
    x: Any, filters: int, spec: ModelSpec, name: str, stride: int = 1
) -> Any:
    """Convolve 3x3 without padding and normalise: `{name}_conv`, `{name}_bn`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        spec: Gives epsilon and momentum, and whether there is a bias.
        name: Stem of the layers' names.
        stride: Stride in both directions.

    Returns:
        Tensor with (side - 3) // stride + 1 cells per side.
    """
    x = layers.Conv2D(
        filters,
        3,
        strides=stride,
        use_bias=spec.conv_bias,
        kernel_initializer=kernel_init(),
        name=f"{name}_conv",
    )(x)
    return normalise(x, spec, name)


def centred_max_pool(x: Any, stride: int, padding: str, name: str) -> Any:
    """Take the largest of 3x3 cells, of any sign: `{name}_pool`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        stride: Stride in both directions.
        padding: "same" puts TensorFlow's odd pixel at the bottom and right; with
            "symmetric" every window has its centre on a cell, as in PyTorch. That
            is a pooling of stride 1, then a choice of cells (`{name}_step_pool`):
            padded zeros would win against negative values.
        name: Stem of the layers' names.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), channels).
    """
    if stride == 1 or padding == "same":
        pool = layers.MaxPooling2D(3, stride, padding="same", name=f"{name}_pool")
        return pool(x)
    x = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    return layers.MaxPooling2D(1, stride, name=f"{name}_step_pool")(x)
