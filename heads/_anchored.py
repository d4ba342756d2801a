"""What heads with default boxes share: outputs in rows, decoding, suppression."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from keras import layers

from keras_lightnets._errors import unknown
from keras_lightnets.heads import boxes as box_ops
from keras_lightnets.heads import losses, nms

# Activation of the scores -> columns for the background.
BACKGROUND_COLUMNS: Mapping[str, int] = {"softmax": 1, "sigmoid": 0}


class Anchored(Protocol):
    """What the functions here read of a head's config."""

    @property
    def box_weights(self) -> tuple[float, float, float, float]:
        """Factors of the box encodings."""

    @property
    def score_activation(self) -> str:
        """Activation of the scores, "softmax" or "sigmoid"."""

    @property
    def suppression(self) -> str:
        """How overlapping boxes are suppressed, a name in `nms.KINDS`."""

    @property
    def class_agnostic(self) -> bool:
        """Whether boxes of different classes suppress each other."""

    @property
    def score_threshold(self) -> float:
        """Score that detections need to exceed."""

    @property
    def iou_threshold(self) -> float:
        """Overlap above which the lesser box goes."""

    @property
    def max_detections(self) -> int:
        """Detections per image at most."""


@dataclass(frozen=True, kw_only=True)
class SSDConfig:
    """What the heads of SSD's kind have in common.

    Attributes:
        classes: Number of classes, without the background.
        image_size: Side, or (height, width), of the network's input in pixels.
        score_activation: "softmax" (background column, multibox loss) or "sigmoid"
            (no background column, focal loss).
        padding: "same" or "symmetric" (PyTorch's and Caffe's) in stride-2 layers.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.
        box_weights: Factors of the box encodings.
        box_loss: "smooth_l1", "huber" or "giou".
        prior: Score of every class before training, for "sigmoid".
        score_threshold: Detections need a score above it.
        iou_threshold: Overlap above which the lesser box of a class goes.
        max_detections: Detections per image at most.
        suppression: "hard" or "soft".
        class_agnostic: Whether boxes of different classes suppress each other.

    Raises:
        ValueError: If a value is not legal; the legal ones are listed.
    """

    classes: int
    image_size: int | tuple[int, int] = 320
    score_activation: str = "softmax"
    padding: str = "same"
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.97
    box_weights: tuple[float, float, float, float] = box_ops.BOX_WEIGHTS
    box_loss: str = "smooth_l1"
    prior: float = 0.01
    score_threshold: float = 0.001
    iou_threshold: float = 0.55
    max_detections: int = 100
    suppression: str = "hard"
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        for what, value, legal in (
            ("score_activation", self.score_activation, BACKGROUND_COLUMNS),
            ("padding", self.padding, ("same", "symmetric")),
            ("box_loss", self.box_loss, losses.BOX_KINDS),
            ("suppression", self.suppression, nms.KINDS),
        ):
            if value not in legal:
                raise unknown(f"{what} of {name}", value, legal)
        if self.classes < 1 or min(self.size) < 1 or not 0 < self.prior < 1:
            raise ValueError(
                f"{name} needs classes >= 1, a positive image_size and 0 < prior < 1. "
                f"Received: classes={self.classes}, image_size={self.image_size}, "
                f"prior={self.prior}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return size_of(self.image_size)

    @property
    def columns(self) -> int:
        """Number of score columns: classes and, for "softmax", the background."""
        return self.classes + BACKGROUND_COLUMNS[self.score_activation]

    @property
    def score_bias(self) -> float:
        """Initial bias of the scores."""
        return prior_bias(self.prior if self.score_activation == "sigmoid" else 0.5)


def boxes_function(
    make: Callable[[Any], npt.NDArray[np.float32]],
) -> Callable[[Any], npt.NDArray[np.float32]]:
    """Return a head's `default_boxes`, which keeps what it has made.

    Args:
        make: config -> default boxes in the order of the head's outputs.

    Returns:
        config -> (cx, cy, w, h) as shares of the image's sides, float32, shape
        (N, 4); shared and read-only.
    """

    @functools.lru_cache(maxsize=32)
    def default_boxes(config: Any) -> npt.NDArray[np.float32]:
        anchors = make(config)
        anchors.setflags(write=False)
        return anchors

    return default_boxes


def ssd_losses(
    config: SSDConfig, class_weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return the loss of each output.

    Args:
        config: The head.
        class_weights: Factor per class; None: all 1.

    Returns:
        {"boxes": loss, "scores": loss}: the config's box loss, and multibox (softmax)
        or focal (sigmoid) loss.
    """
    kinds = {"softmax": losses.MultiboxLoss, "sigmoid": losses.FocalLoss}
    return {
        "boxes": losses.BoxLoss(config.box_loss, box_weights=config.box_weights),
        "scores": kinds[config.score_activation](class_weights=class_weights),
    }


def size_of(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a side or a pair."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def prior_bias(prior: float) -> float:
    """Return the bias that makes a sigmoid start at a probability."""
    return -float(np.log((1.0 - prior) / prior))


def flatten(x: Any, boxes: int, columns: int, name: str) -> Any:
    """Put one default box into each row.

    Args:
        x: (batch, rows, cols, boxes * columns).
        boxes: Default boxes per cell.
        columns: Values per default box.
        name: Of the layer.

    Returns:
        (batch, rows * cols * boxes, columns).
    """
    rows, cols = x.shape[1:3]
    # A static length keeps shape arithmetic out of the exported graph.
    length = -1 if None in (rows, cols) else rows * cols * boxes
    return layers.Reshape((length, columns), name=name)(x)


def check_grids(
    head: str,
    maps: Sequence[Any],
    grids: Sequence[tuple[int, int]],
    size: tuple[int, int],
) -> None:
    """Check that feature maps are the grids on which the default boxes lie.

    Args:
        head: Name for the error.
        maps: Feature maps.
        grids: (rows, columns) per map.
        size: The config's image size.

    Raises:
        ValueError: If they are not.
    """
    built = tuple(tuple(x.shape[1:3]) for x in maps)
    for grid, (rows, cols) in zip(grids, built, strict=True):
        if (rows or grid[0], cols or grid[1]) != grid:
            raise ValueError(
                f"The default boxes of {head} for image_size={size} lie on grids of "
                f"{tuple(grids)}, but the feature maps have {built}. Give {head}Config "
                "the image_size of the backbone's input, and use the backbone's "
                "output_stride=32."
            )


def decode(
    outputs: Mapping[str, Any], anchors: npt.NDArray[np.float32], config: Anchored
) -> tuple[Any, Any]:
    """Turn a head's raw outputs into boxes and scores.

    Args:
        outputs: {"boxes": (batch, N, 4), "scores": (batch, N, columns)}.
        anchors: Default boxes (cx, cy, w, h), shape (N, 4).
        config: The head's.

    Returns:
        Boxes (x1, y1, x2, y2) as shares of the image's sides, clipped to it, shape
        (batch, N, 4); and probabilities without background, (batch, N, classes).
    """
    boxes = box_ops.decode(outputs["boxes"], anchors, config.box_weights)
    scores = nms.class_scores(outputs["scores"], config.score_activation)
    return box_ops.clip(boxes), scores


def detect(boxes: Any, scores: Any, config: Anchored) -> nms.Detections:
    """Suppress overlapping boxes, with the config's thresholds.

    Args:
        boxes: (x1, y1, x2, y2), shape (batch, N, 4).
        scores: Probabilities, shape (batch, N, classes).
        config: The head's.

    Returns:
        `Detections` of `config.max_detections` places per image.
    """
    if config.suppression == "soft":
        return nms.soft_nms(
            boxes,
            scores,
            score_threshold=config.score_threshold,
            max_detections=config.max_detections,
            class_agnostic=config.class_agnostic,
        )
    return nms.nms(
        boxes,
        scores,
        score_threshold=config.score_threshold,
        iou_threshold=config.iou_threshold,
        max_detections=config.max_detections,
        class_agnostic=config.class_agnostic,
    )
