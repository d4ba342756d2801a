"""Box geometry: corners and centres, overlap, encoding against anchors.

Every function takes numpy arrays (and then returns numpy arrays, without loading
keras) or tensors of the active backend.
"""

import math
from typing import Any

import numpy as np

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

# Largest log of a size ratio that is decoded: 1000 px against a 16 px anchor.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def to_corners(boxes: Any) -> Any:
    """Turn (cx, cy, w, h) into (x1, y1, x2, y2).

    Args:
        boxes: Array or tensor of shape (..., 4).

    Returns:
        The same boxes as corners, shape (..., 4).

    Example:
        >>> to_corners(np.array([[0.5, 0.5, 0.5, 0.25]])).tolist()
        [[0.25, 0.375, 0.75, 0.625]]
    """
    half = boxes[..., 2:] * 0.5
    centre = boxes[..., :2]
    return _ops(boxes).concatenate([centre - half, centre + half], axis=-1)


def to_centres(boxes: Any) -> Any:
    """Turn (x1, y1, x2, y2) into (cx, cy, w, h).

    Args:
        boxes: Array or tensor of shape (..., 4).

    Returns:
        The same boxes as centre and size, shape (..., 4).
    """
    size = boxes[..., 2:] - boxes[..., :2]
    return _ops(boxes).concatenate([boxes[..., :2] + size * 0.5, size], axis=-1)


def area(boxes: Any) -> Any:
    """Return the area of boxes given by corners.

    Args:
        boxes: (x1, y1, x2, y2), shape (..., 4).

    Returns:
        Areas, shape (...).
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(first: Any, second: Any) -> Any:
    """Return the common area of every pair of boxes.

    Args:
        first: (x1, y1, x2, y2), shape (..., M, 4).
        second: (x1, y1, x2, y2), shape (..., N, 4).

    Returns:
        Areas >= 0, shape (..., M, N).
    """
    ops = _ops(first, second)
    # One coordinate at a time: no (M, N, 2) arrays.
    sides = [
        ops.maximum(
            ops.minimum(first[..., :, None, i + 2], second[..., None, :, i + 2])
            - ops.maximum(first[..., :, None, i], second[..., None, :, i]),
            0.0,
        )
        for i in (0, 1)
    ]
    return sides[0] * sides[1]


def iou(first: Any, second: Any) -> Any:
    """Return intersection over union of every pair of boxes.

    Args:
        first: (x1, y1, x2, y2), shape (..., M, 4).
        second: (x1, y1, x2, y2), shape (..., N, 4).

    Returns:
        Values of 0 to 1, shape (..., M, N); 0 where both boxes are empty.

    Example:
        >>> box = np.array([[0.0, 0.0, 1.0, 1.0]], "float32")
        >>> iou(box, box * [1, 1, 1, 0.5]).tolist()
        [[0.5]]
    """
    ops = _ops(first, second)
    common = intersection(first, second)
    union = area(first)[..., :, None] + area(second)[..., None, :] - common
    return common / ops.maximum(union, 1e-12)


def giou(first: Any, second: Any) -> Any:
    """Return the generalised intersection over union of boxes, one to one.

    Args:
        first: (x1, y1, x2, y2), shape (..., 4).
        second: (x1, y1, x2, y2), shape (..., 4).

    Returns:
        Values of -1 (far apart) to 1 (equal), shape (...).

    Reference:
        Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630.
    """
    ops = _ops(first, second)
    low = ops.maximum(first[..., :2], second[..., :2])
    high = ops.minimum(first[..., 2:], second[..., 2:])
    common = ops.prod(ops.maximum(high - low, 0.0), axis=-1)
    union = area(first) + area(second) - common
    low = ops.minimum(first[..., :2], second[..., :2])
    high = ops.maximum(first[..., 2:], second[..., 2:])
    hull = ops.prod(high - low, axis=-1)
    union, hull = ops.maximum(union, 1e-12), ops.maximum(hull, 1e-12)
    return common / union - (hull - union) / hull


def encode(
    boxes: Any,
    anchors: Any,
    weights: tuple[float, ...] = BOX_WEIGHTS,
) -> Any:
    """Express boxes relative to anchors, one to one.

    Args:
        boxes: (x1, y1, x2, y2), shape (..., 4), of positive width and height.
        anchors: (cx, cy, w, h) in the same unit, shape (..., 4).
        weights: Factors of (dx, dy, dw, dh).

    Returns:
        (dx, dy, dw, dh), shape (..., 4): offset of the centre in anchor sizes and
        log of the size ratio, times the weights.

    Reference:
        Liu et al. 2016 (SSD), https://arxiv.org/abs/1512.02325.
    """
    ops = _ops(boxes, anchors)
    boxes = to_centres(boxes)
    offset = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    ratio = ops.log(boxes[..., 2:] / anchors[..., 2:])
    factors = np.asarray(weights, "float32")
    return ops.concatenate([offset * factors[:2], ratio * factors[2:]], axis=-1)


def decode(
    encodings: Any,
    anchors: Any,
    weights: tuple[float, ...] = BOX_WEIGHTS,
) -> Any:
    """Turn encodings back into boxes; the inverse of `encode`.

    Args:
        encodings: (dx, dy, dw, dh), shape (..., 4).
        anchors: (cx, cy, w, h), shape (..., 4).
        weights: Factors of (dx, dy, dw, dh) that `encode` used.

    Returns:
        (x1, y1, x2, y2) in the anchors' unit, shape (..., 4), not clipped to the
        image. Size ratios are limited to 62.5, so nothing overflows.
    """
    ops = _ops(encodings, anchors)
    factors = np.asarray([1.0 / w for w in weights], "float32")
    centre = encodings[..., :2] * factors[:2] * anchors[..., 2:] + anchors[..., :2]
    ratio = ops.minimum(encodings[..., 2:] * factors[2:], MAX_LOG_RATIO)
    size = ops.exp(ratio) * anchors[..., 2:]
    return to_corners(ops.concatenate([centre, size], axis=-1))


def clip(boxes: Any, height: float = 1.0, width: float = 1.0) -> Any:
    """Clip boxes to the image.

    Args:
        boxes: (x1, y1, x2, y2), shape (..., 4).
        height: Height of the image in the boxes' unit.
        width: Width of the image in the boxes' unit.

    Returns:
        Boxes within the image, shape (..., 4).
    """
    limit = np.asarray([width, height, width, height], "float32")
    ops = _ops(boxes)
    return ops.minimum(ops.maximum(boxes, 0.0), limit)


def _ops(*arrays: Any) -> Any:
    """Return numpy for numpy arrays and keras.ops as soon as one is a tensor."""
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np
    from keras import ops

    return ops
