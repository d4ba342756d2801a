"""Convolutions and resizing of the heads, each one plain layer."""

from dataclasses import dataclass
from typing import Any

from keras import initializers, layers

from keras_lightnets.layers import BatchNormalization, activate, pad_for


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What a head's convolutions share.

    Attributes:
        padding: "same" (TensorFlow: odd pixel at bottom/right) or "symmetric".
        bn_epsilon: Added to the variance.
        bn_momentum: Share of the old moving statistics kept per step.
        act: Activation behind the normalisation.
        init_std: Deviation of the kernels' normal initialisation.
    """

    padding: str = "same"
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.97
    act: str = "relu6"
    init_std: float = 0.03


def conv_bn_act(
    x: Any,
    filters: int,
    numerics: Numerics,
    name: str,
    kernel: int = 1,
    dilation: int = 1,
) -> Any:
    """Apply a convolution of stride 1: `{name}_conv`, `{name}_bn`, `{name}_act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        numerics: Shared settings.
        name: Stem of the layers' names.
        kernel: Kernel side, odd.
        dilation: Dilation in both directions.

    Returns:
        Tensor of shape (batch, height, width, filters).
    """
    x = layers.Conv2D(
        filters,
        kernel,
        padding="same",
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer=_normal(numerics),
        name=f"{name}_conv",
    )(x)
    return _bn_act(x, numerics, name)


def depthwise_bn_act(x: Any, stride: int, numerics: Numerics, name: str) -> Any:
    """Apply a 3x3 depthwise convolution: `{name}_conv`, `{name}_bn`, `{name}_act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        stride: Stride in both directions.
        numerics: Shared settings.
        name: Stem of the layers' names.

    Returns:
        Tensor with the same channels, sides ceil(side / stride).
    """
    x, padding = pad_for(x, (3, 3), stride, 1, numerics.padding, name)
    x = layers.DepthwiseConv2D(
        3,
        strides=stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer=_normal(numerics),
        name=f"{name}_conv",
    )(x)
    return _bn_act(x, numerics, name)


def predict(x: Any, filters: int, bias: float, numerics: Numerics, name: str) -> Any:
    """Apply a 1x1 convolution with bias and nothing behind it: `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        bias: Initial bias.
        numerics: Shared settings.
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, height, width, filters).
    """
    return layers.Conv2D(
        filters,
        1,
        kernel_initializer=_normal(numerics),
        bias_initializer=initializers.Constant(bias),
        name=f"{name}_conv",
    )(x)


def resize_to(x: Any, like: Any, ratio: int, name: str) -> Any:
    """Resize bilinearly to another map's height and width: `{name}_resize`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        like: The tensor whose sides to take.
        ratio: How many times larger they are, where a size is not known before the
            model runs.
        name: Stem of the layer's name.

    Returns:
        Tensor with the channels of `x` and the sides of `like`; `x` itself where
        they are the same. Half-pixel centres, edges repeated.
    """
    before, after = tuple(x.shape[1:3]), tuple(like.shape[1:3])
    name = f"{name}_resize"
    if None in (*before, *after):
        if ratio == 1:
            return x
        return layers.UpSampling2D(ratio, interpolation="bilinear", name=name)(x)
    if before == after:
        return x
    factors = [new // old for old, new in zip(before, after, strict=True)]
    if all(old * k == new for old, new, k in zip(before, after, factors, strict=True)):
        up = layers.UpSampling2D(tuple(factors), interpolation="bilinear", name=name)
        return up(x)
    return layers.Resizing(*after, interpolation="bilinear", name=name)(x)


def _normal(numerics: Numerics) -> Any:
    return initializers.RandomNormal(stddev=numerics.init_std)


def _bn_act(x: Any, numerics: Numerics, name: str) -> Any:
    x = BatchNormalization(
        epsilon=numerics.bn_epsilon, momentum=numerics.bn_momentum, name=f"{name}_bn"
    )(x)
    return activate(x, numerics.act, name)
