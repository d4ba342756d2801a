"""Channel shuffle and channel split."""

from typing import Any

from keras import layers


def channel_shuffle(x: Any, groups: int, name: str) -> Any:
    """Interleave the channels of the groups: `{name}_split|swap|shuffle`.

    Channel i of group g moves to place i * groups + g, so that a following grouped
    convolution reads from every group.

    Args:
        x: Tensor of shape (batch, height, width, channels); height and width must
            be known.
        groups: Number of groups; divides the channels.
        name: Stem of the layers' names.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: If the channels do not divide by `groups`.

    Reference:
        Zhang et al. 2017, https://arxiv.org/abs/1707.01083.
    """
    _, height, width, channels = x.shape
    if channels % groups:
        raise ValueError(
            f"channel_shuffle needs a number of channels that divides by groups="
            f"{groups}. Received: {channels} channels"
        )
    split = (height * width, groups, channels // groups)
    x = layers.Reshape(split, name=f"{name}_split")(x)
    x = layers.Permute((1, 3, 2), name=f"{name}_swap")(x)
    return layers.Reshape((height, width, channels), name=f"{name}_shuffle")(x)


def channel_split(x: Any, name: str, left: int = 0) -> tuple[Any, Any]:
    """Cut the channels into two parts: `{name}_left_split`, `{name}_right_split`.

    Keras has no layer that cuts channels; with the channels in a spatial axis,
    cropping does.

    Args:
        x: Tensor of shape (batch, height, width, channels); height and width must
            be known.
        name: Stem of the layers' names.
        left: Channels of the lower part; 0 for half of them.

    Returns:
        The lower and the upper part of the channels.

    Raises:
        ValueError: If half is wanted of an odd number, or no channels are left.

    Reference:
        Ma et al. 2018, https://arxiv.org/abs/1807.11164.
    """
    _, height, width, channels = x.shape
    if not left and channels % 2:
        raise ValueError(
            f"channel_split needs an even number of channels. Received: {channels}"
        )
    left = left or channels // 2
    if not 0 < left < channels:
        raise ValueError(
            f"left must be of 1 to {channels - 1}, below the channels. Received: {left}"
        )
    right = channels - left
    flat = layers.Reshape((height * width, channels, 1), name=f"{name}_flat_split")(x)
    parts = []
    for side, cut, count in (
        ("left", (0, right), left),
        ("right", (left, 0), right),
    ):
        part = layers.Cropping2D(((0, 0), cut), name=f"{name}_{side}_cut_split")(flat)
        shape = (height, width, count)
        parts.append(layers.Reshape(shape, name=f"{name}_{side}_split")(part))
    return parts[0], parts[1]
