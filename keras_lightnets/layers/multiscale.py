"""Hierarchy of scales in place of one 3x3 convolution."""

from typing import Any

from keras import layers

from keras_lightnets._residual import ResidualSpec, resized
from keras_lightnets.layers.channels import channel_slice
from keras_lightnets.layers.conv import activate, concat, conv_bn
from keras_lightnets.layers.pool import avg_pool
from keras_lightnets.layers.residual_units import Spatial


def multi_scale(x: Any, spec: ResidualSpec, conv: Spatial) -> Any:
    """Convolve pieces of the channels one after the other, each with the last sum.

    A `convolve` of `residual_network`, for specs whose `reduce_ratio` is the number
    of pieces. In a unit that changes shape nothing is summed, and the last piece,
    which is not convolved, is averaged.

    Layers: `{name}_scale{i}_split`, `{name}_scale{i}_add`,
    `{name}_scale{i}_conv|bn|act`, `{name}_concat`.

    Args:
        x: Tensor of shape (batch, height, width, pieces * conv.filters).
        spec: Gives padding, epsilon and momentum.
        conv: Sizes of one piece's convolution, and names.

    Returns:
        Tensor of shape (batch, height / stride, width / stride, pieces * filters).

    Raises:
        ValueError: If the channels are not at least two whole pieces.

    Reference:
        Gao et al. 2019, https://arxiv.org/abs/1904.01169.
    """
    count, rest = divmod(x.shape[-1], conv.filters)
    if rest or count < 2:
        raise ValueError(
            "multi_scale needs two or more pieces of the convolution's channels; set "
            "reduce_ratio to their number. Received: "
            f"{x.shape[-1]} channels and filters={conv.filters}"
        )
    alone = resized(conv.block)
    outputs: list[Any] = []
    sizes = (conv.stride, conv.groups, conv.dilation)
    for i in range(count - 1):
        part = f"{conv.name}_scale{i + 1}"
        y = channel_slice(x, i * conv.filters, (i + 1) * conv.filters, part)
        if outputs and not alone:
            y = layers.Add(name=f"{part}_add")([outputs[-1], y])
        y = conv_bn(y, conv.filters, 3, spec, part, *sizes)
        outputs.append(activate(y, conv.act, part))
    part = f"{conv.name}_scale{count}"
    last = channel_slice(x, (count - 1) * conv.filters, x.shape[-1], part)
    if alone:
        rate = conv.dilation if conv.stride == 1 else 1
        last = avg_pool(last, 3, conv.stride, (1, 1), part, rate)
    return concat([*outputs, last], conv.name)
