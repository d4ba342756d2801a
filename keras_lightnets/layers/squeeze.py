"""Squeeze-and-excite."""

from typing import Any

from keras import layers

from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import activate, bias_conv, normalise


def squeeze_excite(
    x: Any,
    reduced: int,
    name: str,
    act: str = "relu",
    gate: str = "hard_sigmoid",
    spec: ModelSpec | None = None,
) -> Any:
    """Scale channels by a gate computed from their means.

    Layers: `{name}_squeeze_pool`, `{name}_squeeze_conv|bn|act`,
    `{name}_excite_conv|act`, `{name}_scale`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        reduced: Channels between the two 1x1 convolutions.
        name: Stem of the layers' names.
        act: Activation between the convolutions.
        gate: "sigmoid" or "hard_sigmoid".
        spec: Gives epsilon and momentum where the squeezed means are normalised.

    Returns:
        Tensor of the same shape.

    Reference:
        Hu et al. 2018, https://arxiv.org/abs/1709.01507.
    """
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze_pool")(
        x
    )
    y = bias_conv(pooled, reduced, f"{name}_squeeze")
    y = y if spec is None else normalise(y, spec, f"{name}_squeeze")
    y = activate(y, act, f"{name}_squeeze")
    y = bias_conv(y, x.shape[-1], f"{name}_excite")
    y = activate(y, gate, f"{name}_excite")
    return layers.Multiply(name=f"{name}_scale")([x, y])
