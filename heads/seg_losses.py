"""Losses of segmentation: cross-entropy of pixels, hard pixels only, Dice."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

PACKAGE = "keras_lightnets"
IGNORE = 255
# Pixels of lower probability always count as hard.
HARD_SCORE = 0.7


@keras.saving.register_keras_serializable(package=PACKAGE)
class PixelLoss(keras.losses.Loss):
    """Cross-entropy of every pixel that has a class, and a share of Dice.

    Call arguments: `y_true` of shape (batch, height, width): class per pixel, or
    `ignore`; `y_pred` of shape (batch, rows, columns, classes): logits, resized to
    height and width bilinearly where they are smaller.

    Args:
        ignore: Label of the pixels that do not count.
        class_weights: Factor per class; None: all 1.
        hard_share: Share of the pixels of an image that counts at least, those of
            highest loss (online hard example mining), and every pixel whose class
            has a probability below HARD_SCORE; 1: all pixels.
        dice: Factor of the Dice loss; 0: none.
        label_smoothing: Share of the target spread over all classes.
        name: Name in the logs.
        reduction: As for every Keras loss; the default gives the mean over the
            batch's counted pixels.

    Raises:
        ValueError: If a value is not legal.

    Example:
        >>> loss = PixelLoss()
        >>> labels = np.array([[[0, 255]]], "int32")
        >>> round(float(loss(labels, np.zeros((1, 1, 2, 4), "float32"))), 3)  # ln(4)
        1.386

    Reference:
        Shrivastava et al. 2016, https://arxiv.org/abs/1604.03540 (hard examples);
        Milletari et al. 2016, https://arxiv.org/abs/1606.04797 (Dice).
    """

    def __init__(
        self,
        ignore: int = IGNORE,
        class_weights: Sequence[float] | None = None,
        hard_share: float = 1.0,
        dice: float = 0.0,
        label_smoothing: float = 0.0,
        name: str = "pixel_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        if not 0 < hard_share <= 1 or dice < 0:
            raise ValueError(
                "PixelLoss needs 0 < hard_share <= 1 and dice >= 0. Received: "
                f"hard_share={hard_share}, dice={dice}"
            )
        super().__init__(name=name, reduction=reduction)
        self.ignore = ignore
        self.class_weights = None if class_weights is None else tuple(class_weights)
        self.hard_share = hard_share
        self.dice = dice
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss per image, scaled so that its mean is the batch's loss.

        Args:
            y_true: (batch, height, width).
            y_pred: (batch, rows, columns, classes).

        Returns:
            Values >= 0, shape (batch,).
        """
        labels = ops.cast(y_true, "int32")
        logits = ops.cast(y_pred, "float32")
        size = tuple(labels.shape[1:3])
        if tuple(logits.shape[1:3]) != size:
            logits = ops.image.resize(logits, size, interpolation="bilinear")
        counted = ops.cast(ops.not_equal(labels, self.ignore), "float32")
        classes = ops.where(ops.equal(labels, self.ignore), 0, labels)
        log_prob = ops.log_softmax(logits, axis=-1)
        target = ops.one_hot(classes, logits.shape[-1], dtype="float32")
        entropy = self._entropy(log_prob, target, classes)
        weight = counted * self._hard(entropy * counted)
        if self.class_weights is not None:
            factors = np.asarray(self.class_weights, "float32")
            weight = weight * ops.take(factors, classes)
        loss = _mean_of(entropy, weight)
        if self.dice:
            loss = loss + self.dice * _dice(log_prob, target, counted)
        return loss

    def _entropy(self, log_prob: Any, target: Any, classes: Any) -> Any:
        own = -ops.sum(target * log_prob, axis=-1)
        if not self.label_smoothing:
            return own
        spread = -ops.mean(log_prob, axis=-1)
        return (1.0 - self.label_smoothing) * own + self.label_smoothing * spread

    def _hard(self, entropy: Any) -> Any:
        """Return 1 for the pixels that count."""
        if self.hard_share == 1.0:
            return ops.ones_like(entropy)
        batch, height, width = (ops.shape(entropy)[i] for i in range(3))
        flat = ops.reshape(entropy, (batch, height * width))
        order = ops.sort(flat, axis=-1)
        pixels = int(entropy.shape[1]) * int(entropy.shape[2])
        place = max(0, pixels - math.ceil(self.hard_share * pixels))
        limit = ops.minimum(order[:, place], -math.log(HARD_SCORE))
        return ops.cast(entropy >= limit[:, None, None], "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "ignore": self.ignore,
            "class_weights": self.class_weights,
            "hard_share": self.hard_share,
            "dice": self.dice,
            "label_smoothing": self.label_smoothing,
        }


def _mean_of(values: Any, weight: Any) -> Any:
    """Per image, scaled so that the mean over images is the mean of the batch."""
    images = ops.cast(ops.shape(values)[0], "float32")
    total = ops.maximum(ops.sum(weight), 1e-6)
    return ops.sum(values * weight, axis=(1, 2)) * images / total


def _dice(log_prob: Any, target: Any, counted: Any) -> Any:
    """1 - Dice per image: mean of the classes that it shows."""
    mask = counted[..., None]
    prob, true = ops.exp(log_prob) * mask, target * mask
    both = ops.sum(prob * true, axis=(1, 2))
    size = ops.sum(prob, axis=(1, 2)) + ops.sum(true, axis=(1, 2))
    shown = ops.cast(ops.sum(true, axis=(1, 2)) > 0, "float32")
    share = (2.0 * both + 1.0) / (size + 1.0)
    return ops.sum((1.0 - share) * shown, -1) / ops.maximum(ops.sum(shown, -1), 1.0)


def median_frequency_weights(pixels: Sequence[int]) -> Any:
    """Weigh classes by the median class frequency over their own.

    Args:
        pixels: Pixels per class in the training set.

    Returns:
        Factors, float32, shape (classes,), at most 10; 1 for a class without pixels.

    Example:
        >>> median_frequency_weights([100, 50, 25]).tolist()
        [0.5, 1.0, 2.0]

    Reference:
        Eigen and Fergus 2014, https://arxiv.org/abs/1411.4734, section 4.3.2.
    """
    count = np.asarray(pixels, "float64")
    weights = np.ones_like(count)
    seen = count > 0
    if seen.any():
        weights[seen] = np.minimum(np.median(count[seen]) / count[seen], 10.0)
    return weights.astype("float32")
