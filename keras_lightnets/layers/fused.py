"""The fused inverted residual block (Fused-MBConv)."""

from typing import Any

from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import activate, conv_bn, residual
from keras_lightnets.layers.inverted import Bottleneck
from keras_lightnets.layers.stride import DilatedStride


def fused_residual(
    x: Any, block: Bottleneck, spec: ModelSpec, stride: DilatedStride, name: str
) -> Any:
    """Expand with a full convolution, project linearly, add the shortcut.

    Without expansion (block.expand equal to the input's channels) it is one
    convolution with activation, `{name}_conv|bn|act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        block: The block's sizes; kernel and stride are the first convolution's.
        spec: Gives padding, epsilon and momentum.
        stride: Follows the network's stride.
        name: Stem of the layers' names, such as "stage2_block1".

    Returns:
        The block's output.

    Reference:
        Tan and Le 2021, https://arxiv.org/abs/2104.00298.
    """
    shortcut, channels = x, x.shape[-1]
    expands = block.expand != channels
    part = f"{name}_expand" if expands else name
    filters = block.expand if expands else block.out
    step, dilation = stride.step(block.stride)
    x = conv_bn(x, filters, block.kernel, spec, part, step, dilation=dilation)
    x = activate(x, block.act, part)
    if expands:
        x = conv_bn(x, block.out, 1, spec, f"{name}_project")
    if block.stride == 1 and channels == block.out:
        x = residual(x, shortcut, name, block.drop)
    return x
