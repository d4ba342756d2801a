"""Convolutions of the heads, each one plain layer."""

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


def conv_bn_act(x: Any, filters: int, numerics: Numerics, name: str) -> Any:
    """Apply a 1x1 convolution: `{name}_conv`, `{name}_bn`, `{name}_act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        numerics: Shared settings.
        name: Stem of the layers' names.

    Returns:
        Tensor of shape (batch, height, width, filters).
    """
    x = layers.Conv2D(
        filters,
        1,
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


def _normal(numerics: Numerics) -> Any:
    return initializers.RandomNormal(stddev=numerics.init_std)


def _bn_act(x: Any, numerics: Numerics, name: str) -> Any:
    x = BatchNormalization(
        epsilon=numerics.bn_epsilon, momentum=numerics.bn_momentum, name=f"{name}_bn"
    )(x)
    return activate(x, numerics.act, name)
