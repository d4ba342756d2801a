"""Pooling with explicit padding, and average pooling with dilation."""

from typing import Any

from keras import layers


def max_pool(x: Any, size: int, stride: int, pad: tuple[int, int], name: str) -> Any:
    """Take the largest value of each window: `{name}_pool`.

    Padding adds zeros, so what comes in must not be negative (a ReLU's output).
    `pad=(0, 1)` with size 3 and stride 2 gives floor(side / 2), which is what
    rounding up without padding gives in PyTorch and Caffe.

    Args:
        x: Tensor of shape (batch, height, width, channels), not negative.
        size: Side of the window.
        stride: Stride in both directions.
        pad: Pixels before and behind, in both directions.
        name: Stem of the layers' names.

    Returns:
        Tensor with (side + sum(pad) - size) // stride + 1 cells per side.
    """
    x = _zeros(x, pad, f"{name}_pool")
    return layers.MaxPooling2D(size, strides=stride, name=f"{name}_pool")(x)


def avg_pool(
    x: Any,
    size: int,
    stride: int,
    pad: tuple[int, int],
    name: str,
    dilation: int = 1,
) -> Any:
    """Average each window, padded zeros counted: `{name}_pool`.

    With dilation the window's cells lie apart. No Keras layer pools so; the means
    of shifted copies, first of rows and then of columns, are the same.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        size: Side of the window, in cells.
        stride: Stride in both directions; 1 with dilation.
        pad: Pixels before and behind, in both directions, times the dilation.
        name: Stem of the layers' names.
        dilation: Distance of the window's cells.

    Returns:
        Tensor with the same channels.

    Raises:
        ValueError: If both stride and dilation are above 1.
    """
    if dilation == 1:
        x = _zeros(x, pad, f"{name}_pool")
        return layers.AveragePooling2D(size, strides=stride, name=f"{name}_pool")(x)
    if stride != 1:
        raise ValueError(
            "avg_pool strides or dilates, not both; pass stride=1 with dilation. "
            f"Received: stride={stride}, dilation={dilation}"
        )
    x = _zeros(x, (pad[0] * dilation, pad[1] * dilation), f"{name}_pool")
    x = _mean_of_shifts(x, size, dilation, (1, 0), f"{name}_rows")
    return _mean_of_shifts(x, size, dilation, (0, 1), f"{name}_cols")


def adaptive_pool(x: Any, side: int, name: str) -> Any:
    """Average or repeat cells so that there are `side` per side: `{name}_pool`.

    Args:
        x: Tensor of shape (batch, height, width, channels) of known size.
        side: Cells per side of the result.
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, side, side, channels); `x` itself where it has it.

    Raises:
        ValueError: If height or width are not known.
    """
    _, height, width, _ = x.shape
    if height is None or width is None:
        raise ValueError(
            f"The classifier reads {side} x {side} cells and needs a known image "
            "size; pass input_shape, or include_top=False. Received: a map of "
            f"{height} x {width} cells"
        )
    if height == width == side:
        return x
    return layers.AdaptiveAveragePooling2D(side, name=f"{name}_pool")(x)


def avg_pool_up(x: Any, size: int, stride: int, name: str) -> Any:
    """Average each window, sides rounded up: `{name}_pool`.

    A window over the border averages the cells it has, as Caffe does.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        size: Side of the window.
        stride: Stride in both directions.
        name: Stem of the layer's name.

    Returns:
        Tensor with ceil(side / stride) cells per side.
    """
    pool = layers.AveragePooling2D(size, stride, padding="same", name=f"{name}_pool")
    return pool(x)


def _zeros(x: Any, pad: tuple[int, int], name: str) -> Any:
    return layers.ZeroPadding2D((pad, pad), name=f"{name}_pad")(x) if any(pad) else x


def _mean_of_shifts(
    x: Any, size: int, dilation: int, axes: tuple[int, int], name: str
) -> Any:
    shifted = []
    for i in range(size):
        cut = (i * dilation, (size - 1 - i) * dilation)
        cuts = tuple(cut if axis else (0, 0) for axis in axes)
        shifted.append(layers.Cropping2D(cuts, name=f"{name}{i}_split")(x))
    return layers.Average(name=f"{name}_pool")(shifted)
