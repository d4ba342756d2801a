"""Predictors that all levels share, each level with normalisations of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import initializers, layers

from keras_lightnets.heads._conv import Numerics
from keras_lightnets.heads.bifpn import normalise
from keras_lightnets.layers import activate


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Convolutions in front of predictions.

    Attributes:
        channels: Of every convolution.
        repeats: Number of them.
        conv_bias: Whether they have a bias, which is redundant in front of a
            normalisation.
        numerics: Activation and normalisation.
    """

    channels: int
    repeats: int
    conv_bias: bool = False
    numerics: Numerics


def separable(
    name: str, filters: int, bias: bool, start: float = 0.0
) -> Callable[[Any], Any]:
    """Make a separable convolution that can be applied to several maps.

    Args:
        name: Stem of the layers' names: `{name}_dw_conv`, `{name}_conv`.
        filters: Output channels.
        bias: Whether the 1x1 convolution has a bias.
        start: Its initial value.

    Returns:
        Function of a tensor.
    """
    depthwise = layers.DepthwiseConv2D(
        3,
        padding="same",
        use_bias=False,
        depthwise_initializer=initializers.VarianceScaling(),
        name=f"{name}_dw_conv",
    )
    pointwise = layers.Conv2D(
        filters,
        1,
        use_bias=bias,
        kernel_initializer=initializers.VarianceScaling(),
        bias_initializer=initializers.Constant(start),
        name=f"{name}_conv",
    )
    return lambda x: pointwise(depthwise(x))


def build(name: str, tower: Tower) -> Callable[[Any, int], Any]:
    """Make the convolutions in front of predictions.

    Args:
        name: Stem of the layers' names: `{name}_repeat{r}_dw_conv|conv`, shared, and
            `{name}_level{k}_repeat{r}_bn|act` of each level.
        tower: The convolutions.

    Returns:
        Function of a map and the number of its level.
    """
    repeats = [
        separable(f"{name}_repeat{r}", tower.channels, tower.conv_bias)
        for r in range(1, tower.repeats + 1)
    ]

    def apply(x: Any, level: int) -> Any:
        for r, conv in enumerate(repeats, 1):
            stem = f"{name}_level{level}_repeat{r}"
            x = normalise(conv(x), tower.numerics, stem)
            x = activate(x, tower.numerics.act, stem)
        return x

    return apply
