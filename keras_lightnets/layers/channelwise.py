"""Convolutions along the channels, the same at every place of the image."""

from typing import Any

from keras import initializers, layers

# Of the published code: narrow, since the kernels have few weights.
_DEVIATION = 0.09


def channelwise_conv(x: Any, kernel: int, groups: int, name: str) -> Any:
    """Convolve along the channels: `{name}_channelwise_split|conv|swap|shuffle`.

    The channels become an image's rows of pixels, so that a plain convolution with
    `kernel` * `groups` weights in all does it. Every output of the g-th kernel
    comes `groups` channels after the one before, and together they are the g-th
    group of the result.

    Args:
        x: Tensor of shape (batch, height, width, channels); height and width must
            be known, the channels divide by `groups`.
        kernel: Neighbouring channels that an output sees.
        groups: Kernels, and the step from one output to the next.
        name: Stem of the layers' names.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: If the channels do not divide by `groups`.

    Reference:
        Gao et al. 2018, https://arxiv.org/abs/1809.01330, sections 3.2 and 3.3.
    """
    _, height, width, channels = x.shape
    if channels % groups:
        raise ValueError(
            f"channelwise_conv needs a number of channels that divides by groups="
            f"{groups}. Received: {channels} channels"
        )
    name = f"{name}_channelwise"
    x = layers.Reshape((height * width, channels, 1), name=f"{name}_split")(x)
    x = layers.Conv2D(
        groups,
        (1, kernel),
        strides=(1, groups),
        padding="same",
        use_bias=False,
        kernel_initializer=_start(),
        name=f"{name}_conv",
    )(x)
    if groups > 1:
        x = layers.Permute((1, 3, 2), name=f"{name}_swap")(x)
    return layers.Reshape((height, width, channels), name=f"{name}_shuffle")(x)


def channelwise_classifier(x: Any, classes: int) -> Any:
    """Classify by one 3-D kernel: `top_channelwise_split|conv|flatten`.

    The kernel covers the whole map and slides along the channels, one step for each
    class.

    Args:
        x: Tensor of shape (batch, height, width, channels); height and width must
            be known.
        classes: Number of classes, at most that of the channels.

    Returns:
        Logits of shape (batch, classes).

    Raises:
        ValueError: If there are more classes than channels.

    Reference:
        Gao et al. 2018, https://arxiv.org/abs/1809.01330, section 3.5.
    """
    _, height, width, channels = x.shape
    if not 0 < classes <= channels:
        raise ValueError(
            f"A classifier along {channels} channels tells at most as many classes. "
            f"Received: classes={classes}"
        )
    area = height * width
    x = layers.Reshape((area, channels, 1), name="top_channelwise_split")(x)
    x = layers.Conv2D(
        1,
        (area, channels - classes + 1),
        use_bias=False,
        kernel_initializer=_start(),
        name="top_channelwise_conv",
    )(x)
    return layers.Flatten(name="top_channelwise_flatten")(x)


def _start() -> Any:
    return initializers.TruncatedNormal(stddev=_DEVIATION)
