"""Non-maximum suppression, hard and soft, with outputs of fixed size."""

from typing import Any, NamedTuple

from keras import ops

from keras_lightnets._errors import unknown
from keras_lightnets.heads import boxes as box_ops

KINDS = ("hard", "soft")


class Detections(NamedTuple):
    """Objects found, best first, padded to a fixed number per image.

    Attributes:
        boxes: (x1, y1, x2, y2), shape (batch, D, 4); 0 in padding.
        scores: Shape (batch, D); 0 in padding.
        labels: Classes from 0, int32, shape (batch, D); -1 in padding.
        count: Objects per image, int32, shape (batch,).
    """

    boxes: Any
    scores: Any
    labels: Any
    count: Any


def nms(
    boxes: Any,
    scores: Any,
    *,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.55,
    max_detections: int = 100,
    per_class: int = 300,
    candidates: int = 1000,
    class_agnostic: bool = False,
) -> Detections:
    """Keep, per class, the best of boxes that overlap.

    The kept set is that of the greedy algorithm: in order of score, a box stays
    unless it overlaps a kept box of its class by more than `iou_threshold`. Equal
    scores: the lower class, then the earlier box, comes first.

    Args:
        boxes: (x1, y1, x2, y2), shape (batch, N, 4).
        scores: Probabilities per class, no background, shape (batch, N, classes).
        score_threshold: Only scores above it are considered.
        iou_threshold: Overlap above which the lesser box goes.
        max_detections: Objects returned per image at most.
        per_class: Boxes of a class that are considered, by score.
        candidates: Boxes of all classes together that are considered, by score;
            memory grows with its square.
        class_agnostic: Let a kept box remove boxes of every class.

    Returns:
        `Detections` with D = `max_detections`.

    Raises:
        ValueError: If a threshold or number is out of range.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[[0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]]], "float32")
        >>> scores = np.array([[[0.9], [0.8], [0.7]]], "float32")
        >>> [round(float(s), 1) for s in nms(boxes, scores, max_detections=3).scores[0]]
        [0.9, 0.7, 0.0]
    """
    _check(max_detections, per_class, candidates)
    if not 0 <= iou_threshold <= 1:
        raise ValueError(
            f"nms needs 0 <= iou_threshold <= 1. Received: iou_threshold="
            f"{iou_threshold}"
        )
    chosen, order, labels = _candidates(
        boxes, scores, score_threshold, per_class, candidates
    )
    valid = ops.cast(order > 0, "float32")
    overlap = ops.cast(box_ops.iou(chosen, chosen) > iou_threshold, "float32")
    rivals = overlap * _same_class(labels, class_agnostic) * _earlier(chosen)
    kept = _greedy(rivals, valid)
    return _pack(chosen, order, labels, kept, max_detections)


def soft_nms(
    boxes: Any,
    scores: Any,
    *,
    score_threshold: float = 0.001,
    sigma: float = 0.5,
    max_detections: int = 100,
    per_class: int = 300,
    candidates: int = 1000,
    class_agnostic: bool = False,
) -> Detections:
    """Lower, per class, the scores of boxes that overlap better ones.

    Again and again the best box left is taken, and the scores of the others of its
    class fall by the factor exp(-overlap^2 / sigma).

    Args:
        boxes: (x1, y1, x2, y2), shape (batch, N, 4).
        scores: Probabilities per class, no background, shape (batch, N, classes).
        score_threshold: Only scores above it are considered and returned.
        sigma: Smaller values lower scores more.
        max_detections: Objects returned per image at most.
        per_class: Boxes of a class that are considered, by score.
        candidates: Boxes of all classes together that are considered, by score;
            memory grows with its square.
        class_agnostic: Let a box lower the scores of every class.

    Returns:
        `Detections` with D = `max_detections` and the lowered scores.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]]], "float32")
        >>> scores = np.array([[[0.9], [0.8], [0.7]]], "float32")
        >>> found = soft_nms(boxes, scores, max_detections=3).scores[0]
        >>> [round(float(s), 2) for s in found]
        [0.9, 0.7, 0.11]

    Reference:
        Bodla et al. 2017, https://arxiv.org/abs/1704.04503.
    """
    _check(max_detections, per_class, candidates)
    if not sigma > 0:
        raise ValueError(f"soft_nms needs sigma > 0. Received: sigma={sigma}")
    chosen, order, labels = _candidates(
        boxes, scores, score_threshold, per_class, candidates
    )
    overlap = box_ops.iou(chosen, chosen)
    same = _same_class(labels, class_agnostic)
    # A box that was taken gets the score 0.
    decay = same * ops.exp(-ops.square(overlap) / sigma) + 1.0 - same
    decay = decay * (1.0 - ops.eye(chosen.shape[1]))
    start = ops.maximum(order, 0.0)
    index, taken = _take_best(start, decay, max_detections, score_threshold)
    chosen = ops.take_along_axis(chosen, ops.expand_dims(index, -1), axis=1)
    labels = ops.take_along_axis(labels, index, axis=1)
    kept = ops.cast(taken > 0, "float32")
    return _pack(chosen, taken, labels, kept, max_detections)


def class_scores(logits: Any, activation: str) -> Any:
    """Turn a head's logits into probabilities per class.

    Args:
        logits: Shape (..., classes), for "softmax" with the background in front.
        activation: "softmax" or "sigmoid".

    Returns:
        Probabilities without the background, shape (..., classes).

    Raises:
        ValueError: If `activation` is unknown.
    """
    if activation == "softmax":
        return ops.softmax(logits, axis=-1)[..., 1:]
    if activation == "sigmoid":
        return ops.sigmoid(logits)
    raise unknown("score_activation", activation, ("softmax", "sigmoid"))


def _take_best(
    scores: Any, decay: Any, count: int, threshold: float
) -> tuple[Any, Any]:
    """Take the best box `count` times, each time lowering the others' scores.

    Returns the positions in the order in which they were taken, and their scores
    at that moment, 0 where no box was left.
    """
    rounds = min(count, scores.shape[1])

    def take(i: Any, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        left, index, taken = state
        best = ops.argmax(left, axis=1)
        here = ops.cast(ops.equal(ops.arange(rounds), i), "float32")
        index = index + ops.expand_dims(ops.cast(best, "float32"), 1) * here
        taken = taken + ops.expand_dims(ops.max(left, axis=1), 1) * here
        row = ops.take_along_axis(decay, ops.reshape(best, (-1, 1, 1)), axis=1)
        left = left * ops.squeeze(row, axis=1)
        return ops.where(left > threshold, left, 0.0), index, taken

    empty = ops.zeros_like(scores[:, :rounds])
    _, index, taken = ops.fori_loop(0, rounds, take, (scores, empty, empty))
    return ops.cast(index, "int32"), taken


def _check(max_detections: int, per_class: int, candidates: int) -> None:
    if min(max_detections, per_class, candidates) < 1:
        raise ValueError(
            "Suppression needs max_detections, per_class and candidates of at least 1. "
            f"Received: max_detections={max_detections}, per_class={per_class}, "
            f"candidates={candidates}"
        )


def _candidates(
    boxes: Any, scores: Any, score_threshold: float, per_class: int, candidates: int
) -> tuple[Any, Any, Any]:
    """Return boxes, scores (-1 below the threshold) and labels, best first."""
    boxes = ops.convert_to_tensor(boxes, "float32")
    scores = ops.convert_to_tensor(scores, "float32")
    scores = ops.where(scores > score_threshold, scores, -1.0)
    return _select(boxes, scores, per_class, candidates)


def _select(
    boxes: Any, scores: Any, per_class: int, candidates: int
) -> tuple[Any, Any, Any]:
    """Return boxes (B, M, 4), scores (B, M) and labels (B, M), best first."""
    anchors, classes = scores.shape[1], scores.shape[2]
    per_class = min(per_class, anchors)
    # (B, C, N) -> the best of each class, then the best of all, class-major.
    best, index = ops.top_k(ops.transpose(scores, (0, 2, 1)), per_class)
    total = classes * per_class
    best = ops.reshape(best, (-1, total))
    index = ops.reshape(index, (-1, total))
    order, place = ops.top_k(best, min(candidates, total))
    index = ops.take_along_axis(index, place, axis=1)
    labels = ops.cast(ops.floor_divide(place, per_class), "int32")
    chosen = ops.take_along_axis(boxes, ops.expand_dims(index, -1), axis=1)
    return chosen, order, labels


def _same_class(labels: Any, class_agnostic: bool) -> Any:
    """Return 1 for pairs that may suppress each other, (B, M, M)."""
    same = ops.equal(ops.expand_dims(labels, 2), ops.expand_dims(labels, 1))
    if class_agnostic:
        same = ops.ones_like(same)
    return ops.cast(same, "float32")


def _earlier(boxes: Any) -> Any:
    """Return 1 where the row's box is better than the column's, (M, M)."""
    size = boxes.shape[1]
    return ops.triu(ops.ones((size, size), "float32"), k=1)


def _greedy(rivals: Any, valid: Any) -> Any:
    """Return 1 for kept boxes, (B, M).

    A box stays if no kept box removes it. Repeating that rule settles at least one
    more box per round, in order of score, and ends at the greedy result.
    """

    def unsettled(kept: Any, before: Any) -> Any:
        return ops.any(ops.not_equal(kept, before))

    def settle(kept: Any, before: Any) -> tuple[Any, Any]:
        hits = ops.squeeze(ops.matmul(ops.expand_dims(kept, 1), rivals), axis=1)
        return ops.where(hits > 0.5, ops.zeros_like(valid), valid), kept

    start = (valid, ops.zeros_like(valid) - 1.0)
    return ops.while_loop(unsettled, settle, start)[0]


def _pack(
    boxes: Any, scores: Any, labels: Any, kept: Any, max_detections: int
) -> Detections:
    """Move the kept boxes to the front and pad."""
    missing = max(0, max_detections - boxes.shape[1])
    size = max_detections - missing
    # Candidates are in order of score, so the kept ones' ranks are their order.
    ranks = ops.cast(ops.flip(ops.arange(boxes.shape[1])), "float32") + 1.0
    found, index = ops.top_k(kept * ranks, size)
    real = found > 0
    labels = ops.where(real, ops.take_along_axis(labels, index, axis=1), -1)
    real = ops.cast(real, "float32")
    scores = ops.take_along_axis(scores, index, axis=1) * real
    boxes = ops.take_along_axis(boxes, ops.expand_dims(index, -1), axis=1)
    boxes = boxes * ops.expand_dims(real, -1)
    return Detections(
        ops.pad(boxes, ((0, 0), (0, missing), (0, 0))),
        ops.pad(scores, ((0, 0), (0, missing))),
        ops.pad(labels, ((0, 0), (0, missing)), constant_values=-1),
        ops.cast(ops.sum(real, axis=1), "int32"),
    )
