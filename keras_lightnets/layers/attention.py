"""Attention over channels and over branches, for any builder."""

import math
from typing import Any

from keras import layers

from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import (
    activate,
    bias_conv,
    conv_bn,
    global_pool,
    kernel_init,
)


def eca_kernel(channels: int) -> int:
    """Return the kernel of efficient channel attention for a number of channels.

    Args:
        channels: Channels that are weighed.

    Returns:
        An odd side, at least 3.

    Example:
        >>> [eca_kernel(c) for c in (64, 256, 512, 2048)]
        [3, 5, 5, 7]

    Reference:
        Wang et al. 2020, equation 12, https://arxiv.org/abs/1910.03151.
    """
    side = int(abs(math.log2(channels) + 1) / 2)
    return max(side + 1 - side % 2, 3)


def efficient_attention(x: Any, name: str, kernel: int = 0) -> Any:
    """Scale channels by a gate computed from neighbouring channels' means.

    Layers: `{name}_pool`, `{name}_swap`, `{name}_conv|act`, `{name}_gate_swap`,
    `{name}_scale`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        name: Stem of the layers' names.
        kernel: Channels that a gate depends on, odd; 0 for `eca_kernel`.

    Returns:
        Tensor of the same shape.

    Reference:
        Wang et al. 2020, https://arxiv.org/abs/1910.03151.
    """
    channels = x.shape[-1]
    y = global_pool(x, name)
    y = layers.Reshape((channels, 1, 1), name=f"{name}_swap")(y)
    y = layers.Conv2D(
        1,
        (kernel or eca_kernel(channels), 1),
        padding="same",
        use_bias=False,
        kernel_initializer=kernel_init(),
        name=f"{name}_conv",
    )(y)
    y = activate(y, "sigmoid", name)
    y = layers.Reshape((1, 1, channels), name=f"{name}_gate_swap")(y)
    return layers.Multiply(name=f"{name}_scale")([x, y])


def selective_kernel(
    branches: list[Any], reduced: int, spec: ModelSpec, name: str
) -> Any:
    """Weigh branches per channel, by weights that sum to one, and add them.

    Layers: `{name}_fuse_add`, `{name}_squeeze_pool|conv|bn|act`,
    `{name}_select_conv`, `{name}_select_split|act`, `{name}_path{i}_split|swap|scale`,
    `{name}_add`.

    Args:
        branches: Tensors of shape (batch, height, width, channels), at least two.
        reduced: Channels between the two 1x1 convolutions.
        spec: Gives epsilon and momentum.
        name: Stem of the layers' names.

    Returns:
        Tensor of the same shape.

    Reference:
        Li et al. 2019, https://arxiv.org/abs/1903.06586.
    """
    count, channels = len(branches), branches[0].shape[-1]
    y = layers.Add(name=f"{name}_fuse_add")(branches)
    y = global_pool(y, f"{name}_squeeze")
    y = conv_bn(y, reduced, 1, spec, f"{name}_squeeze")
    y = activate(y, "relu", f"{name}_squeeze")
    y = bias_conv(y, count * channels, f"{name}_select", use_bias=False)
    y = layers.Reshape((count, channels), name=f"{name}_select_split")(y)
    y = layers.Softmax(axis=1, name=f"{name}_select_act")(y)
    scaled = []
    for i, branch in enumerate(branches):
        part = f"{name}_path{i + 1}"
        gate = layers.Cropping1D((i, count - 1 - i), name=f"{part}_split")(y)
        gate = layers.Reshape((1, 1, channels), name=f"{part}_swap")(gate)
        scaled.append(layers.Multiply(name=f"{part}_scale")([branch, gate]))
    return layers.Add(name=f"{name}_add")(scaled)
