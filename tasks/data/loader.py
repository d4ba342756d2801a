"""Batches of images and boxes for detection."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from keras_lightnets.tasks.data import batches
from keras_lightnets.tasks.data.batches import Batch, LoaderOptions

__all__ = ["Loader", "LoaderOptions"]

Encode = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]


class Dataset(Protocol):
    """What the loader reads, such as `CocoDataset`."""

    records: Any

    def __len__(self) -> int: ...

    def sample(
        self, index: int, target: tuple[int, int] | None = None, fit: str = "stretch"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Return image, boxes in pixels, labels and meta."""


class Transform(Protocol):
    """What makes a training image, such as `Augment`."""

    target: tuple[int, int]
    fit: str

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the image, its boxes in pixels and the rows they come from."""


class Loader(batches.BatchLoader):
    """Batches of augmented images with their targets.

    Args:
        dataset: Where samples come from.
        transform: Augments and resizes one sample.
        batch_size: Images per batch.
        seed: Decides order and augmentation.
        shuffle: Whether each epoch has its own order.
        encode: Turns boxes (M, 4) in shares of the image's sides, labels (M,) and
            crowd flags (M,) into arrays of fixed shape, the targets. None: padded
            arrays "boxes" (batch, most, 4), "labels" (batch, most) with -1 and
            "crowd" (batch, most).
        options: See `LoaderOptions`.

    Raises:
        ValueError: If there are fewer images than a batch needs.

    Example:
        >>> loader = Loader(data, Augment("ssd", (320, 320)), 16)  # doctest: +SKIP
        >>> model.fit(  # doctest: +SKIP
        ...     loader.stream(), steps_per_epoch=len(loader), shuffle=False
        ... )
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        encode: Encode | None = None,
        options: LoaderOptions = batches.DEFAULTS,
    ) -> None:
        super().__init__(
            dataset,
            transform.target,
            batch_size,
            seed=seed,
            shuffle=shuffle,
            options=options,
        )
        self.transform = transform
        self.encode = encode

    def read(self, index: int) -> batches.Sample:
        """Read an image, its boxes in pixels, their labels and crowd flags."""
        target = self.transform.target if self.options.reduced else None
        sample = self.dataset.sample(index, target, self.transform.fit)
        image, boxes, labels, meta = sample
        return image, boxes, labels, meta["iscrowd"]

    def example(self, sample: batches.Sample, seed: int) -> tuple[np.ndarray, Any]:
        """Return the image, its boxes as shares of its sides, labels, crowd flags."""
        image, boxes, labels, crowd = sample
        height, width = self.size
        image, boxes, kept = self.transform(image, boxes, seed)
        shares = boxes / np.array([width, height] * 2, np.float32)
        return image, (shares, labels[kept], crowd[kept])

    def join(self, images: np.ndarray, targets: list[Any], seed: int) -> Batch:
        """Join examples: encoded, or padded to the most boxes of the batch."""
        if self.encode is None:
            return images, _padded(targets)
        encoded = [self.encode(*target) for target in targets]
        return super().join(images, encoded, seed)


def _padded(targets: Sequence[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    most = max(len(boxes) for boxes, _, _ in targets)
    batch = len(targets)
    padded = {
        "boxes": np.zeros((batch, most, 4), np.float32),
        "labels": np.full((batch, most), -1, np.int32),
        "crowd": np.zeros((batch, most), bool),
    }
    for row, (boxes, labels, crowd) in enumerate(targets):
        padded["boxes"][row, : len(boxes)] = boxes
        padded["labels"][row, : len(labels)] = labels
        padded["crowd"][row, : len(crowd)] = crowd
    return padded
