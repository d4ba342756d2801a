"""Dynamic Shift-Max, MicroNet's activation."""

from typing import Any

from keras import layers

from keras_lightnets.layers.conv import activate, bias_conv
from keras_lightnets.layers.select import SelectChannels


def dynamic_shift_max(
    x: Any, groups: int, reduced: int, start: tuple[float, ...], name: str
) -> Any:
    """Mix each channel with one of the next group, with factors from the means.

    Per channel, max over k of a_k * x + b_k * shifted(x), where the factors are
    computed as in squeeze-and-excite and lie within 2 of `start`. The shift takes the
    next channel of the next group, both counted in a circle.

    Layers: `{name}_squeeze_pool|conv|act`, `{name}_excite_conv|act`, per factor
    `{name}_a1_split|scale` ..., `{name}_shift_shuffle`, `{name}_sum1_add` ...,
    `{name}_max_act`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        groups: Groups of channels; divides the channels.
        reduced: Channels between the two 1x1 convolutions.
        start: Centres of a1, b1, a2, b2; with two values there is one sum and no
            maximum.
        name: Stem of the layers' names.

    Returns:
        Tensor of the same shape.

    Reference:
        Li et al. 2021, https://arxiv.org/abs/2108.05894, section 4.
    """
    channels, count = x.shape[-1], len(start)
    y = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze_pool")(x)
    y = activate(bias_conv(y, reduced, f"{name}_squeeze"), "relu", f"{name}_squeeze")
    y = bias_conv(y, channels * count, f"{name}_excite")
    y = activate(y, "hard_sigmoid", f"{name}_excite")
    y = layers.Reshape((1, count, channels), name=f"{name}_factors_split")(y)
    index = shifted(channels, groups)
    moved = SelectChannels(indices=index, name=f"{name}_shift_shuffle")(x)
    sums, terms = [], []
    for i, centre in enumerate(start):
        part = f"{name}_{'ab'[i % 2]}{i // 2 + 1}"
        cut = ((0, 0), (i, count - 1 - i))
        factor = layers.Cropping2D(cut, name=f"{part}_split")(y)
        # 0..1 to -2..2 around the centre.
        factor = layers.Rescaling(4.0, centre - 2.0, name=f"{part}_range_scale")(factor)
        source = moved if i % 2 else x
        terms.append(layers.Multiply(name=f"{part}_scale")([source, factor]))
        if i % 2:
            sums.append(layers.Add(name=f"{name}_sum{i // 2 + 1}_add")(terms[-2:]))
    return sums[0] if count == 2 else layers.Maximum(name=f"{name}_max_act")(sums)


def shifted(channels: int, groups: int) -> list[int]:
    """Return where each channel's partner stands.

    Args:
        channels: Number of channels.
        groups: Groups; divides the channels.

    Returns:
        For channel j of group i, the place of channel j + 1 of group i + 1, both
        counted in a circle.

    Raises:
        ValueError: If the channels do not divide by `groups`.

    Example:
        >>> shifted(6, 2)
        [4, 5, 3, 1, 2, 0]
    """
    if channels % groups:
        raise ValueError(
            f"Dynamic Shift-Max needs a number of channels that divides by groups="
            f"{groups}. Received: {channels} channels"
        )
    size = channels // groups
    return [
        (i + 1) % groups * size + (j + 1) % size
        for i in range(groups)
        for j in range(size)
    ]
