"""Masks of pictures: from a model's raw outputs to a class per picture pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_lightnets.heads._labels import VOID
from keras_lightnets.tasks import label_metrics
from keras_lightnets.tasks.pictures import Answer, Answerer, answer_all
from keras_lightnets.tools import runtime, runtime_labels

# uint8 (batch, height, width, 3) -> {"logits": (batch, rows, columns, classes)}
Predictor = Callable[[np.ndarray], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Views:
    """How often and in which parts a picture is looked at.

    Attributes:
        flip: Also mirrored; the scores' mean counts.
        slide: In windows of the network's size and the picture's own resolution.
        overlap: Share of a window that the next one sees too.
    """

    flip: bool = False
    slide: bool = False
    overlap: float = 0.5


def batch_labeller(
    predict: Predictor, meta: Any, views: Views, batch_size: int
) -> Answerer:
    """Make a labeller from a function on batches of network inputs.

    Args:
        predict: From uint8 images to raw outputs.
        meta: `LabelMeta`: input size and fit.
        views: How pictures are looked at.
        batch_size: Smaller batches are filled up, so that the function always sees
            one shape.

    Returns:
        Function from pictures to masks, int32 (H, W), of their sizes.
    """

    def logits_of(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        made: list[np.ndarray] = []
        for start in range(0, len(inputs), batch_size):
            part = inputs[start : start + batch_size]
            batch = np.zeros((batch_size, *meta.size, 3), np.uint8)
            batch[: len(part)] = part
            made += list(np.asarray(predict(batch)["logits"])[: len(part)])
        return made

    def scores_of(inputs: list[np.ndarray]) -> list[np.ndarray]:
        if not views.flip:
            return logits_of(inputs)
        both = logits_of([*inputs, *(image[:, ::-1] for image in inputs)])
        pairs = zip(both[: len(inputs)], both[len(inputs) :], strict=True)
        return [(a + b[:, ::-1]) / 2 for a, b in pairs]

    def label(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        if views.slide:
            return [
                _slide(picture, meta.size, views.overlap, scores_of)
                for picture in pictures
            ]
        fitted = [runtime_labels.prepare(picture, meta) for picture in pictures]
        scores = scores_of([image for image, _ in fitted])
        return [
            runtime_labels.spread(values, place).argmax(-1).astype(np.int32)
            for values, (_, place) in zip(scores, fitted, strict=True)
        ]

    return label


def _slide(
    picture: np.ndarray,
    size: tuple[int, int],
    overlap: float,
    scores_of: Callable[[list[np.ndarray]], list[np.ndarray]],
) -> np.ndarray:
    """Label a picture window by window; where windows overlap, their mean counts."""
    height, width = picture.shape[:2]
    sides = [
        max(side, window) for side, window in zip((height, width), size, strict=True)
    ]
    canvas = np.full((*sides, 3), 114, np.uint8)
    canvas[:height, :width] = picture
    rows, columns = (
        _starts(side, window, overlap) for side, window in zip(sides, size, strict=True)
    )
    corners = [(row, column) for row in rows for column in columns]
    tall, wide = size
    inputs = [canvas[r : r + tall, c : c + wide] for r, c in corners]
    total: Any = None
    for (row, column), scores in zip(corners, scores_of(inputs), strict=True):
        probable = runtime_labels.probabilities(scores)
        values = runtime_labels.resize_map(probable, size)
        if total is None:
            total = np.zeros((*sides, values.shape[-1]), np.float32)
        # Sums do: every class of a pixel is seen by the same number of windows.
        total[row : row + tall, column : column + wide] += values
    return total[:height, :width].argmax(-1).astype(np.int32)


def _starts(side: int, window: int, overlap: float) -> list[int]:
    """Return evenly spread starts of windows that cover a side.

    Example:
        >>> _starts(100, 60, 0.5), _starts(60, 60, 0.5)
        ([0, 20, 40], [0])
    """
    spare = side - window
    count = int(np.ceil(spare / max(1.0, window * (1 - overlap)))) + 1
    return [round(float(start)) for start in np.linspace(0, spare, count)]


def evaluate(
    dataset: Any,
    label: Answerer,
    labels: Sequence[str],
    table: np.ndarray,
    *,
    batch_size: int = 8,
    workers: int = 2,
) -> dict[str, Any]:
    """Compute the metrics of a labeller on a data set.

    Args:
        dataset: Images and masks.
        label: The labeller.
        labels: Its class names; `VOID` can only be the last.
        table: The model's class of each number of the masks.
        batch_size: Images per call of the labeller.
        workers: Threads that read images.

    Returns:
        See `label_metrics.Confusion.result`; also "boundary_f1", "images" and
        "skipped_images": those that could not be read and count in no figure.
    """
    counts = label_metrics.Confusion(len(labels))
    edges = label_metrics.BoundaryF1(len(labels) - (labels[-1] == VOID))
    waiting: dict[int, np.ndarray] = {}
    skipped = 0

    def read(index: int) -> np.ndarray:
        image, mask = dataset.sample(index)
        waiting[index] = table[mask]
        return image

    count = len(dataset)
    for item in answer_all(count, read, label, batch_size=batch_size, workers=workers):
        if not isinstance(item, Answer):
            skipped += 1
            continue
        truth = waiting.pop(item.index)
        counts.update(truth, item.result)
        edges.update(truth, item.result)
    result = {**counts.result(labels), "boundary_f1": edges.result()}
    return {**result, "images": count, "skipped_images": skipped}


def file_predictor(path: Any) -> tuple[Predictor, int]:
    """Return the predictor of a model file and the batch size it takes.

    Args:
        path: A .keras or .tflite file.

    Returns:
        From uint8 images to {"logits": ...}; and 1 for a .tflite file, else 0 for
        any size.
    """
    if path.suffix == ".tflite":
        model = runtime.TFLiteModel(path)

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            return {"logits": np.concatenate([model.run(i[None])[0] for i in images])}

        return run, 1
    import keras_lightnets
    from keras_lightnets.tasks import loop

    return loop.predict_batches(keras_lightnets.load_model(path)), 0
