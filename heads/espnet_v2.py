"""ESPNetv2's decoder: pyramids of depthwise convolutions at five sizes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._layout import Layout, pairs
from keras_lightnets.heads import _endpoints
from keras_lightnets.layers import (
    BatchNormalization,
    Conv2D,
    activate,
    bias_conv,
    channel_shuffle,
    concat,
    resample,
)
from keras_lightnets.layers.conv import kernel_init

# Maps of the strides 2, 4, 8 and 16.
ENDPOINTS = (("c1",), ("c2",), ("c3",), ("c4",))
SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
# No side of a pyramid's map is smaller.
LEAST = 5


@dataclass(frozen=True, kw_only=True)
class ESPNetV2Config:
    """A head as data.

    Attributes:
        classes: Number of classes.
        base: Unit of the widths: the decoder's maps have four, three and two times as
            many channels. 16 for Cityscapes and VOC, 32 for COCO in the authors' code.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.

    Raises:
        ValueError: If a value is not legal.
    """

    classes: int
    base: int = 16
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.classes < 1 or self.base < 1:
            raise ValueError(
                "ESPNetV2Config needs classes >= 1 and base >= 1. Received: classes="
                f"{self.classes}, base={self.base}"
            )

    @property
    def projected(self) -> int:
        """Channels of a pyramid's branches."""
        return max(1, min(self.classes // 2, self.base))


def espnet_v2(features: Mapping[str, Any], config: ESPNetV2Config) -> dict[str, Any]:
    """Build the decoder: from coarse to fine a pyramid, doubled, joined by a sum.

        c4 - pyramid - up - (+) - BN, PReLU - pyramid - up - (+) - ... - logits - up
                             |                               |
        c3 - gated 3x3 ------+          c2 - gated 3x3 ------+

    Layers: `head_step{i}_*` of the pyramids, `head_merge{i}_*` of what joins them,
    `head_logits_resize`.

    Args:
        features: Feature maps by endpoint: "c1" to "c4" (strides 2 to 16) of known
            sides, each half the one before.
        config: The head.

    Returns:
        {"logits": (batch, height, width, classes)}, raw, of even sides.

    Raises:
        ValueError: If an endpoint is missing or its size is not known.

    Example:
        >>> import keras
        >>> maps = {f"c{i}": keras.Input((64 >> i, 96 >> i, 8)) for i in (1, 2, 3, 4)}
        >>> espnet_v2(maps, ESPNetV2Config(classes=20))["logits"].shape
        (None, 64, 96, 20)

    Reference:
        Mehta et al. 2018, section 4.2, https://arxiv.org/abs/1811.11431, and the
        authors' later code, which is what the published weights are of.
    """
    names = _endpoints.choose("espnet_v2", ENDPOINTS, features)
    *fine, x = (features[name] for name in names)
    for step, like in enumerate(reversed(fine), start=1):
        filters = (5 - step) * config.base
        x = _pyramid(x, filters, config, f"head_step{step}")
        x = _norm_act(x, config, f"head_step{step}")
        x = resample(x, tuple(like.shape[1:3]), "aligned", f"head_step{step}")
        name = f"head_merge{step + 1}"
        y = _gated(like, filters, config, name)
        x = layers.Add(name=f"{name}_add")([y, x])
        x = _norm_act(x, config, name)
    x = _pyramid(x, config.classes, config, "head_step4", bias=True)
    sides = tuple(2 * side for side in x.shape[1:3])
    return {"logits": resample(x, sides, "aligned", "head_logits")}


def _pyramid(
    x: Any, filters: int, config: ESPNetV2Config, name: str, bias: bool = False
) -> Any:
    """Project, convolve at five sizes, mix channel by channel, merge."""
    width = config.projected
    x = bias_conv(x, width, f"{name}_reduce", use_bias=False)
    x = _norm_act(x, config, f"{name}_reduce")
    before = tuple(x.shape[1:3])
    made = []
    for i, scale in enumerate(SCALES, start=1):
        part, y = f"{name}_branch{i}", x
        if scale != 1.0:
            sides = _scaled(before, scale)
            how = "aligned" if scale > 1 else "area"
            y = resample(x, sides, how, f"{part}_in")
        y = _depthwise(y, part)
        if scale != 1.0:
            y = resample(y, before, "area" if scale > 1 else "aligned", part)
        made.append(y)
    x = _norm_act(concat(made, f"{name}_branch"), config, f"{name}_branch")
    x = channel_shuffle(x, len(SCALES), f"{name}_branch")
    x = _grouped(x, width, width, f"{name}_mix")
    x = _norm_act(x, config, f"{name}_mix")
    return bias_conv(x, filters, f"{name}_merge", use_bias=bias)


def _scaled(sides: tuple[Any, ...], scale: float) -> tuple[int, int]:
    if None in sides:
        raise ValueError(
            "The pyramids resize maps of known size: build the backbone with a fixed "
            f"input_shape. Received sides: {sides}"
        )
    height, width = (max(LEAST, math.ceil(side * scale)) for side in sides)
    return height, width


def _gated(x: Any, filters: int, config: ESPNetV2Config, name: str) -> Any:
    """Convolve in groups, and scale each channel by what the whole map shows."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_gate_pool")(x)
    gate = bias_conv(gate, filters, f"{name}_gate", use_bias=False)
    gate = activate(gate, "sigmoid", f"{name}_gate")
    part = f"{name}_group"
    x = _grouped(x, filters, math.gcd(x.shape[-1], filters), part)
    x = _norm_act(x, config, part)
    return layers.Multiply(name=f"{name}_scale")([x, gate])


def _grouped(x: Any, filters: int, groups: int, name: str) -> Any:
    return Conv2D(
        filters,
        3,
        padding="same",
        groups=groups,
        use_bias=False,
        kernel_initializer=kernel_init(),
        name=f"{name}_conv",
    )(x)


def _depthwise(x: Any, name: str) -> Any:
    return layers.DepthwiseConv2D(
        3,
        padding="same",
        use_bias=False,
        depthwise_initializer=kernel_init(),
        name=f"{name}_conv",
    )(x)


def _norm_act(x: Any, config: ESPNetV2Config, name: str) -> Any:
    x = BatchNormalization(
        epsilon=config.bn_epsilon, momentum=config.bn_momentum, name=f"{name}_bn"
    )(x)
    return activate(x, "prelu", name)


def _names(config: ESPNetV2Config) -> dict[str, str]:
    both = {"bn": "0", "act": "1"}
    whole = {"conv": "0", "bn": "1", "act": "2"}
    names: dict[str, str] = {}
    for step in range(1, 5):
        ours, theirs = f"head_step{step}", f"bu_dec_l{step}."
        names |= pairs(f"{ours}_reduce", f"{theirs}projection_layer.cbr.", whole)
        for i in range(len(SCALES)):
            names[f"{ours}_branch{i + 1}_conv"] = f"{theirs}stages.{i}"
        names |= pairs(f"{ours}_branch", f"{theirs}merge_layer.0.br.", both)
        names |= pairs(f"{ours}_mix", f"{theirs}merge_layer.2.cbr.", whole)
        names[f"{ours}_merge_conv"] = f"{theirs}merge_layer.3"
        if step < 4:
            names |= pairs(ours, f"{theirs}br.br.", both)
    for step in range(2, 5):
        ours, theirs = f"head_merge{step}", f"merge_enc_dec_l{step}."
        names[f"{ours}_gate_conv"] = f"{theirs}wt_layer.1"
        names |= pairs(f"{ours}_group", f"{theirs}expansion_layer.cbr.", whole)
        names |= pairs(ours, f"bu_br_l{step}.", both)
    return names


LAYOUTS: Mapping[str, Layout] = {"authors": Layout(names=_names, top=())}
