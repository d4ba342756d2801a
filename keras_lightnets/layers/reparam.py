"""Blocks of parallel linear branches, which `tools.fuse` makes one convolution."""

from typing import Any

from keras import layers

from keras_lightnets._residual import ResidualSpec
from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import (
    activate,
    conv_bn,
    depthwise_bn,
    kernel_init,
    normalise,
)
from keras_lightnets.layers.conv2d import Conv2D
from keras_lightnets.layers.pool import avg_pool
from keras_lightnets.layers.residual_units import Spatial


def rep_conv(
    x: Any,
    filters: int,
    spec: ModelSpec,
    name: str,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    identity: Any = None,
) -> Any:
    """Add a 3x3 convolution, a 1x1 one and the input, each normalised.

    Layers: `{name}_dense_conv|bn`, `{name}_point_conv|bn`, `{name}_identity_bn`,
    `{name}_add`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        spec: Gives padding, epsilon and momentum.
        name: Stem of the layers' names.
        stride: Stride in both directions.
        groups: Channel groups of both convolutions.
        dilation: Dilation of the 3x3 convolution.
        identity: What is normalised and added too: the input, or those of its
            channels that stand where the outputs do. None for nothing.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), filters).

    Reference:
        Ding et al. 2021, RepVGG, https://arxiv.org/abs/2101.03697.
    """
    branches = [
        conv_bn(x, filters, 3, spec, f"{name}_dense", stride, groups, dilation),
        conv_bn(x, filters, 1, spec, f"{name}_point", stride, groups),
    ]
    if identity is not None:
        branches.append(normalise(identity, spec, f"{name}_identity"))
    return layers.Add(name=f"{name}_add")(branches)


def diverse_branches(
    x: Any,
    filters: int,
    kernel: int,
    spec: ModelSpec,
    name: str,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> Any:
    """Add four ways to convolve (a diverse branch block), each normalised.

    A k x k convolution (`{name}_origin_...`), a 1x1 one (`_point_`), a 1x1 one and
    the mean of k x k cells (`_mean_`), and a 1x1 one and a k x k one (`_series_`).
    Where every channel is convolved on its own, there is no 1x1 branch, the mean is
    taken of the input, and the last branch has twice the channels within.

    The input is padded in front of a branch's first convolution, so that what its
    second one sees at the border is what the first one makes of zeros; the statistics
    of a batch leave these cells out. Both are as in the authors' code.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        kernel: Side of the largest kernel, odd.
        spec: Gives padding, epsilon and momentum.
        name: Stem of the layers' names.
        stride: Stride in both directions.
        groups: Channel groups of all convolutions.
        dilation: Dilation of the k x k kernels and of the mean.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), filters).

    Raises:
        ValueError: If it strides without symmetric padding.

    Reference:
        Ding et al. 2021, Diverse Branch Block, https://arxiv.org/abs/2103.13425.
    """
    if stride > 1 and spec.padding != "symmetric":
        raise ValueError(
            "A strided diverse branch block needs padding='symmetric', as all its "
            f"branches must see the same cells. Received: padding={spec.padding!r}"
        )
    channels, pad = int(x.shape[-1]), (kernel - 1) * dilation // 2
    sizes = (stride, groups, dilation)
    single = groups == channels == filters
    if single:
        part = f"{name}_origin"
        branches = [depthwise_bn(x, kernel, spec, part, stride, dilation)]
    else:
        branches = [
            conv_bn(x, filters, kernel, spec, f"{name}_origin", *sizes),
            conv_bn(x, filters, 1, spec, f"{name}_point", stride, groups),
        ]
    part = f"{name}_mean"
    mean = layers.ZeroPadding2D(pad, name=f"{part}_pad")(x)
    if not single:
        mean = _conv(mean, filters, 1, spec, f"{part}_first", (1, groups, 1))
        mean = normalise(mean, spec, f"{part}_first", pad)
    mean = avg_pool(mean, kernel, stride, (0, 0), part, dilation)
    branches.append(normalise(mean, spec, part))
    part = f"{name}_series"
    padded = layers.ZeroPadding2D(pad, name=f"{part}_pad")(x)
    inner = _first_of_series(padded, spec, f"{part}_first", groups, single, pad)
    last = _conv(inner, filters, kernel, spec, part, sizes)
    branches.append(normalise(last, spec, part))
    return layers.Add(name=f"{name}_add")(branches)


def _first_of_series(
    x: Any, spec: ModelSpec, name: str, groups: int, single: bool, border: int
) -> Any:
    """Convolve 1x1 and normalise; twice the channels where each stands alone.

    Otherwise the kernel is learned as a difference from the identity.
    """
    channels, sizes = int(x.shape[-1]), (1, groups, 1)
    if single:
        inner = _conv(x, 2 * channels, 1, spec, name, sizes)
        return normalise(inner, spec, name, border)
    inner = _conv(x, channels, 1, spec, name, sizes, "zeros")
    inner = layers.Add(name=f"{name}_add")([x, inner])
    return normalise(inner, spec, name, border)


def _conv(
    x: Any,
    filters: int,
    kernel: int,
    spec: ModelSpec,
    name: str,
    sizes: tuple[int, int, int],
    start: Any = None,
) -> Any:
    """Convolve what is padded already: `{name}_conv`."""
    stride, groups, dilation = sizes
    kind = layers.Conv2D if groups == 1 else Conv2D
    return kind(
        filters,
        kernel,
        strides=stride,
        dilation_rate=dilation,
        groups=groups,
        use_bias=spec.conv_bias,
        kernel_initializer=start or kernel_init(),
        name=f"{name}_conv",
    )(x)


def diverse_spatial(x: Any, spec: ResidualSpec, conv: Spatial) -> Any:
    """Convolve a residual unit's 3x3 by diverse branches, activate.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        spec: Gives padding, epsilon and momentum.
        conv: Sizes and names.

    Returns:
        Tensor of shape (batch, height / stride, width / stride, filters).
    """
    sizes = (conv.stride, conv.groups, conv.dilation)
    x = diverse_branches(x, conv.filters, 3, spec, conv.name, *sizes)
    return activate(x, conv.act, f"{conv.name}_add")
