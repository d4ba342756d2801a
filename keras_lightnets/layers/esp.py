"""Efficient spatial pyramid of ESPNet: reduce, dilate in parallel, fuse."""

from typing import Any

from keras import layers

from keras_lightnets._layout import ESP_DILATIONS as DILATIONS
from keras_lightnets.layers.conv import concat, kernel_init, residual
from keras_lightnets.layers.pad import pad_for


def spatial_pyramid(
    x: Any, filters: int, name: str, stride: int = 1, padding: str = "symmetric"
) -> Any:
    """Look at a reduced map at five scales and join what is seen, not normalised.

    Layers: `{name}_reduce_conv`, `{name}_branch{i}_conv`, `{name}_branch{i}_add`,
    `{name}_branch_concat`. The first branch stays as it is; every other one is added
    to those between.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels; the first branch has what five do not divide.
        name: Stem of the layers' names.
        stride: 1 (the reduction is 1x1) or 2 (3x3).
        padding: Of the strided reduction.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), filters);
        of at least five channels.

    Reference:
        Mehta et al. 2018, section 3, https://arxiv.org/abs/1803.06815.
    """
    width = max(1, filters // len(DILATIONS))
    first = max(1, filters - (len(DILATIONS) - 1) * width)
    kernel = 3 if stride > 1 else 1
    part = f"{name}_reduce"
    x, mode = pad_for(x, (kernel, kernel), stride, 1, padding, part)
    x = _conv(x, width, kernel, part, strides=stride, padding=mode)
    made: list[Any] = []
    for i, rate in enumerate(DILATIONS, start=1):
        part = f"{name}_branch{i}"
        y = _conv(x, width if made else first, 3, part, dilation_rate=rate)
        made.append(residual(y, made[-1], part) if i > 2 else y)
    return concat(made, f"{name}_branch")


def _conv(x: Any, filters: int, kernel: int, name: str, **options: Any) -> Any:
    return layers.Conv2D(
        filters,
        kernel,
        use_bias=False,
        kernel_initializer=kernel_init(),
        name=f"{name}_conv",
        **{"padding": "same", **options},
    )(x)
