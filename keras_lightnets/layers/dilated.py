"""Depthwise 3x3 convolution with stride and dilation at once, of plain layers.

Keras and TFLite's kernels take one or the other. A dilation of an even number of
cells reads only cells of even place, so that the input can be thinned out first. An
odd one reads cells of both kinds: its kernel is split into four, each of which
reads cells of one kind per axis. Multiply-adds and weights stay what they were.
"""

from typing import Any

from keras import initializers, layers

from keras_lightnets._layout import SPLIT_KERNEL
from keras_lightnets.layers.conv import residual
from keras_lightnets.layers.pool import max_pool


def dilated_depthwise(
    x: Any, dilation: int, name: str, stride: int = 1, rate: int = 1
) -> Any:
    """Convolve each channel with a dilated 3x3 kernel: `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        dilation: Distance of the kernel's cells; 1 or even where strided.
        name: Stem of the layers' names.
        stride: 1 or 2.
        rate: Dilation that replaces an earlier stride; multiplies the distance.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride),
        channels).

    Raises:
        ValueError: If stride 2 meets an odd dilation above 1, which is
            `split_depthwise`'s.
    """
    if stride == 1:
        return _depthwise(x, (3, 3), dilation * rate, name, padding="same")
    if dilation == 1:
        x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        return _depthwise(x, (3, 3), 1, name, stride=stride)
    if dilation % 2:
        raise ValueError(
            "dilated_depthwise strides at dilation 1 or an even one; use "
            f"split_depthwise. Received: dilation={dilation}"
        )
    x = max_pool(x, 1, 2, (0, 0), f"{name}_even")
    return _depthwise(x, (3, 3), dilation // 2, name, padding="same")


def split_depthwise(
    x: Any, dilation: int, name: str, stride: int = 1, rate: int = 1
) -> Any:
    """Convolve each channel with a dilated 3x3 kernel that is split into four.

    Layers: `{name}_corners_conv`, `{name}_column_conv`, `{name}_row_conv`,
    `{name}_centre_conv`, whatever stands before them, and `{name}_sum_add`. They
    hold the kernel's cells as `_layout.SPLIT_KERNEL` says.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        dilation: Distance of the kernel's cells.
        name: Stem of the layers' names.
        stride: 1 or 2.
        rate: Dilation that replaces an earlier stride; multiplies the distance.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride),
        channels).
    """
    far = dilation * rate
    parts = []
    for part, (rows, cols) in SPLIT_KERNEL.items():
        place, y = f"{name}_{part}", x
        kernel = (len(rows), len(cols))
        pads = tuple(far if size == 2 else 0 for size in kernel)
        if any(pads):
            y = layers.ZeroPadding2D(pads, name=f"{place}_pad")(y)
        if stride == 2:
            y = max_pool(y, 1, 2, (0, 0), place)
        # Two cells 2 x far apart; every other of them is left where strided.
        parts.append(_depthwise(y, kernel, 2 * far // stride, place))
    return layers.Add(name=f"{name}_sum_add")(parts)


def fused_pyramid(tensors: list[Any], name: str) -> Any:
    """Join branches, each with those before it added: `{name}{i}_add`, `_concat`.

    Args:
        tensors: Branches of one shape, smallest receptive field first.
        name: Stem of the layers' names.

    Returns:
        Tensor with the sum of the channels.

    Reference:
        Mehta et al. 2018, hierarchical feature fusion,
        https://arxiv.org/abs/1803.06815.
    """
    fused = tensors[:1]
    for i, tensor in enumerate(tensors[1:], start=2):
        fused.append(residual(tensor, fused[-1], f"{name}{i}"))
    return layers.Concatenate(name=f"{name}_concat")(fused)


def _depthwise(
    x: Any,
    kernel: tuple[int, int],
    dilation: int,
    name: str,
    stride: int = 1,
    padding: str = "valid",
) -> Any:
    # He's initialiser by fan-out, of the whole 3x3 kernel where this is a part.
    share = kernel[0] * kernel[1] / 9
    start = initializers.VarianceScaling(2 * share, "fan_out", "untruncated_normal")
    return layers.DepthwiseConv2D(
        kernel,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        depthwise_initializer=start,
        name=f"{name}_conv",
    )(x)
