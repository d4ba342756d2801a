"""Makes batches of a data set with threads of its own.

OpenCV and albumentations release the interpreter lock, so threads keep few cores
busy without copying images between processes. A batch depends on (seed, epoch,
step) alone: any number of workers, and a run that resumes, sees the same ones.
"""

import abc
import collections
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_lightnets.tasks.data.images import ImageError

Batch = tuple[np.ndarray, dict[str, np.ndarray]]
# Image, and whatever belongs to it, as read: what the cache keeps.
Sample = tuple[np.ndarray, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Rarely changed settings of a loader.

    Attributes:
        drop_remainder: Whether to leave out a last, smaller batch.
        balance: Whether images with rare classes are drawn more often.
        workers: Threads; 0: one per core, at most 8.
        prefetch: Batches made ahead, per worker.
        cache_bytes: How much memory may hold decoded images between epochs.
        reduced: Whether JPEGs are decoded at a reduced size where `target` allows.
    """

    drop_remainder: bool = True
    balance: bool = False
    workers: int = 0
    prefetch: int = 2
    cache_bytes: int = 0
    reduced: bool = True

    @property
    def threads(self) -> int:
        """Number of threads meant by `workers`."""
        allowed = getattr(os, "sched_getaffinity", None)  # Linux only
        cores = len(allowed(0)) if allowed else os.cpu_count() or 1
        return self.workers or min(8, cores)


DEFAULTS = LoaderOptions()


class BatchLoader(abc.ABC):
    """Batches of augmented images with their targets; a task says how.

    A subclass reads one image (`read`), makes an example of it (`example`) and joins
    the examples of a batch (`join`).

    Args:
        dataset: Where samples come from: `records` with a `file_name` each.
        size: (height, width) of the images.
        batch_size: Images per batch.
        seed: Decides order and augmentation.
        shuffle: Whether each epoch has its own order.
        options: See `LoaderOptions`.

    Raises:
        ValueError: If there are fewer images than a batch needs.
    """

    def __init__(
        self,
        dataset: Any,
        size: tuple[int, int],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        options: LoaderOptions = DEFAULTS,
    ) -> None:
        least = batch_size if options.drop_remainder else 1
        if batch_size < 1 or len(dataset) < least:
            raise ValueError(
                f"batch_size must be 1 to {len(dataset)}, the number of usable images. "
                f"Received: batch_size={batch_size}. Give a smaller one, or more images"
                "; a loader with drop_remainder=False makes smaller batches."
            )
        self.dataset = dataset
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.options = options
        self.skipped: dict[str, str] = {}
        self._epoch = 0
        self._cache = _Cache(options.cache_bytes)
        self._lock = threading.Lock()
        self._pools: set[ThreadPoolExecutor] = set()
        self._bad: dict[int, str] = {}
        self._orders: dict[int, np.ndarray] = {}
        self._shares = _balance(dataset) if options.balance else None

    @abc.abstractmethod
    def read(self, index: int) -> Sample:
        """Read one image and what belongs to it; ImageError if it cannot be."""

    @abc.abstractmethod
    def example(self, sample: Sample, seed: int) -> tuple[np.ndarray, Any]:
        """Return the network's image, uint8 of `size`, and its target."""

    def join(self, images: np.ndarray, targets: list[Any], seed: int) -> Batch:
        """Join examples: here every array of the targets is stacked.

        Args:
            images: (batch, height, width, 3) uint8.
            targets: One dict of arrays per image.
            seed: Decides what is random about the whole batch.

        Returns:
            Images and targets of the batch.
        """
        return images, {key: np.stack([t[key] for t in targets]) for key in targets[0]}

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.options.drop_remainder)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, at which the next iteration starts."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch, then move on to the next."""
        epoch = self._epoch
        self._epoch += 1
        return self._run((epoch, step) for step in range(len(self)))

    def stream(self, epoch: int | None = None, step: int = 0) -> Iterator[Batch]:
        """Yield batches without end, for Keras' `fit(steps_per_epoch=len(loader))`.

        Args:
            epoch: First epoch, from 0; None: as set by `set_epoch`.
            step: First step of that epoch.

        Yields:
            As `batch` returns.
        """
        first = self._epoch if epoch is None else epoch
        yield from self._run(_steps(first, step, len(self)))

    def close(self) -> None:
        """End all running iterations and their threads.

        An iteration that is used up or dropped ends by itself; Keras keeps the
        generator given to `fit` for a while, and with it the threads.
        """
        while self._pools:
            self._pools.pop().shutdown(wait=True, cancel_futures=True)

    def order(self, epoch: int) -> np.ndarray:
        """Return the epoch's sequence of data set indices, int64 (len(dataset),)."""
        held = self._orders.get(epoch)
        if held is None:
            held = self._draw(epoch)
            recent = {e: o for e, o in self._orders.items() if abs(e - epoch) == 1}
            self._orders = {**recent, epoch: held}
        return held

    def _draw(self, epoch: int) -> np.ndarray:
        count = len(self.dataset)
        rng = np.random.default_rng([self.seed, epoch, 1])
        order = np.arange(count)
        if self._shares is not None:
            # Systematic sampling: each image comes floor or ceil of its share times.
            points = (np.arange(count) + rng.random()) * (self._shares.sum() / count)
            order = np.searchsorted(np.cumsum(self._shares), points, side="right")
            order = np.minimum(order, count - 1)
        return rng.permutation(order) if self.shuffle else order

    def names(self, epoch: int, step: int) -> tuple[str, ...]:
        """Return the file names of a batch, for the report of a failed step.

        Args:
            epoch: From 0.
            step: From 0.

        Returns:
            One name per image; a bad image met so far has been replaced.
        """
        order = self.order(epoch)
        return tuple(
            self.dataset.records[self._good(order, position)].file_name
            for position in self._positions(step)
        )

    def batch(self, epoch: int, step: int) -> Batch:
        """Make one batch in this thread.

        Args:
            epoch: From 0.
            step: From 0 to `len(self) - 1`.

        Returns:
            Images, uint8 (batch, height, width, 3), RGB; and the targets, each with
            the batch in front.

        Raises:
            ImageError: If no image of the data set can be read.
        """
        order = self.order(epoch)
        positions = self._positions(step)
        images = np.empty((len(positions), *self.size, 3), np.uint8)
        targets = []
        for row, position in enumerate(positions):
            sample = self._sample(order, position)
            images[row], target = self.example(sample, self._number(epoch, 2, position))
            targets.append(target)
        return self.join(images, targets, self._number(epoch, 3, step))

    def _number(self, *place: int) -> int:
        """Return the random seed of an image or a batch."""
        seed = np.random.SeedSequence([self.seed, *place])
        return int(seed.generate_state(1, np.uint64)[0])

    def _positions(self, step: int) -> range:
        start = step * self.batch_size
        return range(start, min(start + self.batch_size, len(self.dataset)))

    def _good(self, order: np.ndarray, position: int) -> int:
        """Return the data set index at a position, past the images known as bad."""
        for offset in range(len(order)):
            index = int(order[(position + offset) % len(order)])
            if index not in self._bad:
                return index
        name, reason = next(iter(self.skipped.items()))
        raise ImageError(
            "unreadable_image",
            "all images",
            f"none of {len(order)} can be read; the first: {name}: {reason}",
        )

    def _sample(self, order: np.ndarray, position: int) -> Any:
        """Read the image at a position, or the next one that can be read."""
        while True:
            index = self._good(order, position)
            try:
                return self._cache.get(index, functools.partial(self.read, index))
            except ImageError as error:
                self._skip(index, error)

    def _skip(self, index: int, error: ImageError) -> None:
        with self._lock:
            if index in self._bad:
                return
            name = self.dataset.records[index].file_name
            self.skipped[name] = error.detail
            self._bad[index] = error.detail
        logger.warning("Skipped image %s: %s", name, error.detail)

    def _run(self, steps: Iterator[tuple[int, int]]) -> Iterator[Batch]:
        ahead = self.options.threads * self.options.prefetch
        queue: collections.deque[Future[Batch]] = collections.deque()
        pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="loader")
        self._pools.add(pool)
        try:
            for step in steps:
                queue.append(pool.submit(self.batch, *step))
                if len(queue) >= ahead:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        except (CancelledError, RuntimeError):
            if pool in self._pools:  # else `close` ended it
                raise
        finally:
            self._pools.discard(pool)
            pool.shutdown(wait=True, cancel_futures=True)


class _Cache:
    """Decoded samples, as many as fit; what came first stays."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._held: dict[int, Any] = {}
        self._lock = threading.Lock()

    def get(self, index: int, read: Callable[[], Any]) -> Any:
        found = self._held.get(index)
        if found is not None:
            return found
        sample = read()
        size = sum(array.nbytes for array in sample)
        with self._lock:
            if self.bytes + size <= self.limit and index not in self._held:
                self.bytes += size
                self._held[index] = sample
        return sample


def _steps(epoch: int, step: int, count: int) -> Iterator[tuple[int, int]]:
    while True:
        for number in range(step, count):
            yield epoch, number
        epoch, step = epoch + 1, 0


def _balance(dataset: Any) -> np.ndarray:
    """Return each image's share: the repeat factor of its rarest class.

    A class in a share f of the images counts sqrt(most / f), as in LVIS
    (https://arxiv.org/abs/1908.03195) with the most frequent class as threshold.
    """
    sets = [np.unique(record.labels) for record in dataset.records]
    counts = np.bincount(np.concatenate(sets)) if sets else np.zeros(1)
    factors = np.sqrt(counts.max() / np.maximum(counts, 1))
    return np.array([max(factors[s], default=1.0) for s in sets])
