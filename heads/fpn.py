"""FPN of separable convolutions, and the SSD head on it (FPN-Lite)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets.heads import _anchored, _endpoints, _tower, bifpn, nms
from keras_lightnets.heads._conv import Numerics
from keras_lightnets.heads.anchors import (
    OctaveAnchorConfig,
    feature_sizes,
    octave_anchors,
)
from keras_lightnets.layers import activate, pad_for

# What the head reads: strides 8, 16 and 32; the last behind the backbone's last 1x1
# convolution, as the Object Detection API does ("layer_19" of MobileNetV2).
ENDPOINTS = (("c3",), ("c4",), ("features", "c5"))

_ROOT = 2.0**0.5

# Two octaves of three ratios, as RetinaNet but for an octave less.
ANCHORS = OctaveAnchorConfig(
    octaves=2, aspects=((1.0, 1.0), (_ROOT, 1.0 / _ROOT), (1.0 / _ROOT, _ROOT))
)


@dataclass(frozen=True, kw_only=True)
class FPNLiteConfig(_anchored.SSDConfig):
    """A head as data; further fields are those of `SSDConfig`.

    The defaults are those of "SSD MobileNet V2 FPNLite" of the TensorFlow Object
    Detection API.

    Attributes:
        channels: Of the pyramid and the predictors.
        repeats: Convolutions in front of the predictions, which boxes and scores
            share.
        anchors: Default boxes; their number of levels is the pyramid's.

    Raises:
        ValueError: If a value is not legal; the legal ones are listed.
    """

    score_activation: str = "sigmoid"
    bn_momentum: float = 0.997
    channels: int = 128
    repeats: int = 4
    anchors: OctaveAnchorConfig = ANCHORS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchors.levels < len(ENDPOINTS) or self.channels < 1:
            raise ValueError(
                f"FPNLiteConfig needs channels >= 1 and anchors of levels >= "
                f"{len(ENDPOINTS)}. Received: channels={self.channels}, levels="
                f"{self.anchors.levels}"
            )

    @property
    def numerics(self) -> Numerics:
        """Activation and normalisation of the convolutions."""
        return Numerics(
            padding=self.padding,
            bn_epsilon=self.bn_epsilon,
            bn_momentum=self.bn_momentum,
            act="relu6",
        )


def fpn(
    maps: Sequence[Any], channels: int, levels: int, numerics: Numerics
) -> list[Any]:
    """Build the pyramid: from coarse to fine by sums, then coarser maps.

    For three maps of the backbone::

        c5 --- 1x1 ------------ P5 --> P6 --> P7 ...
                 | doubled
        c4 --- 1x1 (+) -- 3x3 - P4
                    | doubled
        c3 --- 1x1 (+) -- 3x3 - P3

    Layers: `head_p{k}_lateral_conv`, `head_p{k}_up`, `head_p{k}_add` and the separable
    convolutions `head_p{k}_dw_conv|conv|bn|act`, for level k counted from 0.

    Args:
        maps: The backbone's maps from fine to coarse, each half the size of the one
            before, odd sides rounded up.
        channels: Of the maps returned.
        levels: Number of the maps returned.
        numerics: Activation, normalisation, padding.

    Returns:
        Maps from fine to coarse.

    Raises:
        ValueError: If the maps do not halve.

    Example:
        >>> import keras
        >>> c3, c4 = keras.Input((8, 8, 24)), keras.Input((4, 4, 40))
        >>> [x.shape[1:] for x in fpn([c3, c4], 16, 3, Numerics())]
        [(8, 8, 16), (4, 4, 16), (2, 2, 16)]

    Reference:
        Lin et al. 2017, https://arxiv.org/abs/1612.03144.
    """
    bifpn.check_halving(maps)
    made: list[Any] = []
    below: Any = None
    for level, x in reversed(list(enumerate(maps))):
        name = f"head_p{level}"
        x = layers.Conv2D(channels, 1, name=f"{name}_lateral_conv")(x)
        if below is not None:
            up = bifpn.double(below, x, name)
            x = layers.Add(name=f"{name}_add")([x, up])
        below = x
        # The coarsest sum has one part and needs no smoothing.
        made.insert(0, _separable(x, channels, 1, numerics, name) if made else x)
    for level in range(len(maps), levels):
        name = f"head_p{level}"
        made.append(_separable(made[-1], channels, 2, numerics, name))
    return made


def fpn_lite(features: Mapping[str, Any], config: FPNLiteConfig) -> dict[str, Any]:
    """Build the head on a backbone's feature maps.

    Layers: the pyramid's (see `fpn`); `head_tower_repeat{r}_dw_conv|conv`, which all
    levels share, and `head_tower_level{k}_repeat{r}_bn|act`, which they do not; per
    output `head_boxes_dw_conv|conv`, shared; `head_boxes` and `head_scores` at the end.

    Args:
        features: Feature maps by endpoint: "c3", "c4" and "features" or "c5".
            Others are not read.
        config: The head.

    Returns:
        {"boxes": (batch, N, 4), "scores": (batch, N, columns)}: raw encodings (dx,
        dy, dw, dh) and logits, ordered like `default_boxes(config)`.

    Raises:
        ValueError: If an endpoint is missing, or a map's size is not that of the
            default boxes.

    Example:
        >>> import keras
        >>> c3, c4, c5 = (keras.Input((n, n, 8 * n)) for n in (16, 8, 4))
        >>> config = FPNLiteConfig(classes=3, image_size=128)
        >>> fpn_lite({"c3": c3, "c4": c4, "c5": c5}, config)["scores"].shape
        (None, 2046, 3)

    Reference:
        Lin et al. 2017, https://arxiv.org/abs/1708.02002; Sandler et al. 2018,
        section 6.2, https://arxiv.org/abs/1801.04381.
    """
    names = _endpoints.choose("fpn_lite", ENDPOINTS, features)
    maps = [features[name] for name in names]
    grids = feature_sizes(config.anchors, config.size)
    _anchored.check_grids("FPNLite", maps, grids[: len(maps)], config.size)
    maps = fpn(maps, config.channels, config.anchors.levels, config.numerics)
    tower = _tower.Tower(
        channels=config.channels, repeats=config.repeats, numerics=config.numerics
    )
    convolve = _tower.build("head_tower", tower)
    maps = [convolve(x, k) for k, x in enumerate(maps, 1)]
    outputs = {"boxes": (4, 0.0), "scores": (config.columns, config.score_bias)}
    boxes = config.anchors.per_cell
    results = {}
    for output, (columns, bias) in outputs.items():
        name = f"head_{output}"
        predict = _tower.separable(name, boxes * columns, True, bias)
        flat = [
            _anchored.flatten(predict(x), boxes, columns, f"{name}_level{k}_flat")
            for k, x in enumerate(maps, 1)
        ]
        results[output] = layers.Concatenate(axis=1, name=name)(flat)
    return results


default_boxes = _anchored.boxes_function(
    lambda config: octave_anchors(config.anchors, config.size)
)


build_losses = _anchored.ssd_losses


def decode(outputs: Mapping[str, Any], config: FPNLiteConfig) -> tuple[Any, Any]:
    """Turn the head's raw outputs into boxes and scores; see `ssdlite.decode`."""
    return _anchored.decode(outputs, default_boxes(config), config)


def detect(outputs: Mapping[str, Any], config: FPNLiteConfig) -> nms.Detections:
    """Decode and suppress overlapping boxes; see `ssdlite.detect`."""
    return _anchored.detect(*decode(outputs, config), config)


def _separable(x: Any, filters: int, stride: int, numerics: Numerics, name: str) -> Any:
    x, padding = pad_for(x, (3, 3), stride, 1, numerics.padding, f"{name}_dw")
    x = layers.DepthwiseConv2D(
        3, stride, padding, use_bias=False, name=f"{name}_dw_conv"
    )(x)
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_conv")(x)
    return activate(bifpn.normalise(x, numerics, name), numerics.act, name)
