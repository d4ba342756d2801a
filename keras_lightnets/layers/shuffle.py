"""Channel shuffle."""

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
