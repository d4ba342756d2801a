"""Convolution, normalisation and activation, each one plain layer."""

from typing import Any

from keras import initializers, layers

from keras_lightnets._errors import unknown
from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv2d import Conv2D
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
        start = initializers.Constant(0.25)  # He et al. 2015, section 2.1
        return layers.PReLU(start, shared_axes=[1, 2], name=name)(x)
    return layers.Activation(kind, name=name)(x)


def conv_bn(
    x: Any,
    filters: int,
    kernel: int | tuple[int, int],
    spec: ModelSpec,
    name: str,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve and normalise: `{name}_conv`, `{name}_bn`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        kernel: Kernel side, or (height, width).
        spec: Gives padding, epsilon, momentum, and whether there is a bias.
        name: Stem of the layers' names.
        stride: Stride in both directions, or (vertical, horizontal).
        groups: Channel groups.
        dilation: Dilation in both directions.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), filters).
    """
    x = padded_conv(x, filters, kernel, spec, name, stride, groups, dilation)
    return normalise(x, spec, name)


def padded_conv(
    x: Any,
    filters: int,
    kernel: int | tuple[int, int],
    spec: ModelSpec,
    name: str,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve with the network's padding, no normalisation: `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        kernel: Kernel side, or (height, width).
        spec: Gives padding, and whether there is a bias.
        name: Stem of the layers' names.
        stride: Stride in both directions, or (vertical, horizontal).
        groups: Channel groups.
        dilation: Dilation in both directions.

    Returns:
        Tensor of shape (batch, ceil(height / stride), ceil(width / stride), filters).
    """
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, padding = pad_for(x, size, stride, dilation, spec.padding, name)
    return (layers.Conv2D if groups == 1 else Conv2D)(
        filters,
        size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        groups=groups,
        use_bias=spec.conv_bias,
        kernel_initializer=kernel_init(),
        name=f"{name}_conv",
    )(x)


def depthwise_bn(
    x: Any,
    kernel: int | tuple[int, int],
    spec: ModelSpec,
    name: str,
    stride: int = 1,
    dilation: int = 1,
    pad: int | None = None,
) -> Any:
    """Convolve each channel on its own and normalise: `{name}_conv`, `{name}_bn`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        kernel: Kernel side, or (height, width).
        spec: Gives padding, epsilon, momentum, and whether there is a bias.
        name: Stem of the layers' names.
        stride: Stride in both directions.
        dilation: Dilation in both directions.
        pad: Pixels on every side where the stride is not 1, instead of the spec's.

    Returns:
        Tensor with the same channels, height and width divided by the stride.
    """
    x = padded_depthwise(x, kernel, spec, name, stride, dilation, pad)
    return normalise(x, spec, name)


def padded_depthwise(
    x: Any,
    kernel: int | tuple[int, int],
    spec: ModelSpec,
    name: str,
    stride: int = 1,
    dilation: int = 1,
    pad: int | None = None,
) -> Any:
    """Convolve each channel on its own, no normalisation: `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        kernel: Kernel side, or (height, width).
        spec: Gives padding, and whether there is a bias.
        name: Stem of the layers' names.
        stride: Stride in both directions.
        dilation: Dilation in both directions.
        pad: Pixels on every side where the stride is not 1, instead of the spec's.

    Returns:
        Tensor with the same channels, height and width divided by the stride.
    """
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, padding = pad_for(x, size, stride, dilation, spec.padding, name, pad)
    return layers.DepthwiseConv2D(
        size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=spec.conv_bias,
        depthwise_initializer=kernel_init(),
        name=f"{name}_conv",
    )(x)


def normalise(x: Any, spec: ModelSpec, name: str, border: int = 0) -> Any:
    """Normalise by the batch's statistics: `{name}_bn`.

    Args:
        x: Tensor, channels last.
        spec: Gives epsilon and momentum.
        name: Stem of the layer's name.
        border: Cells at each side that are padding, which statistics leave out.

    Returns:
        Tensor of the same shape.

    Reference:
        Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """
    return BatchNormalization(
        border=border,
        epsilon=spec.bn_epsilon,
        momentum=spec.bn_momentum,
        name=f"{name}_bn",
    )(x)


def bias_conv(
    x: Any,
    filters: int,
    name: str,
    use_bias: bool = True,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
) -> Any:
    """Convolve with no normalisation: `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        name: Stem of the layer's name.
        use_bias: Whether there is a bias.
        kernel: Kernel side, odd.
        stride: Stride in both directions; above 1 nothing is padded.
        dilation: Dilation in both directions.

    Returns:
        Tensor of shape (batch, height, width, filters), or with
        (side - kernel) // stride + 1 cells per side where strided.
    """
    return Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        dilation_rate=dilation,
        use_bias=use_bias,
        kernel_initializer=kernel_init(),
        name=f"{name}_conv",
    )(x)


def dense_classifier(
    x: Any, classes: int, dropout: float, use_bias: bool = True
) -> Any:
    """Classify pooled features: `top_flatten`, `top_dropout`, `top_classifier`.

    Args:
        x: Tensor of shape (batch, 1, 1, channels).
        classes: Number of classes.
        dropout: Rate before the dense layer; 0 adds no layer.
        use_bias: Whether the dense layer has a bias.

    Returns:
        Logits of shape (batch, classes).
    """
    x = layers.Flatten(name="top_flatten")(x)
    if dropout:
        x = layers.Dropout(dropout, name="top_dropout")(x)
    return layers.Dense(classes, use_bias=use_bias, name="top_classifier")(x)


def hidden_classifier(
    x: Any, hidden: tuple[int, ...], classes: int, drops: tuple[float, ...]
) -> Any:
    """Classify all cells by dense layers with ReLU between them.

    Layers: `top_swap`, `top_flatten`, `top_hidden{i}_classifier|act|dropout`,
    `top_classifier`. The values are read channel by channel, as PyTorch's files are
    ordered.

    Args:
        x: Tensor of shape (batch, height, width, channels) of known size.
        hidden: Widths of the dense layers before the last.
        classes: Number of classes.
        drops: Dropout rate in front of every dense layer, the last included.

    Returns:
        Logits of shape (batch, classes).
    """
    x = layers.Permute((3, 1, 2), name="top_swap")(x)
    x = layers.Flatten(name="top_flatten")(x)
    for i, width in enumerate(hidden, start=1):
        part = f"top_hidden{i}"
        x = drop(x, drops[i - 1], part)
        x = layers.Dense(width, name=f"{part}_classifier")(x)
        x = activate(x, "relu", part)
    return layers.Dense(classes, name="top_classifier")(drop(x, drops[-1], "top"))


def global_pool(x: Any, name: str = "top") -> Any:
    """Average over height and width: `{name}_pool`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, 1, 1, channels).
    """
    return layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)


def global_max_pool(x: Any, name: str = "top") -> Any:
    """Take the largest of every channel's cells: `{name}_pool`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, 1, 1, channels).
    """
    return layers.GlobalMaxPooling2D(keepdims=True, name=f"{name}_pool")(x)


def conv_classifier(x: Any, classes: int, dropout: float) -> Any:
    """Classify every cell by a 1x1 convolution with ReLU, then take the mean.

    Layers: `top_dropout`, `top_classifier`, `top_act`, `top_pool`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        classes: Number of classes.
        dropout: Rate before the convolution.

    Returns:
        Tensor of shape (batch, classes), not negative.

    Reference:
        Lin et al. 2013, https://arxiv.org/abs/1312.4400.
    """
    if dropout:
        x = layers.Dropout(dropout, name="top_dropout")(x)
    start = kernel_init()
    kernel = layers.Conv2D(classes, 1, kernel_initializer=start, name="top_classifier")
    x = activate(kernel(x), "relu", "top")
    return layers.GlobalAveragePooling2D(name="top_pool")(x)


def residual(x: Any, shortcut: Any, name: str, drop: float = 0.0) -> Any:
    """Add the shortcut: `{name}_add`, behind `{name}_drop` where wanted.

    Args:
        x: Tensor.
        shortcut: Tensor of the same shape.
        name: Stem of the layer's name.
        drop: Share of the images whose `x` is left out in training (stochastic
            depth, https://arxiv.org/abs/1603.09382).

    Returns:
        Their sum.
    """
    if drop:
        shape = (None, 1, 1, 1)
        x = layers.Dropout(drop, noise_shape=shape, name=f"{name}_drop")(x)
    return layers.Add(name=f"{name}_add")([shortcut, x])


def add(tensors: list[Any], name: str) -> Any:
    """Sum tensors: `{name}_add`.

    Args:
        tensors: At least two tensors of the same shape.
        name: Stem of the layer's name.

    Returns:
        Tensor of the same shape.
    """
    return layers.Add(name=f"{name}_add")(tensors)


def drop(x: Any, rate: float, name: str) -> Any:
    """Set values to zero at random in training: `{name}_dropout`.

    Args:
        x: Tensor.
        rate: Share of the values; 0 adds no layer.
        name: Stem of the layer's name.

    Returns:
        Tensor of the same shape.
    """
    return layers.Dropout(rate, name=f"{name}_dropout")(x) if rate else x


def concat(tensors: list[Any], name: str) -> Any:
    """Join along the channels: `{name}_concat`.

    Args:
        tensors: Tensors that agree in all but the last axis.
        name: Stem of the layer's name.

    Returns:
        Tensor with the sum of the channels.
    """
    return layers.Concatenate(name=f"{name}_concat")(tensors)


def kernel_init() -> Any:
    """Return He's initialiser by fan-out, as in the networks' reference code.

    By fan-in, Keras would count all channels for a depthwise kernel, although
    each output sees only one. A new object per layer: a reused one would start
    all kernels of one shape with the same values.
    """
    return initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
