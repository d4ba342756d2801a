"""SSDLite: single-shot detection with depthwise separable predictors."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._errors import unknown
from keras_lightnets._layout import Layout
from keras_lightnets.heads import _anchored, _conv, _endpoints, nms
from keras_lightnets.heads.anchors import (
    AnchorConfig,
    anchors_per_cell,
    feature_sizes,
    ssd_anchors,
)

# What the head reads, best first: the expanded tensor inside the first stride-32
# block (MobileNetV3, section 6.3) and the map in front of the classifier's pooling.
ENDPOINTS = (("c4_expand", "c4"), ("features", "c5"))

# Flavour -> default boxes. The papers share the layers; TensorFlow's MobileNetV2
# detector has 3 boxes per cell on the first map, torchvision's MobileNetV3 has 6.
FLAVOURS: Mapping[str, AnchorConfig] = {
    "mobilenet_v2": AnchorConfig(reduce_lowest=True),
    "mobilenet_v3": AnchorConfig(),
}

_MIN_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class SSDLiteConfig(_anchored.SSDConfig):
    """A head as data; further fields are those of `SSDConfig`.

    Attributes:
        flavour: "mobilenet_v3" or "mobilenet_v2"; chooses the default boxes.
        extra_widths: Channels of the stride-2 blocks behind the backbone; one more
            feature map each.
        width: Multiplier of `extra_widths`, which do not fall below 16.
        anchors: Default boxes; None: those of the flavour.

    Raises:
        ValueError: If a value is not legal; the legal ones are listed.
    """

    flavour: str = "mobilenet_v3"
    extra_widths: tuple[int, ...] = (512, 256, 256, 128)
    width: float = 1.0
    anchors: AnchorConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flavour not in FLAVOURS:
            raise unknown("flavour of SSDLiteConfig", self.flavour, FLAVOURS)
        levels = len(ENDPOINTS) + len(self.extra_widths)
        if self.anchors is not None and self.anchors.levels != levels:
            raise ValueError(
                f"This SSDLiteConfig has {levels} feature maps ({len(ENDPOINTS)} of "
                "the backbone and one per entry of extra_widths), so its anchors need "
                f"levels={levels}. Received: levels={self.anchors.levels}"
            )

    @property
    def anchor_config(self) -> AnchorConfig:
        """The default boxes' sizes and shapes, given or the flavour's."""
        if self.anchors is not None:
            return self.anchors
        levels = len(ENDPOINTS) + len(self.extra_widths)
        return dataclasses.replace(FLAVOURS[self.flavour], levels=levels)


def ssdlite(features: Mapping[str, Any], config: SSDLiteConfig) -> dict[str, Any]:
    """Build the head on a backbone's feature maps.

    Layers: `head_extra{i}_reduce|dw|project_*`, per level `head_level{k}_boxes_*`
    and `head_level{k}_scores_*`, and `head_boxes`, `head_scores` at the end.

    Args:
        features: Feature maps by endpoint: "c4_expand" or "c4" (stride 16) and
            "features" or "c5" (stride 32). Others are not read.
        config: The head.

    Returns:
        {"boxes": (batch, N, 4), "scores": (batch, N, columns)}: raw encodings (dx,
        dy, dw, dh) and logits, ordered like `default_boxes(config)`.

    Raises:
        ValueError: If an endpoint is missing, or a map's size is not that of the
            default boxes.

    Example:
        >>> import keras
        >>> c4, c5 = keras.Input((4, 4, 96)), keras.Input((2, 2, 320))
        >>> config = SSDLiteConfig(classes=3, image_size=64)
        >>> ssdlite({"c4": c4, "c5": c5}, config)["scores"].shape
        (None, 144, 4)

    Reference:
        Sandler et al. 2018, section 6.2, https://arxiv.org/abs/1801.04381; Howard et
        al. 2019, section 6.3, https://arxiv.org/abs/1905.02244.
    """
    numerics = _conv.Numerics(
        padding=config.padding,
        bn_epsilon=config.bn_epsilon,
        bn_momentum=config.bn_momentum,
    )
    names = _endpoints.choose("ssdlite", ENDPOINTS, features)
    maps = [features[name] for name in names]
    for i, filters in enumerate(_extra_filters(config), 1):
        maps.append(_extra_block(maps[-1], filters, numerics, f"head_extra{i}"))
    grids = feature_sizes(config.anchor_config, config.size)
    _anchored.check_grids("SSDLite", maps, grids, config.size)
    # name -> (columns, initial bias)
    outputs = {
        "boxes": (4, 0.0),
        "scores": (config.columns, config.score_bias),
    }
    counts = anchors_per_cell(config.anchor_config)
    results = {}
    for output, (columns, bias) in outputs.items():
        flat = []
        for k, (x, boxes) in enumerate(zip(maps, counts, strict=True), 1):
            name = f"head_level{k}_{output}"
            y = _conv.depthwise_bn_act(x, 1, numerics, f"{name}_dw")
            y = _conv.predict(y, boxes * columns, bias, numerics, name)
            flat.append(_anchored.flatten(y, boxes, columns, f"{name}_flat"))
        results[output] = layers.Concatenate(axis=1, name=f"head_{output}")(flat)
    return results


default_boxes = _anchored.boxes_function(
    lambda config: ssd_anchors(config.anchor_config, config.size)
)


build_losses = _anchored.ssd_losses


def decode(outputs: Mapping[str, Any], config: SSDLiteConfig) -> tuple[Any, Any]:
    """Turn the head's raw outputs into boxes and scores.

    Args:
        outputs: {"boxes": (batch, N, 4), "scores": (batch, N, columns)}.
        config: The head.

    Returns:
        Boxes (x1, y1, x2, y2) as shares of the image's sides, clipped to it, shape
        (batch, N, 4); and probabilities without background, (batch, N, classes).
    """
    return _anchored.decode(outputs, default_boxes(config), config)


def detect(outputs: Mapping[str, Any], config: SSDLiteConfig) -> nms.Detections:
    """Decode and suppress overlapping boxes, with the config's thresholds.

    Args:
        outputs: {"boxes": (batch, N, 4), "scores": (batch, N, columns)}.
        config: The head.

    Returns:
        `Detections` of `config.max_detections` places per image; boxes are shares of
        the image's sides.
    """
    return _anchored.detect(*decode(outputs, config), config)


def _extra_filters(config: SSDLiteConfig) -> list[int]:
    return [max(_MIN_WIDTH, int(w * config.width)) for w in config.extra_widths]


def _extra_block(x: Any, filters: int, numerics: _conv.Numerics, name: str) -> Any:
    x = _conv.conv_bn_act(x, filters // 2, numerics, f"{name}_reduce")
    x = _conv.depthwise_bn_act(x, 2, numerics, f"{name}_dw")
    return _conv.conv_bn_act(x, filters, numerics, f"{name}_project")


def _torchvision_names(config: SSDLiteConfig) -> dict[str, str]:
    names = {}
    for i in range(len(config.extra_widths)):
        for j, part in enumerate(("reduce", "dw", "project")):
            for n, layer in enumerate(("conv", "bn")):
                key = f"backbone.extra.{i}.{j}.{n}"
                names[f"head_extra{i + 1}_{part}_{layer}"] = key
    for k in range(len(ENDPOINTS) + len(config.extra_widths)):
        for output, head in (("boxes", "regression"), ("scores", "classification")):
            name = f"head_level{k + 1}_{output}"
            key = f"head.{head}_head.module_list.{k}"
            names[f"{name}_dw_conv"] = f"{key}.0.0"
            names[f"{name}_dw_bn"] = f"{key}.0.1"
            names[f"{name}_conv"] = f"{key}.1"
    return names


LAYOUTS: Mapping[str, Layout] = {
    "torchvision": Layout(names=_torchvision_names, top=()),
}
