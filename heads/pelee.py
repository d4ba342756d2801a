"""Pelee's head: residual prediction blocks and plain convolutions on five scales."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import initializers, layers

from keras_lightnets.heads import _anchored, _endpoints, nms
from keras_lightnets.heads._conv import Numerics
from keras_lightnets.heads.anchors import AnchorConfig, anchors_per_cell, ssd_anchors
from keras_lightnets.heads.bifpn import normalise
from keras_lightnets.layers import activate, pad_for

# What the head reads: strides 16 and 32. The map of stride 8 is not used (section 3).
ENDPOINTS = (("c4",), ("c5", "features"))

# The map of stride 16 has two sets of default boxes, the others one; scales as in the
# authors' network for VOC at 304 px (21.28, 45.6, 100.32 ... pixels).
SOURCES = (0, 0, 1, 2, 3, 4)
ANCHORS = AnchorConfig(
    scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), ratios=(2.0, 3.0), clip=False
)


@dataclass(frozen=True, kw_only=True)
class PeleeConfig(_anchored.SSDConfig):
    """A head as data; further fields are those of `SSDConfig`.

    Attributes:
        channels: Of the prediction blocks and the extra maps; convolutions between
            them have half.
        anchors: Default boxes of the six predictors.

    Raises:
        ValueError: If a value is not legal; the legal ones are listed.
    """

    image_size: int | tuple[int, int] = 304
    padding: str = "symmetric"
    channels: int = 256
    anchors: AnchorConfig = ANCHORS
    iou_threshold: float = 0.45

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchors.levels != len(SOURCES) or self.channels < 2:
            raise ValueError(
                f"PeleeConfig needs channels >= 2 and anchors of levels={len(SOURCES)}."
                f" Received: channels={self.channels}, levels={self.anchors.levels}"
            )
        if min(self.grids[-1]) < 1:
            raise ValueError(
                "Pelee's last maps lose two cells per side each, so image_size must be "
                f"257 pixels or more. Received: {self.image_size}"
            )

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of the five maps: strides 16, 32, 64, then without border."""
        height, width = self.size
        halved = [(-(-height // s), -(-width // s)) for s in (16, 32, 64)]
        rows, columns = halved[-1]
        return (*halved, (rows - 2, columns - 2), (rows - 4, columns - 4))


def pelee(features: Mapping[str, Any], config: PeleeConfig) -> dict[str, Any]:
    """Build the head on a backbone's feature maps.

    Layers: `head_extra{i}_reduce_conv|act` and `head_extra{i}_conv|act`; per map
    `head_block{k}_*`; per predictor `head_level{k}_boxes_conv` and
    `head_level{k}_scores_conv`; `head_boxes` and `head_scores` at the end.

    Args:
        features: Feature maps by endpoint: "c4" (stride 16) and "c5" or "features"
            (stride 32). Others are not read.
        config: The head.

    Returns:
        {"boxes": (batch, N, 4), "scores": (batch, N, columns)}: raw encodings (dx,
        dy, dw, dh) and logits, ordered like `default_boxes(config)`.

    Raises:
        ValueError: If an endpoint is missing, or a map's size is not that of the
            default boxes.

    Example:
        >>> import keras
        >>> c4, c5 = keras.Input((19, 19, 512)), keras.Input((10, 10, 704))
        >>> pelee({"c4": c4, "c5": c5}, PeleeConfig(classes=20))["scores"].shape
        (None, 5142, 21)

    Reference:
        Wang et al. 2018, section 3, https://arxiv.org/abs/1804.06882; the authors'
        network, https://github.com/Robert-JunWang/Pelee.
    """
    names = _endpoints.choose("pelee", ENDPOINTS, features)
    maps = [features[name] for name in names]
    for i, (reduced, stride) in enumerate(((1, 2), (2, 1), (2, 1)), 1):
        maps.append(
            _extra(
                maps[-1], config.channels // reduced, stride, config, f"head_extra{i}"
            )
        )
    _anchored.check_grids("Pelee", maps, config.grids, config.size)
    blocks = [_block(x, config, f"head_block{k}") for k, x in enumerate(maps, 1)]
    outputs = {"boxes": (4, 0.0), "scores": (config.columns, config.score_bias)}
    counts = anchors_per_cell(config.anchors)
    results = {}
    for output, (columns, bias) in outputs.items():
        flat = []
        for k, (source, boxes) in enumerate(zip(SOURCES, counts, strict=True), 1):
            name = f"head_level{k}_{output}"
            conv = layers.Conv2D(
                boxes * columns,
                1,
                bias_initializer=initializers.Constant(bias),
                name=f"{name}_conv",
            )
            y = conv(blocks[source])
            flat.append(_anchored.flatten(y, boxes, columns, f"{name}_flat"))
        results[output] = layers.Concatenate(axis=1, name=f"head_{output}")(flat)
    return results


def _boxes(config: PeleeConfig) -> npt.NDArray[np.float32]:
    grids = [config.grids[source] for source in SOURCES]
    return ssd_anchors(config.anchors, config.size, grids)


default_boxes = _anchored.boxes_function(_boxes)


build_losses = _anchored.ssd_losses


def decode(outputs: Mapping[str, Any], config: PeleeConfig) -> tuple[Any, Any]:
    """Turn the head's raw outputs into boxes and scores; see `ssdlite.decode`."""
    return _anchored.decode(outputs, default_boxes(config), config)


def detect(outputs: Mapping[str, Any], config: PeleeConfig) -> nms.Detections:
    """Decode and suppress overlapping boxes; see `ssdlite.detect`."""
    return _anchored.detect(*decode(outputs, config), config)


def _extras(config: PeleeConfig) -> list[tuple[int, int]]:
    """Return channels of the 1x1 and stride of the 3x3 convolution of each."""
    return [(config.channels, 2), *[(config.channels // 2, 1)] * 2]


def _extra(x: Any, reduced: int, stride: int, config: PeleeConfig, name: str) -> Any:
    """Make a smaller map: 1x1, then 3x3 of stride 2 or without border; no norms."""
    x = layers.Conv2D(reduced, 1, name=f"{name}_reduce_conv")(x)
    x = activate(x, "relu", f"{name}_reduce")
    padding = "valid"
    if stride > 1:
        x, padding = pad_for(x, (3, 3), stride, 1, config.padding, name)
    x = layers.Conv2D(config.channels, 3, stride, padding, name=f"{name}_conv")(x)
    return activate(x, "relu", name)


def _block(x: Any, config: PeleeConfig, name: str) -> Any:
    """Residual prediction block (figure 3b)."""
    half = config.channels // 2
    shortcut = _conv_bn(x, config.channels, 1, config, f"{name}_shortcut")
    x = activate(
        _conv_bn(x, half, 1, config, f"{name}_reduce"), "relu", f"{name}_reduce"
    )
    x = activate(_conv_bn(x, half, 3, config, f"{name}_mid"), "relu", f"{name}_mid")
    x = _conv_bn(x, config.channels, 1, config, f"{name}_expand")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return activate(x, "relu", name)


def _conv_bn(x: Any, filters: int, kernel: int, config: PeleeConfig, name: str) -> Any:
    conv = layers.Conv2D(
        filters, kernel, padding="same", use_bias=False, name=f"{name}_conv"
    )
    numerics = Numerics(bn_epsilon=config.bn_epsilon, bn_momentum=config.bn_momentum)
    return normalise(conv(x), numerics, name)
