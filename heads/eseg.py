"""ESeg: a BiFPN from stride 4 to 512, and the weighted sum of its maps."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets.heads import _conv, _endpoints, bifpn
from keras_lightnets.layers.fusion import WeightedFusion

# Maps of the strides 4 to 32; the pyramid pools those up to 512 from the last.
ENDPOINTS = (("c2",), ("c3",), ("c4",), ("c5", "features"))


@dataclass(frozen=True)
class Variant:
    """One row of VARIANTS.

    Attributes:
        backbone: Registry name.
        channels: Of the pyramid.
        cells: BiFPN cells.
        fusion: "fast" or "sum".
        act: Activation of the pyramid.
    """

    backbone: str
    channels: int
    cells: int
    fusion: str = "fast"
    act: str = "silu"

    def options(self) -> dict[str, Any]:
        """Return the fields of an ESegConfig that make this variant."""
        fields = dataclasses.asdict(self)
        return {key: value for key, value in fields.items() if key != "backbone"}


# S, M and L have the pyramids with which the parameters (moving statistics among them)
# equal the paper's 6.9, 20.0 and 70.5 million; the multiply-adds at 1024x2048 come
# within 6 % of its 34.5, 112 and 343 billion. Of the Lite networks only speeds are
# known: ours are EfficientNet-Lite's, for int8 without gates and learned shares.
# fmt: off
VARIANTS: Mapping[str, Variant] = {
    #                 backbone         channels cells
    "lite_s": Variant("efficientnet_lite0",  64, 3, "sum", "relu6"),
    "lite_l": Variant("efficientnet_lite1",  96, 4, "sum", "relu6"),
    "s":      Variant("efficientnet_b1",     96, 4),
    "m":      Variant("efficientnet_b4",    192, 5),
    "l":      Variant("efficientnet_b7",    288, 6),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ESegConfig:
    """A head as data.

    Attributes:
        classes: Number of classes.
        channels: Of the pyramid.
        cells: BiFPN cells.
        levels: Maps; eight go from stride 4 to 512 (P2 to P9).
        fusion: "fast" (learned shares) or "sum", in the pyramid and at its end.
        act: Activation of the pyramid.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.

    Raises:
        ValueError: If a value is not legal.
    """

    classes: int
    channels: int = 96
    cells: int = 4
    levels: int = 8
    fusion: str = "fast"
    act: str = "silu"
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.99

    def __post_init__(self) -> None:
        pyramid = self.pyramid  # which checks the other fields
        if self.classes < 1 or pyramid.levels < len(ENDPOINTS):
            raise ValueError(
                f"ESegConfig needs classes >= 1 and levels >= {len(ENDPOINTS)}, the "
                f"backbone's maps. Received: classes={self.classes}, levels="
                f"{self.levels}"
            )

    @property
    def pyramid(self) -> bifpn.BiFPNConfig:
        """The BiFPN."""
        numerics = _conv.Numerics(
            act=self.act, bn_epsilon=self.bn_epsilon, bn_momentum=self.bn_momentum
        )
        return bifpn.BiFPNConfig(
            channels=self.channels,
            cells=self.cells,
            levels=self.levels,
            fusion=self.fusion,
            numerics=numerics,
        )


def eseg(features: Mapping[str, Any], config: ESegConfig) -> dict[str, Any]:
    """Build the head on a backbone's feature maps.

    Layers: the pyramid's (see `bifpn`); `head_level{k}_resize` for all maps but the
    finest, `head_levels_fuse` or `_add`, `head_logits_conv`.

    Args:
        features: Feature maps by endpoint: "c2" to "c5", each half the one before.
        config: The head.

    Returns:
        {"logits": (batch, height / 4, width / 4, classes)}, raw.

    Raises:
        ValueError: If an endpoint is missing or the maps do not halve.

    Example:
        >>> import keras
        >>> maps = {f"c{i}": keras.Input((64 >> i, 96 >> i, 8)) for i in range(2, 6)}
        >>> config = ESegConfig(classes=19, channels=8, cells=1)
        >>> eseg(maps, config)["logits"].shape
        (None, 16, 24, 19)

    Reference:
        Meng et al. 2022, https://arxiv.org/abs/2203.12683.
    """
    names = _endpoints.choose("eseg", ENDPOINTS, features)
    maps = bifpn.bifpn([features[name] for name in names], config.pyramid)
    finest = maps[0]
    spread = [finest]
    for level, x in enumerate(maps[1:], start=1):
        spread.append(_conv.resize_to(x, finest, 2**level, f"head_level{level}"))
    if config.fusion == "fast":
        x = WeightedFusion(name="head_levels_fuse")(spread)
    else:
        x = layers.Add(name="head_levels_add")(spread)
    numerics = config.pyramid.numerics
    return {"logits": _conv.predict(x, config.classes, 0.0, numerics, "head_logits")}
