"""The body that GhostNet and RepGhostNet share; their modules differ."""

from collections.abc import Callable
from typing import Any

from keras_lightnets._blocks import Block
from keras_lightnets._channels import make_divisible
from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import (
    activate,
    bias_conv,
    conv_bn,
    depthwise_bn,
    residual,
)
from keras_lightnets.layers.squeeze import squeeze_excite
from keras_lightnets.layers.stride import DilatedStride

# (x, filters, spec, name, activation, dilation) -> x
GhostModule = Callable[[Any, int, ModelSpec, str, str, int], Any]


def ghost_stages(
    x: Any,
    blocks: list[Block[Any]],
    spec: Any,
    output_stride: int,
    module: GhostModule,
) -> dict[str, Any]:
    """Build a network of ghost bottlenecks: c1..c5, c4_expand and "features".

    Args:
        x: Images, (batch, height, width, 3).
        blocks: Blocks in order; rows have stage, kernel, expand, se and stride.
        spec: The network; gives width, divisor, stem and top besides.
        output_stride: 32, 16 or 8.
        module: Makes feature maps of a tensor.

    Returns:
        {level: tensor of shape (batch, height / stride, width / stride, channels)}.

    Reference:
        Han et al. 2020, https://arxiv.org/abs/1911.11907, table 7.
    """
    stride = DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=step)
    x = activate(x, "relu", "stem")
    maps: dict[str, Any] = {}
    for block in blocks:
        x, expanded = _bottleneck(x, block, spec, stride, module)
        maps[f"c{block.row.stage}"] = x
        if block.row.stage == 5:
            maps.setdefault("c4_expand", expanded)
    x = conv_bn(x, spec.channels(spec.top), 1, spec, "top")
    return {**maps, "features": activate(x, "relu", "top")}


def ghost_neck(spec: Any, x: Any) -> Any:
    """Widen the pooled features: 1x1 convolution with bias, ReLU.

    Args:
        spec: The network; gives hidden.
        x: Tensor of shape (batch, 1, 1, channels).

    Returns:
        Tensor of shape (batch, 1, 1, hidden).
    """
    return activate(bias_conv(x, spec.hidden, "top_hidden"), "relu", "top_hidden")


def _bottleneck(
    x: Any, block: Block[Any], spec: Any, stride: Any, module: GhostModule
) -> tuple[Any, Any]:
    """Module, strided depthwise convolution, squeeze, linear module.

    Returns the output and the expanded input.
    """
    row, name, out = block.row, block.name, block.out
    shortcut, mid = x, spec.channels(row.expand)
    before = stride.dilation
    step, dilation = stride.step(row.stride)
    x = expanded = module(x, mid, spec, f"{name}_expand", "relu", before)
    if row.stride > 1:
        x = depthwise_bn(x, row.kernel, spec, f"{name}_dw", step, dilation)
    if row.se:
        x = squeeze_excite(x, make_divisible(mid / 4, 4), f"{name}_se")
    x = module(x, out, spec, f"{name}_project", "linear", stride.dilation)
    if row.stride > 1 or block.channels != out:
        part = f"{name}_shortcut"
        shortcut = depthwise_bn(
            shortcut, row.kernel, spec, f"{part}_dw", step, dilation
        )
        shortcut = conv_bn(shortcut, out, 1, spec, part)
    return residual(x, shortcut, name), expanded
