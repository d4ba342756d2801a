"""Metrics of classes and masks, counted image by image in numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lightnets.heads._labels import VOID

IGNORE = 255
# Share of the image's diagonal within which two boundaries count as the same; as in
# Csurka et al. 2013, https://doi.org/10.5244/C.27.32, section 3.
BOUNDARY_TOLERANCE = 0.0075


class Confusion:
    """Pixels by true and found class.

    Args:
        classes: Number of classes.

    Example:
        >>> counts = Confusion(2)
        >>> counts.update(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0]))
        >>> counts.result(["a", "b"])["pixel_accuracy"]
        0.6666666666666666
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = np.zeros((classes, classes), np.int64)

    def update(self, truth: np.ndarray, found: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: Labels; those not below `classes` do not count.
            found: Labels, of the same shape.
        """
        counted = truth < self.classes
        pairs = truth[counted].astype(np.int64) * self.classes + found[counted]
        cells = np.bincount(pairs, minlength=self.classes**2)
        self.counts += cells.reshape(self.counts.shape)

    def result(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the metrics of what was counted.

        Args:
            names: Class names.

        Returns:
            "miou", "class_accuracy" (mean of the classes) and "pixel_accuracy",
            0..1; "per_class_iou" and "per_class_accuracy": name -> 0..1, or None for
            a class that neither truth nor model (for the accuracy: the truth) has,
            and for `VOID`, which count in no mean; "confusion": rows of true,
            columns of found classes.
        """
        right = np.diag(self.counts).astype(float)
        true, found = self.counts.sum(1), self.counts.sum(0)
        union = true + found - right
        union[[name == VOID for name in names]] = 0
        iou = [_share(r, u) for r, u in zip(right, union, strict=True)]
        recall = [_share(r, t) for r, t in zip(right, true, strict=True)]
        return {
            "miou": mean_of(iou),
            "class_accuracy": mean_of(recall),
            "pixel_accuracy": _share(right.sum(), true.sum()),
            "per_class_iou": dict(zip(names, iou, strict=True)),
            "per_class_accuracy": dict(zip(names, recall, strict=True)),
            "confusion": self.counts.tolist(),
        }


class BoundaryF1:
    """F1 score of class boundaries, mean of images and of the classes they show.

    Args:
        classes: Number of classes; larger labels that are found count in none.
        tolerance: Distance that counts as the same place, as a share of the image's
            diagonal.

    Reference:
        Csurka et al. 2013, https://doi.org/10.5244/C.27.32.
    """

    def __init__(self, classes: int, tolerance: float = BOUNDARY_TOLERANCE) -> None:
        self.tolerance = tolerance
        self._sum = np.zeros(classes)
        self._images = np.zeros(classes, np.int64)

    def update(self, truth: np.ndarray, found: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: Labels (H, W); those not below the number of classes are left out
                of both boundaries.
            found: Labels (H, W).
        """
        valid = truth < len(self._sum)
        radius = max(1, round(self.tolerance * float(np.hypot(*truth.shape))))
        edges_true = _edges(truth, valid)
        edges_found = _edges(found, valid)
        shown = np.union1d(truth[valid], found[valid])
        for label in shown[shown < len(self._sum)].astype(int):
            score = _f1(
                edges_true & (truth == label), edges_found & (found == label), radius
            )
            if score is not None:
                self._sum[label] += score
                self._images[label] += 1

    def result(self) -> float | None:
        """Return the mean of the classes, 0..1, or None without any boundary."""
        seen = self._images > 0
        if not seen.any():
            return None
        return float((self._sum[seen] / self._images[seen]).mean())


def _edges(labels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixels that border on another valid class, above, below, left or right."""
    edges = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        first = tuple(slice(None, -1) if i == axis else slice(None) for i in (0, 1))
        second = tuple(slice(1, None) if i == axis else slice(None) for i in (0, 1))
        differ = (labels[first] != labels[second]) & valid[first] & valid[second]
        edges[first] |= differ
        edges[second] |= differ
    return edges


def _f1(true: np.ndarray, found: np.ndarray, radius: int) -> float | None:
    if not true.any() and not found.any():
        return None
    if not true.any() or not found.any():
        return 0.0
    precision = float(_grown(true, radius)[found].mean())
    recall = float(_grown(found, radius)[true].mean())
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
    import cv2

    side = 2 * radius + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


class TopK:
    """How often the true class is among the best.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.confusion = Confusion(classes)
        self._top5 = 0
        self._count = 0

    def update(self, truth: int, scores: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: Its class.
            scores: (classes,), larger is better.
        """
        # A class of equal score counts as better only where it comes first.
        ahead = (scores > scores[truth]).sum() + (scores[:truth] == scores[truth]).sum()
        self._top5 += int(ahead < 5)
        self._count += 1
        found = np.array([int(scores.argmax())])
        self.confusion.update(np.array([truth]), found)

    def result(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the metrics of what was counted.

        Args:
            names: Class names.

        Returns:
            "top1", "top5" and "class_accuracy" (mean of the classes), 0..1; "correct"
            and "count"; with up to 100 classes "per_class" and "confusion".
        """
        counts = self.confusion.result(names)
        correct = int(np.diag(self.confusion.counts).sum())
        result = {
            "top1": _share(correct, self._count),
            "top5": _share(self._top5, self._count),
            "class_accuracy": counts["class_accuracy"],
            "correct": correct,
            "count": self._count,
        }
        if len(names) <= 100:
            result["per_class"] = counts["per_class_accuracy"]
            result["confusion"] = counts["confusion"]
        return result


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
