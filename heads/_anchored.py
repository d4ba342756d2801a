"""What heads with default boxes share: outputs in rows, decoding, suppression."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from keras import layers

from keras_lightnets.heads import boxes as box_ops
from keras_lightnets.heads import nms


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
