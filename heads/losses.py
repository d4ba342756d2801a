"""Losses of anchor-based detectors.

They are Keras losses, for `compile(loss={"boxes": ..., "scores": ...})`, and plain
callables on tensors of the active backend. Each returns the sum over the batch's
anchors divided by the number of positive anchors in the batch (at least 1).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_lightnets._errors import unknown
from keras_lightnets.heads import boxes as box_ops

PACKAGE = "keras_lightnets"
BOX_KINDS = ("smooth_l1", "huber", "giou")


@keras.saving.register_keras_serializable(package=PACKAGE)
class BoxLoss(keras.losses.Loss):
    """Localisation loss over the positive anchors.

    Call arguments: `y_true` of shape (batch, N, 5): encodings of `matching.match`
    and in the last column 1 for positive anchors, else 0; `y_pred` of shape
    (batch, N, 4): predicted encodings.

    Args:
        kind: "smooth_l1" or "huber" on the encodings, or "giou" on the boxes they
            stand for. Smooth L1 is Huber of delta 1.
        weight: Factor of the loss.
        box_weights: Factors of the encodings; used by "giou".
        delta: Error up to which "huber" is quadratic.
        name: Name in the logs.
        reduction: As for every Keras loss; the default gives the sum over the
            batch divided by its positives.

    Raises:
        ValueError: If `kind` is unknown or `delta` is not positive.

    Example:
        >>> loss = BoxLoss()
        >>> float(loss(np.zeros((1, 2, 5), "float32"), np.ones((1, 2, 4), "float32")))
        0.0

    Reference:
        Liu et al. 2016 (SSD), https://arxiv.org/abs/1512.02325.
    """

    def __init__(
        self,
        kind: str = "smooth_l1",
        weight: float = 1.0,
        box_weights: Sequence[float] = box_ops.BOX_WEIGHTS,
        delta: float = 1.0,
        name: str = "box_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        if kind not in BOX_KINDS:
            raise unknown("kind of BoxLoss", kind, BOX_KINDS)
        if not delta > 0:
            raise ValueError(f"BoxLoss needs delta > 0. Received: delta={delta}")
        super().__init__(name=name, reduction=reduction)
        self.kind = kind
        self.weight = weight
        self.box_weights = tuple(box_weights)
        self.delta = delta

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per image, scaled so that its mean is the batch's loss.

        Args:
            y_true: (batch, N, 5).
            y_pred: (batch, N, 4).

        Returns:
            Values >= 0, shape (batch,).
        """
        target, positive = y_true[..., :4], y_true[..., 4]
        if self.kind == "giou":
            # Overlap does not change with the frame: take a unit anchor for all.
            unit = np.asarray([0.0, 0.0, 1.0, 1.0], "float32")
            pred_boxes = box_ops.decode(y_pred, unit, self.box_weights)
            true_boxes = box_ops.decode(target, unit, self.box_weights)
            each = 1.0 - box_ops.giou(pred_boxes, true_boxes)
        else:
            delta = self.delta if self.kind == "huber" else 1.0
            error = ops.abs(target - y_pred)
            flat = delta * (error - 0.5 * delta)
            each = ops.sum(
                ops.where(error < delta, 0.5 * ops.square(error), flat), axis=-1
            )
        per_image = self.weight * ops.sum(each * positive, axis=-1)
        return _per_positive(per_image, positive)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "kind": self.kind,
            "weight": self.weight,
            "box_weights": self.box_weights,
            "delta": self.delta,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class MultiboxLoss(keras.losses.Loss):
    """Softmax cross-entropy with hard-negative mining.

    Per image, the background anchors of highest loss are kept, a fixed number per
    positive anchor; the others do not count.

    Call arguments: `y_true` of shape (batch, N): 0 background, -1 ignored, class +
    1 otherwise; `y_pred` of shape (batch, N, classes + 1): logits, background first.

    Args:
        negatives_per_positive: Background anchors kept per positive anchor.
        min_negatives: Background anchors kept per image at least; 0: an image
            without objects does not count, as in torchvision.
        class_weights: Factor per class (without background), such as those of
            `class_balanced_weights`; None: all 1.
        weight: Factor of the loss.
        name: Name in the logs.
        reduction: As for every Keras loss; the default gives the sum over the
            batch divided by its positives.

    Example:
        >>> loss = MultiboxLoss()
        >>> logits = np.zeros((1, 8, 3), "float32")
        >>> round(float(loss(np.eye(1, 8, dtype="int32"), logits)), 3)  # 4 ln(3)
        4.394

    Reference:
        Liu et al. 2016 (SSD), section 2.2, https://arxiv.org/abs/1512.02325.
    """

    def __init__(
        self,
        negatives_per_positive: float = 3.0,
        min_negatives: int = 0,
        class_weights: Sequence[float] | None = None,
        weight: float = 1.0,
        name: str = "score_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.negatives_per_positive = negatives_per_positive
        self.min_negatives = min_negatives
        self.class_weights = _as_tuple(class_weights)
        self.weight = weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per image, scaled so that its mean is the batch's loss.

        Args:
            y_true: (batch, N).
            y_pred: (batch, N, classes + 1).

        Returns:
            Values >= 0, shape (batch,).
        """
        labels = ops.cast(y_true, "int32")
        positive = ops.cast(labels > 0, y_pred.dtype)
        negative = ops.cast(ops.equal(labels, 0), y_pred.dtype)
        each = ops.sparse_categorical_crossentropy(
            ops.maximum(labels, 0), y_pred, from_logits=True
        )
        wanted = self.negatives_per_positive * ops.sum(positive, axis=-1)
        wanted = ops.maximum(wanted, float(self.min_negatives))
        mined = _sum_of_largest(each * negative, wanted)
        if self.class_weights is not None:
            factors = np.asarray((0.0, *self.class_weights), "float32")
            positive_loss = each * ops.take(factors, ops.maximum(labels, 0))
        else:
            positive_loss = each * positive
        per_image = self.weight * (ops.sum(positive_loss, axis=-1) + mined)
        return _per_positive(per_image, positive)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "negatives_per_positive": self.negatives_per_positive,
            "min_negatives": self.min_negatives,
            "class_weights": self.class_weights,
            "weight": self.weight,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class FocalLoss(keras.losses.Loss):
    """Sigmoid focal loss over all anchors that are not ignored.

    Call arguments: `y_true` of shape (batch, N): 0 background, -1 ignored, class +
    1 otherwise; `y_pred` of shape (batch, N, classes): logits, no background column.

    Args:
        alpha: Share of the loss given to positive entries; below 0: no balance.
        gamma: How much well classified entries count less; 0: cross-entropy.
        class_weights: Factor per class; None: all 1.
        weight: Factor of the loss.
        name: Name in the logs.
        reduction: As for every Keras loss; the default gives the sum over the
            batch divided by its positives.

    Example:
        >>> loss = FocalLoss()
        >>> labels, logits = np.ones((1, 1), "int32"), np.zeros((1, 1, 1), "float32")
        >>> round(float(loss(labels, logits)), 4)
        0.0433

    Reference:
        Lin et al. 2017, https://arxiv.org/abs/1708.02002.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        weight: float = 1.0,
        name: str = "score_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.alpha = alpha
        self.gamma = gamma
        self.class_weights = _as_tuple(class_weights)
        self.weight = weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per image, scaled so that its mean is the batch's loss.

        Args:
            y_true: (batch, N).
            y_pred: (batch, N, classes).

        Returns:
            Values >= 0, shape (batch,).
        """
        labels = ops.cast(y_true, "int32")
        positive = ops.cast(labels > 0, y_pred.dtype)
        counted = ops.cast(labels >= 0, y_pred.dtype)
        target = ops.one_hot(
            ops.maximum(labels - 1, 0), y_pred.shape[-1], dtype=y_pred.dtype
        )
        target = target * ops.expand_dims(positive, -1)
        # log(1 + exp(-|x|)) form: exact for large logits of either sign.
        entropy = ops.relu(y_pred) - y_pred * target + ops.softplus(-ops.abs(y_pred))
        prob = ops.sigmoid(y_pred)
        miss = prob + target - 2.0 * prob * target
        each = entropy * ops.power(miss, self.gamma)
        if self.alpha >= 0:
            each = each * (1.0 - self.alpha + (2.0 * self.alpha - 1.0) * target)
        if self.class_weights is not None:
            each = each * np.asarray(self.class_weights, "float32")
        per_image = ops.sum(ops.sum(each, axis=-1) * counted, axis=-1)
        return _per_positive(self.weight * per_image, positive)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "gamma": self.gamma,
            "class_weights": self.class_weights,
            "weight": self.weight,
        }


def class_balanced_weights(
    counts: Sequence[int], beta: float = 0.999
) -> npt.NDArray[np.float32]:
    """Weigh classes by the inverse of their effective number of objects.

    Args:
        counts: Objects per class in the training set.
        beta: 0: all equal; towards 1: by inverse frequency.

    Returns:
        Factors of mean 1 over the classes that occur, float32, shape (classes,);
        1 for a class without objects.

    Raises:
        ValueError: If `beta` is not within 0 <= beta < 1 or a count is negative.

    Reference:
        Cui et al. 2019, https://arxiv.org/abs/1901.05555.
    """
    number = np.asarray(counts, "float64")
    if not 0 <= beta < 1 or (number < 0).any():
        raise ValueError(
            "class_balanced_weights needs 0 <= beta < 1 and counts >= 0. Received: "
            f"beta={beta}, counts={list(counts)}"
        )
    weights = np.ones_like(number)
    seen = number > 0
    if seen.any():
        weights[seen] = (1.0 - beta) / (1.0 - beta ** number[seen])
        weights[seen] /= weights[seen].mean()
    return weights.astype("float32")


def _as_tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _sum_of_largest(values: Any, count: Any) -> Any:
    """Sum the `count` largest entries of each row; values >= 0, count per row."""
    # Sorting keeps shapes static, and ties count as often as they are wanted.
    ordered = ops.flip(ops.sort(values, axis=-1), axis=-1)
    rank = ops.arange(ops.shape(values)[-1], dtype="float32")
    kept = ops.cast(rank < ops.expand_dims(count, -1), values.dtype)
    return ops.sum(ordered * kept, axis=-1)


def _per_positive(per_image: Any, positive: Any) -> Any:
    """Scale so that the mean over images is the sum divided by all positives."""
    images = ops.cast(ops.shape(per_image)[0], per_image.dtype)
    return per_image * images / ops.maximum(ops.sum(positive), 1.0)
