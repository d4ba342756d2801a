"""Assignment of ground truth to anchors, in numpy (runs in loader threads)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keras_lightnets.heads import boxes as box_ops

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

BACKGROUND = 0
IGNORED = -1


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """Rules of the assignment.

    Attributes:
        iou: An anchor with at least this overlap is positive.
        ignore_iou: Anchors from this overlap up to `iou` count neither as object
            nor as background; equal to `iou`: no such band.
        distinct: Where several objects have the same best anchor, give the others
            their best free anchor. False: the last one takes it, as torchvision.
        crowd_share: Anchors that lie in a crowd region with at least this share of
            their area are ignored.

    Raises:
        ValueError: If a threshold is not within its range.
    """

    iou: float = 0.5
    ignore_iou: float = 0.5
    distinct: bool = False
    crowd_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.ignore_iou <= self.iou <= 1:
            raise ValueError(
                "MatchConfig needs 0 < ignore_iou <= iou <= 1. Received: "
                f"ignore_iou={self.ignore_iou}, iou={self.iou}"
            )


_DEFAULT = MatchConfig()


def match(
    boxes: Floats,
    labels: Ints,
    anchors: Floats,
    crowd: npt.NDArray[np.bool_] | None = None,
    config: MatchConfig = _DEFAULT,
    weights: tuple[float, ...] = box_ops.BOX_WEIGHTS,
) -> tuple[Floats, Ints]:
    """Assign every anchor an object, the background or nothing.

    An anchor belongs to the object it overlaps most, if by `config.iou` or more;
    in addition every object keeps the anchor that overlaps it most.

    Args:
        boxes: Objects as (x1, y1, x2, y2), shares of the image's sides, of
            positive width and height, shape (M, 4); M may be 0.
        labels: Classes of the objects, from 0, shape (M,).
        anchors: (cx, cy, w, h), shares of the image's sides, shape (N, 4).
        crowd: True where a box is a crowd region: it never gets an anchor, and
            anchors inside it are ignored; shape (M,). None: there are none.
        config: Thresholds.
        weights: Factors of the encodings.

    Returns:
        Encodings (dx, dy, dw, dh), float32, shape (N, 4), zero without an object;
        and labels, int32, shape (N,): 0 background, -1 ignored, class + 1.

    Raises:
        ValueError: If shapes do not fit together.

    Example:
        >>> anchors = np.array([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2]], "float32")
        >>> match(np.array([[0.4, 0.4, 0.6, 0.6]]), np.array([3]), anchors)[1].tolist()
        [4, 0]
    """
    boxes = np.asarray(boxes, "float32").reshape(-1, 4)
    labels = np.asarray(labels, "int32").reshape(-1)
    _check(boxes, labels, crowd)
    encodings = np.zeros((len(anchors), 4), "float32")
    assigned = np.zeros(len(anchors), "int32")
    corners = box_ops.to_corners(anchors)
    if crowd is not None and np.any(crowd):
        crowd = np.asarray(crowd, bool)
        _ignore_crowd(boxes[crowd], corners, assigned, config.crowd_share)
        boxes, labels = boxes[~crowd], labels[~crowd]
    if not len(boxes):
        return encodings, assigned
    overlaps = box_ops.iou(boxes, corners)
    owner = _owners(overlaps, config)
    assigned[owner == _BETWEEN] = IGNORED
    positive = np.flatnonzero(owner >= 0)
    owner = owner[positive]
    assigned[positive] = labels[owner] + 1
    encodings[positive] = box_ops.encode(boxes[owner], anchors[positive], weights)
    return encodings, assigned


_NOBODY, _BETWEEN = -1, -2


def _check(boxes: Floats, labels: Ints, crowd: npt.NDArray[np.bool_] | None) -> None:
    sizes = {len(boxes), len(labels), len(boxes) if crowd is None else len(crowd)}
    if len(sizes) > 1:
        raise ValueError(
            "match needs as many labels (and crowd marks) as boxes. Received: "
            f"{len(boxes)} boxes, {len(labels)} labels"
            + ("" if crowd is None else f", {len(crowd)} crowd marks")
        )


def _owners(overlaps: Floats, config: MatchConfig) -> npt.NDArray[np.int64]:
    """Return per anchor the object's index, -1 for none, -2 for in between."""
    best = overlaps.max(axis=0)
    owner = np.full(len(best), _NOBODY, "int64")
    owner[best >= config.ignore_iou] = _BETWEEN
    # argmax along the short axis is slow for all anchors; few are positive.
    positive = np.flatnonzero(best >= config.iou)
    owner[positive] = overlaps[:, positive].argmax(axis=0)
    favourite = overlaps.argmax(axis=1)
    owner[favourite] = np.arange(len(overlaps))
    if config.distinct:
        _separate(overlaps, favourite, owner)
    return owner


def _separate(
    overlaps: Floats, favourite: npt.NDArray[np.int64], owner: npt.NDArray[np.int64]
) -> None:
    """Give objects that lost their best anchor the best one that is nobody's best."""
    objects = np.arange(len(overlaps))
    taken = np.zeros(overlaps.shape[1], bool)
    taken[favourite] = True
    for loser in objects[owner[favourite] != objects]:
        if taken.all():
            return
        anchor = int(np.where(taken, -1.0, overlaps[loser]).argmax())
        owner[anchor] = loser
        taken[anchor] = True


def _ignore_crowd(
    regions: Floats, corners: Floats, assigned: Ints, share: float
) -> None:
    inside = box_ops.intersection(regions, corners).max(axis=0)
    assigned[inside >= share * box_ops.area(corners)] = IGNORED
