"""Slices and pads along the channels by plain layers, for any height and width."""

from typing import Any

from keras import layers

# Read as channels first, the channels stand where plain layers cut and pad: their
# "height" is the width, and their "width" the channels.
_AXES = "channels_first"


def channel_slice(x: Any, start: int, stop: int, name: str) -> Any:
    """Return some of the channels: `{name}_split`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        start: First channel.
        stop: Channel behind the last one.
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, height, width, stop - start).

    Example:
        >>> import numpy as np
        >>> np.asarray(channel_slice(np.arange(4.0).reshape(1, 1, 1, 4), 1, 3, "a"))
        array([[[[1., 2.]]]], dtype=float32)
    """
    cut = ((0, 0), (start, x.shape[-1] - stop))
    return layers.Cropping2D(cut, _AXES, name=f"{name}_split")(x)


def channel_pad(x: Any, before: int, behind: int, name: str) -> Any:
    """Put channels of zeros before and behind: `{name}_pad`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        before: New channels in front.
        behind: New channels at the end.
        name: Stem of the layer's name.

    Returns:
        Tensor of shape (batch, height, width, before + channels + behind).
    """
    pads = ((0, 0), (before, behind))
    return layers.ZeroPadding2D(pads, _AXES, name=f"{name}_pad")(x)
