"""Convolution, normalisation and activation, each one plain layer."""

from typing import Any

from keras import layers

from keras_lightnets._errors import unknown
from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.norm import BatchNormalization
from keras_lightnets.layers.pad import pad_for

ACTIVATIONS = (
    "relu",
    "relu6",
    "hard_swish",
    "hard_sigmoid",
    "silu",
    "sigmoid",
    "gelu",
    "prelu",
    "linear",
)

# Weight initialisation of the networks' reference code: He for ReLU-like
# activations, fan-out, as depthwise kernels have a fan-in of kernel^2 only.
_KERNEL_INIT = "he_normal"


def activate(x: Any, kind: str, name: str) -> Any:
    """Apply an activation as a layer of its own, named `{name}_act`.

    Args:
        x: Tensor.
        kind: One of ACTIVATIONS; "linear" adds no layer.
        name: Stem of the layer's name.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: If `kind` is unknown.
    """
    if kind not in ACTIVATIONS:
        raise unknown("activation", kind, ACTIVATIONS)
    if kind == "linear":
        return x
    name = f"{name}_act"
    if kind == "relu":
        return layers.ReLU(name=name)(x)
    if kind == "relu6":
        return layers.ReLU(max_value=6.0, name=name)(x)
    if kind == "prelu":
        shared = [1, 2]
        start = "zeros"
        return layers.PReLU(alpha_initializer=start, shared_axes=shared, name=name)(x)
    return layers.Activation(kind, name=name)(x)


def conv_bn(
    x: Any,
    filters: int,
    kernel: int | tuple[int, int],
    spec: ModelSpec,
    name: str,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve without bias and normalise: `{name}_conv`, `{name}_bn`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        kernel: Kernel side, or (height, width).
        spec: Gives padding, epsilon and momentum.
        name: Stem of the layers' names.
        stride: Stride in both directions.
        groups: Channel groups.
        dilation: Dilation in both directions.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), filters).
    """
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, padding = pad_for(x, size, stride, dilation, spec.padding, name)
    x = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        groups=groups,
        use_bias=False,
        kernel_initializer=_KERNEL_INIT,
        name=f"{name}_conv",
    )(x)
    return _norm(x, spec, name)


def depthwise_bn(
    x: Any,
    kernel: int | tuple[int, int],
    spec: ModelSpec,
    name: str,
    stride: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve each channel on its own and normalise: `{name}_conv`, `{name}_bn`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        kernel: Kernel side, or (height, width).
        spec: Gives padding, epsilon and momentum.
        name: Stem of the layers' names.
        stride: Stride in both directions.
        dilation: Dilation in both directions.

    Returns:
        Tensor with the same channels, height and width divided by the stride.
    """
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, padding = pad_for(x, size, stride, dilation, spec.padding, name)
    x = layers.DepthwiseConv2D(
        size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        depthwise_initializer=_KERNEL_INIT,
        name=f"{name}_conv",
    )(x)
    return _norm(x, spec, name)


def bias_conv(x: Any, filters: int, name: str) -> Any:
    """Apply a 1x1 convolution with bias and no normalisation: `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, height, width, filters).
    """
    return layers.Conv2D(
        filters, 1, kernel_initializer=_KERNEL_INIT, name=f"{name}_conv"
    )(x)


def residual(x: Any, shortcut: Any, name: str) -> Any:
    """Add the shortcut: `{name}_add`.

    Args:
        x: Tensor.
        shortcut: Tensor of the same shape.
        name: Stem of the layer's name.

    Returns:
        Their sum.
    """
    return layers.Add(name=f"{name}_add")([shortcut, x])


def concat(tensors: list[Any], name: str) -> Any:
    """Join along the channels: `{name}_concat`.

    Args:
        tensors: Tensors that agree in all but the last axis.
        name: Stem of the layer's name.

    Returns:
        Tensor with the sum of the channels.
    """
    return layers.Concatenate(name=f"{name}_concat")(tensors)


def _norm(x: Any, spec: ModelSpec, name: str) -> Any:
    return BatchNormalization(
        epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, name=f"{name}_bn"
    )(x)
