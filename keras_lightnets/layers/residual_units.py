"""Residual networks: stem, units and stages, with places for other convolutions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._blocks import Block, StageRow
from keras_lightnets._residual import ResidualSpec, resized
from keras_lightnets.layers.channels import channel_pad
from keras_lightnets.layers.conv import activate, conv_bn, residual
from keras_lightnets.layers.pool import max_pool
from keras_lightnets.layers.stride import DilatedStride


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """A 3x3 convolution of a residual unit, with normalisation and activation.

    Attributes:
        filters: Output channels.
        stride: Stride.
        dilation: Dilation.
        groups: Channel groups.
        act: Activation; "linear" where the sum with the shortcut follows.
        name: Stem of the layers' names.
        block: The unit.
    """

    filters: int
    stride: int
    dilation: int
    groups: int
    act: str
    name: str
    block: Block[StageRow]


# Both take the tensor and the family's own spec first.
Convolve = Callable[[Any, Any, Spatial], Any]
Attend = Callable[[Any, Any, Block[StageRow]], Any]


def plain_spatial(x: Any, spec: ResidualSpec, conv: Spatial) -> Any:
    """Convolve 3x3, normalise, activate: `{name}_conv|bn|act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        spec: Gives padding, epsilon and momentum.
        conv: Sizes and names.

    Returns:
        Tensor of shape (batch, height / stride, width / stride, filters).
    """
    sizes = (conv.stride, conv.groups, conv.dilation)
    x = conv_bn(x, conv.filters, 3, spec, conv.name, *sizes)
    return activate(x, conv.act, conv.name)


def residual_network(
    x: Any,
    spec: ResidualSpec,
    output_stride: int,
    convolve: Convolve = plain_spatial,
    attend: Attend | None = None,
) -> dict[str, Any]:
    """Build a residual network up to its last map.

    Args:
        x: Normalised images, (batch, height, width, 3).
        spec: The network.
        output_stride: Largest stride; further ones become dilation.
        convolve: Makes the 3x3 convolutions of the units.
        attend: Weighs a unit's result before the shortcut is added.

    Returns:
        The maps of the stem (where strided) and of every stage, by name, and
        "features", the last of them.

    Reference:
        He et al. 2015, https://arxiv.org/abs/1512.03385.
    """
    stride = DilatedStride(output_stride)
    x = residual_stem(x, spec, stride)
    maps = {"c1": x} if spec.stem_stride > 1 else {}
    if spec.stem_pool is not None:
        step, _ = stride.step(2)
        x = max_pool(x, 3, step, spec.stem_pool, "stem")
    for block in spec.blocks():
        x = residual_unit(x, block, spec, stride, convolve, attend)
        maps[f"c{block.row.stage}"] = x
    return {**maps, "features": x}


def residual_stem(x: Any, spec: ResidualSpec, stride: DilatedStride) -> Any:
    """Convolve the images: `stem_...`, or `stem_1_...` to `stem_3_...`.

    Args:
        x: Tensor of shape (batch, height, width, 3).
        spec: Gives channels, kernel and stride.
        stride: Follows the network's stride.

    Returns:
        Tensor of shape (batch, height / stem_stride, width / stem_stride, channels).
    """
    step, _ = stride.step(spec.stem_stride)
    if len(spec.stem) == 1:
        filters = spec.channels(spec.stem[0])
        x = conv_bn(x, filters, spec.stem_kernel, spec, "stem", stride=step)
        return activate(x, spec.act, "stem")
    for number, count in enumerate(spec.stem, start=1):
        part = f"stem_{number}"
        x = conv_bn(x, spec.channels(count), 3, spec, part, stride=step)
        x, step = activate(x, spec.act, part), 1
    return x


def residual_unit(
    x: Any,
    block: Block[StageRow],
    spec: ResidualSpec,
    stride: DilatedStride,
    convolve: Convolve = plain_spatial,
    attend: Attend | None = None,
) -> Any:
    """Add what the convolutions make of the input to the input itself.

    Layers: `{name}_reduce|spatial|expand_...` or `{name}_first|second_...`,
    `{name}_shortcut_...`, `{name}_add`, `{name}_add_act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        block: The unit's place and sizes.
        spec: The network.
        stride: Follows the network's stride.
        convolve: Makes the 3x3 convolutions.
        attend: Weighs the result before the sum.

    Returns:
        Tensor of shape (batch, height / stride, width / stride, block.out).
    """
    name, shortcut = block.name, x
    step, dilation = stride.step(block.stride)
    if resized(block):
        shortcut = _shortcut(x, block, spec, step, dilation)
    # A strided convolution keeps the grid's dilation; those behind it have the new.
    both = ((step, dilation), (1, stride.dilation))
    if spec.unit == "basic":
        for part, act, (step, rate) in zip(
            ("first", "second"), (spec.act, "linear"), both, strict=True
        ):
            conv = Spatial(
                filters=block.out,
                stride=step,
                dilation=rate,
                groups=spec.groups,
                act=act,
                name=f"{name}_{part}",
                block=block,
            )
            x = convolve(x, spec, conv)
    else:
        x = _bottleneck(x, block, spec, both, convolve)
    if attend is not None:
        x = attend(x, spec, block)
    return activate(residual(x, shortcut, name), spec.act, f"{name}_add")


def _bottleneck(
    x: Any,
    block: Block[StageRow],
    spec: ResidualSpec,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    convolve: Convolve,
) -> Any:
    """Convolve 1x1, 3x3, 1x1; the sizes are a strided unit's, then a plain one's."""
    mid = spec.mid(block.out)
    first, rate = (sizes[0][0], sizes[1]) if spec.stride_first else (1, sizes[0])
    part = f"{block.name}_reduce"
    x = conv_bn(x, round(mid * spec.reduce_ratio), 1, spec, part, first)
    x = activate(x, spec.act, part)
    conv = Spatial(
        filters=mid,
        stride=rate[0],
        dilation=rate[1],
        groups=spec.groups,
        act=spec.act,
        name=f"{block.name}_spatial",
        block=block,
    )
    x = convolve(x, spec, conv)
    return conv_bn(x, block.out, 1, spec, f"{block.name}_expand")


def _shortcut(
    x: Any, block: Block[StageRow], spec: ResidualSpec, step: int, dilation: int
) -> Any:
    part = f"{block.name}_shortcut"
    if spec.shortcut == "pad":
        return _padded(x, block, step, part)
    if spec.shortcut == "pool" and step > 1:
        # Sides round up, and windows at the border hold what there is.
        pool = layers.AveragePooling2D(step, padding="same", name=f"{part}_pool")
        x, step = pool(x), 1
    kernel = spec.shortcut_kernel if block.stride > 1 else 1
    return conv_bn(x, block.out, kernel, spec, part, step, dilation=dilation)


def _padded(x: Any, block: Block[StageRow], step: int, part: str) -> Any:
    """Take every second cell; put zeros before and behind the channels (option A)."""
    if step > 1:
        x = layers.MaxPooling2D(1, strides=step, name=f"{part}_pool")(x)
    before = (block.out - block.channels) // 2
    return channel_pad(x, before, block.out - block.channels - before, part)
