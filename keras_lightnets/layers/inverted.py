"""The inverted residual block (MBConv)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_lightnets._blocks import Block
from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.attention import efficient_attention
from keras_lightnets.layers.conv import activate, conv_bn, depthwise_bn, residual
from keras_lightnets.layers.shuffle import channel_shuffle
from keras_lightnets.layers.squeeze import squeeze_excite
from keras_lightnets.layers.stride import DilatedStride


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """Sizes of one inverted residual block.

    Attributes:
        kernel: Side of the depthwise kernel.
        expand: Channels after expansion; equal to the input's: no expansion.
        out: Output channels.
        stride: Stride of the depthwise convolution.
        act: Activation after expansion and depthwise convolution.
        expand_act: Activation after expansion, where it is another than `act`.
        squeeze: Channels inside squeeze-and-excite; 0 for none.
        gate: Gate of squeeze-and-excite.
        squeeze_act: Activation inside squeeze-and-excite.
        always_expand: Convolve before the depthwise convolution even where the
            channels stay the same.
        groups: Channel groups of both pointwise convolutions; with more than one,
            the channels are shuffled before the depthwise convolution.
        pad: Pixels on every side of a strided depthwise convolution, where the
            publisher's network differs from the spec's padding.
        skip: Whether equal shapes are joined by the shortcut.
        drop: Share of images whose residual is dropped in training.
        eca: Kernel of efficient channel attention behind the projection; 0 for none.
    """

    kernel: int
    expand: int
    out: int
    stride: int
    act: str
    expand_act: str = ""
    squeeze: int = 0
    gate: str = "hard_sigmoid"
    squeeze_act: str = "relu"
    always_expand: bool = False
    groups: int = 1
    pad: int | None = None
    skip: bool = True
    drop: float = 0.0
    eca: int = 0


def inverted_residual(
    x: Any, block: Bottleneck, spec: ModelSpec, stride: DilatedStride, name: str
) -> tuple[Any, Any]:
    """Expand, convolve per channel, project linearly, add the shortcut.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        block: The block's sizes.
        spec: Gives padding, epsilon and momentum.
        stride: Follows the network's stride.
        name: Stem of the layers' names, such as "stage3_block2".

    Returns:
        The block's output and its expanded input (the feature map that SSDLite
        reads before the last stride).

    Reference:
        Sandler et al. 2018, https://arxiv.org/abs/1801.04381.
    """
    shortcut, channels = x, x.shape[-1]
    if block.always_expand or block.expand != channels:
        part = f"{name}_expand"
        x = conv_bn(x, block.expand, 1, spec, part, groups=block.groups)
        x = activate(x, block.expand_act or block.act, part)
    expanded = x
    if block.groups > 1:
        x = channel_shuffle(x, block.groups, name)
    step, dilation = stride.step(block.stride)
    part = f"{name}_dw"
    x = depthwise_bn(x, block.kernel, spec, part, step, dilation, block.pad)
    x = activate(x, block.act, part)
    if block.squeeze:
        act, gate = block.squeeze_act, block.gate
        x = squeeze_excite(x, block.squeeze, f"{name}_se", act=act, gate=gate)
    x = conv_bn(x, block.out, 1, spec, f"{name}_project", groups=block.groups)
    if block.eca:
        x = efficient_attention(x, f"{name}_eca", block.eca)
    if block.skip and block.stride == 1 and channels == block.out:
        x = residual(x, shortcut, name, block.drop)
    return x, expanded


def inverted_stages(
    x: Any,
    blocks: Sequence[Block[Any]],
    sizes: Sequence[Bottleneck],
    spec: ModelSpec,
    stride: DilatedStride,
) -> tuple[Any, dict[str, Any]]:
    """Build inverted residual blocks one after the other.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        blocks: Their places in the network.
        sizes: Their sizes, in the same order.
        spec: Gives padding, epsilon and momentum.
        stride: Follows the network's stride.

    Returns:
        The last block's output, and the feature maps: the last one of every stage
        ("c1"..) and the expanded input of the first block of stage 5 ("c4_expand").
    """
    maps: dict[str, Any] = {}
    for block, size in zip(blocks, sizes, strict=True):
        x, expanded = inverted_residual(x, size, spec, stride, block.name)
        maps[f"c{block.row.stage}"] = x
        if block.row.stage == 5:
            maps.setdefault("c4_expand", expanded)
    return x, maps
