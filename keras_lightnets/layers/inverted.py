"""The inverted residual block (MBConv)."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import activate, conv_bn, depthwise_bn, residual
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
        squeeze: Channels inside squeeze-and-excite; 0 for none.
        gate: Gate of squeeze-and-excite.
    """

    kernel: int
    expand: int
    out: int
    stride: int
    act: str
    squeeze: int = 0
    gate: str = "hard_sigmoid"


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
    if block.expand != channels:
        x = conv_bn(x, block.expand, 1, spec, f"{name}_expand")
        x = activate(x, block.act, f"{name}_expand")
    expanded = x
    step, dilation = stride.step(block.stride)
    x = depthwise_bn(x, block.kernel, spec, f"{name}_dw", step, dilation)
    x = activate(x, block.act, f"{name}_dw")
    if block.squeeze:
        x = squeeze_excite(x, block.squeeze, f"{name}_se", gate=block.gate)
    x = conv_bn(x, block.out, 1, spec, f"{name}_project")
    if block.stride == 1 and channels == block.out:
        x = residual(x, shortcut, name)
    return x, expanded
