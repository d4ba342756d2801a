"""EfficientDet: BiFPN, and predictors that all levels share."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._errors import unknown
from keras_lightnets._layout import Layout, pairs
from keras_lightnets.heads import (
    _anchored,
    _endpoints,
    _tower,
    bifpn,
    losses,
    nms,
)
from keras_lightnets.heads._conv import Numerics
from keras_lightnets.heads.anchors import (
    OctaveAnchorConfig,
    feature_sizes,
    octave_anchors,
)

# What the head reads: strides 8, 16 and 32.
ENDPOINTS = (("c3",), ("c4",), ("c5", "features"))

# A raw output of 1 moves a box by its default box's size.
BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)

# The authors' box loss: Huber, summed over coordinates, 50 / 4 per positive.
HUBER_DELTA, HUBER_WEIGHT = 0.1, 12.5
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 1.5


@dataclass(frozen=True)
class Variant:
    """One line of the paper's table 1.

    Attributes:
        backbone: Registry name.
        size: Input side.
        channels: Of the pyramid and the predictors.
        cells: BiFPN cells.
        repeats: Convolutions in front of a prediction.
        anchor_scale: Side of the smallest default box, in cells.
        fusion: "fast" or "sum".
        act: Activation of pyramid and predictors.
        levels: Feature maps.
    """

    backbone: str
    size: int
    channels: int
    cells: int
    repeats: int
    anchor_scale: float = 4.0
    fusion: str = "fast"
    act: str = "silu"
    levels: int = 5

    def options(self) -> dict[str, Any]:
        """Return the fields of an EfficientDetConfig that make this variant."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in ("backbone", "size")}


_LITE: dict[str, Any] = {"fusion": "sum", "act": "relu6"}

# fmt: off
VARIANTS: Mapping[str, Variant] = {
    #                backbone              size channels cells repeats scale
    "d0":    Variant("efficientnet_b0",     512,  64, 3, 3),
    "d1":    Variant("efficientnet_b1",     640,  88, 4, 3),
    "d2":    Variant("efficientnet_b2",     768, 112, 5, 3),
    "d3":    Variant("efficientnet_b3",     896, 160, 6, 4),
    "d4":    Variant("efficientnet_b4",    1024, 224, 7, 4),
    "d5":    Variant("efficientnet_b5",    1280, 288, 7, 4),
    "d6":    Variant("efficientnet_b6",    1280, 384, 8, 5, fusion="sum"),
    "d7":    Variant("efficientnet_b6",    1536, 384, 8, 5, 5.0, fusion="sum"),
    "d7x":   Variant("efficientnet_b7",    1536, 384, 8, 5, fusion="sum", levels=6),
    "lite0": Variant("efficientnet_lite0",  320,  64, 3, 3, 3.0, **_LITE),
    "lite1": Variant("efficientnet_lite1",  384,  88, 4, 3, 3.0, **_LITE),
    "lite2": Variant("efficientnet_lite2",  448, 112, 5, 3, 3.0, **_LITE),
    "lite3": Variant("efficientnet_lite3",  512, 160, 6, 4, 4.0, **_LITE),
    "lite3x": Variant("efficientnet_lite3", 640, 200, 6, 4, 3.0, **_LITE),
    "lite4": Variant("efficientnet_lite4",  640, 224, 7, 4, 4.0, **_LITE),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class EfficientDetConfig:
    """A head as data; the defaults are those of D0.

    Attributes:
        classes: Number of classes; there is no background.
        image_size: Side, or (height, width), of the network's input in pixels.
        channels: Of the pyramid and the predictors.
        cells: BiFPN cells.
        repeats: Convolutions in front of a prediction.
        levels: Feature maps; the first has stride 8.
        anchor_scale: Side of the smallest default box, in cells.
        fusion: "fast" or "sum".
        act: Activation, such as "silu" or "relu6".
        anchors: Default boxes; None: three octaves of three aspects.
        conv_bias: Whether convolutions in front of a normalisation have a bias, as
            in the published files.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.
        prior: Score of every class before training.
        box_loss: "huber", "smooth_l1" or "giou".
        score_threshold: Detections need a score above it.
        iou_threshold: Overlap above which the lesser box of a class goes.
        max_detections: Detections per image at most.
        suppression: "hard" or "soft".
        class_agnostic: Whether boxes of different classes suppress each other.

    Raises:
        ValueError: If a value is not legal; the legal ones are listed.
    """

    classes: int
    image_size: int | tuple[int, int] = 512
    channels: int = 64
    cells: int = 3
    repeats: int = 3
    levels: int = 5
    anchor_scale: float = 4.0
    fusion: str = "fast"
    act: str = "silu"
    anchors: OctaveAnchorConfig | None = None
    conv_bias: bool = False
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.99
    prior: float = 0.01
    box_loss: str = "huber"
    score_threshold: float = 0.001
    iou_threshold: float = 0.5
    max_detections: int = 100
    suppression: str = "hard"
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        for what, value, legal in (
            ("fusion", self.fusion, bifpn.FUSIONS),
            ("box_loss", self.box_loss, losses.BOX_KINDS),
            ("suppression", self.suppression, nms.KINDS),
        ):
            if value not in legal:
                raise unknown(f"{what} of EfficientDetConfig", value, legal)
        if self.levels < len(ENDPOINTS) or min(self.channels, self.cells) < 1:
            raise ValueError(
                f"EfficientDetConfig needs levels >= {len(ENDPOINTS)}, channels >= 1 "
                f"and cells >= 1. Received: levels={self.levels}, channels="
                f"{self.channels}, cells={self.cells}"
            )
        if self.anchors is not None and self.anchors.levels != self.levels:
            raise ValueError(
                f"The anchors of this EfficientDetConfig need levels={self.levels}. "
                f"Received: levels={self.anchors.levels}"
            )
        if self.classes < 1 or min(self.size) < 1 or not 0 < self.prior < 1:
            raise ValueError(
                "EfficientDetConfig needs classes >= 1, a positive image_size and 0 < "
                f"prior < 1. Received: classes={self.classes}, image_size="
                f"{self.image_size}, prior={self.prior}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return _anchored.size_of(self.image_size)

    @property
    def anchor_config(self) -> OctaveAnchorConfig:
        """The default boxes' sizes and shapes, given or by `anchor_scale`."""
        if self.anchors is not None:
            return self.anchors
        return OctaveAnchorConfig(levels=self.levels, scale=self.anchor_scale)

    @property
    def score_activation(self) -> str:
        """Activation of the scores."""
        return "sigmoid"

    @property
    def box_weights(self) -> tuple[float, float, float, float]:
        """Factors of the box encodings."""
        return BOX_WEIGHTS

    @property
    def pyramid(self) -> bifpn.BiFPNConfig:
        """The BiFPN's config."""
        return bifpn.BiFPNConfig(
            channels=self.channels,
            cells=self.cells,
            levels=self.levels,
            fusion=self.fusion,
            conv_bias=self.conv_bias,
            numerics=Numerics(
                act=self.act, bn_epsilon=self.bn_epsilon, bn_momentum=self.bn_momentum
            ),
        )


def efficientdet(
    features: Mapping[str, Any], config: EfficientDetConfig
) -> dict[str, Any]:
    """Build the head on a backbone's feature maps.

    Layers: the pyramid's (see `bifpn`); per output `head_boxes_repeat{r}_dw_conv|conv`
    and `head_boxes_dw_conv|conv`, which all levels share, and `head_boxes_level{k}
    _repeat{r}_bn|act`, which they do not; `head_boxes` and `head_scores` at the end.

    Args:
        features: Feature maps by endpoint: "c3", "c4" and "c5" or "features".
            Others are not read.
        config: The head.

    Returns:
        {"boxes": (batch, N, 4), "scores": (batch, N, classes)}: raw encodings (dx,
        dy, dw, dh) and logits, ordered like `default_boxes(config)`.

    Raises:
        ValueError: If an endpoint is missing, or a map's size is not that of the
            default boxes.

    Example:
        >>> import keras
        >>> c3, c4, c5 = (keras.Input((n, n, 8 * n)) for n in (16, 8, 4))
        >>> config = EfficientDetConfig(classes=3, image_size=128, **VARIANTS[
        ...     "lite0"].options())
        >>> efficientdet({"c3": c3, "c4": c4, "c5": c5}, config)["scores"].shape
        (None, 3069, 3)

    Reference:
        Tan et al. 2020, https://arxiv.org/abs/1911.09070.
    """
    names = _endpoints.choose("efficientdet", ENDPOINTS, features)
    maps = bifpn.add_levels([features[name] for name in names], config.pyramid)
    grids = feature_sizes(config.anchor_config, config.size)
    _anchored.check_grids("EfficientDet", maps, grids, config.size)
    maps = bifpn.bifpn(maps, config.pyramid)
    outputs = {
        "boxes": (4, 0.0),
        "scores": (config.classes, _anchored.prior_bias(config.prior)),
    }
    boxes = config.anchor_config.per_cell
    tower = _tower.Tower(
        channels=config.channels,
        repeats=config.repeats,
        conv_bias=config.conv_bias,
        numerics=config.pyramid.numerics,
    )
    results = {}
    for output, (columns, bias) in outputs.items():
        name = f"head_{output}"
        convolve = _tower.build(name, tower)
        predict = _tower.separable(name, boxes * columns, True, bias)
        flat = []
        for k, x in enumerate(maps, 1):
            y = predict(convolve(x, k))
            flat.append(_anchored.flatten(y, boxes, columns, f"{name}_level{k}_flat"))
        results[output] = layers.Concatenate(axis=1, name=name)(flat)
    return results


default_boxes = _anchored.boxes_function(
    lambda config: octave_anchors(config.anchor_config, config.size)
)


def build_losses(
    config: EfficientDetConfig, class_weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return the loss of each output.

    Args:
        config: The head.
        class_weights: Factor per class; None: all 1.

    Returns:
        {"boxes": loss, "scores": loss}: Huber (or another box loss) and focal loss,
        with the authors' constants.
    """
    weight = HUBER_WEIGHT if config.box_loss == "huber" else 1.0
    return {
        "boxes": losses.BoxLoss(
            config.box_loss, weight, config.box_weights, delta=HUBER_DELTA
        ),
        "scores": losses.FocalLoss(
            FOCAL_ALPHA, FOCAL_GAMMA, class_weights=class_weights
        ),
    }


def decode(outputs: Mapping[str, Any], config: EfficientDetConfig) -> tuple[Any, Any]:
    """Turn the head's raw outputs into boxes and scores.

    Args:
        outputs: {"boxes": (batch, N, 4), "scores": (batch, N, classes)}.
        config: The head.

    Returns:
        Boxes (x1, y1, x2, y2) as shares of the image's sides, clipped to it, shape
        (batch, N, 4); and probabilities, (batch, N, classes).
    """
    return _anchored.decode(outputs, default_boxes(config), config)


def detect(outputs: Mapping[str, Any], config: EfficientDetConfig) -> nms.Detections:
    """Decode and suppress overlapping boxes, with the config's thresholds.

    Args:
        outputs: {"boxes": (batch, N, 4), "scores": (batch, N, classes)}.
        config: The head.

    Returns:
        `Detections` of `config.max_detections` places per image; boxes are shares of
        the image's sides.
    """
    return _anchored.detect(*decode(outputs, config), config)


def _effdet_names(config: EfficientDetConfig) -> dict[str, str]:
    """Name the layers as effdet does; no published backbone has maps of the width."""
    own = len(ENDPOINTS)
    names = _projected(f"head_p{own}", f"fpn.resample.{own}.conv")
    for cell in range(config.cells):
        for number, node in enumerate(bifpn.topology(config.levels)):
            ours = f"head_cell{cell + 1}_node{number + 1}"
            theirs = f"fpn.cell.{cell}.fnode.{number}"
            for position in node.inputs:
                if cell == 0 and position < own:
                    prefix = f"{theirs}.combine.resample.{position}.conv"
                    names |= _projected(f"{ours}_in{position}", prefix)
            if config.fusion == "fast":
                names[f"{ours}_fuse"] = f"{theirs}.combine"
            names |= _separable(ours, f"{theirs}.after_combine.conv")
            names[f"{ours}_bn"] = f"{theirs}.after_combine.conv.bn"
    for output, net in (("boxes", "box_net"), ("scores", "class_net")):
        for r in range(config.repeats):
            names |= _separable(f"head_{output}_repeat{r + 1}", f"{net}.conv_rep.{r}")
            for level in range(config.levels):
                ours = f"head_{output}_level{level + 1}_repeat{r + 1}_bn"
                names[ours] = f"{net}.bn_rep.{r}.{level}.bn"
        names |= _separable(f"head_{output}", f"{net}.predict")
    return names


def _projected(ours: str, theirs: str) -> dict[str, str]:
    return pairs(ours, f"{theirs}.", {"conv": "conv", "bn": "bn"})


def _separable(ours: str, theirs: str) -> dict[str, str]:
    return pairs(ours, f"{theirs}.", {"dw_conv": "conv_dw", "conv": "conv_pw"})


LAYOUTS: Mapping[str, Layout] = {
    # effdet, timm's detectors; its boxes are (dy, dx, dh, dw).
    "timm": Layout(
        names=_effdet_names,
        top=(),
        reorder=(("head_boxes_conv", (1, 0, 3, 2)),),
    ),
}
