"""Objects in pictures: from a model's raw outputs to boxes in picture pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_lightnets.tasks import metrics
from keras_lightnets.tasks.data.coco import CocoDataset
from keras_lightnets.tasks.framework import same_classes
from keras_lightnets.tasks.pictures import Answer, answer_all
from keras_lightnets.tools import runtime

# uint8 (batch, height, width, 3) -> {"boxes": (batch, N, 4), "scores": (batch, N, K)}
Predictor = Callable[[np.ndarray], Mapping[str, Any]]
# Pictures of any size -> what was found in each, in its pixels.
Finder = Callable[[Sequence[np.ndarray]], list[runtime.Detections]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which detections are kept.

    Attributes:
        score: Only scores above it.
        iou: Overlap above which the lesser box of a class goes.
        count: Detections per image at most.
        suppression: "hard", or "soft": overlaps lower the scores.
        class_agnostic: Whether boxes of different classes suppress each other.
    """

    score: float = 0.001
    iou: float = 0.55
    count: int = 100
    suppression: str = "hard"
    class_agnostic: bool = False

    @property
    def plain(self) -> bool:
        """Whether this is what a device does with the file."""
        return self.suppression == "hard" and not self.class_agnostic


def batch_finder(
    predict: Predictor, meta: runtime.Meta, limits: Limits, batch_size: int
) -> Finder:
    """Make a finder from a function on batches of network inputs.

    Args:
        predict: From uint8 images to raw outputs.
        meta: Labels, anchors, input size.
        limits: Which detections are kept.
        batch_size: Smaller batches are filled up, so that the function always sees
            one shape.

    Returns:
        The finder.
    """

    def find(pictures: Sequence[np.ndarray]) -> list[runtime.Detections]:
        fitted = [runtime.prepare(picture, meta) for picture in pictures]
        inputs = np.zeros((batch_size, *meta.size, 3), np.uint8)
        for row, (image, _) in enumerate(fitted):
            inputs[row] = image
        outputs = predict(inputs)
        boxes, scores = (np.asarray(outputs[key]) for key in runtime.RAW_OUTPUTS)
        return [
            _place(_suppress(boxes[row], scores[row], meta, limits), place)
            for row, (_, place) in enumerate(fitted)
        ]

    return find


def _suppress(
    boxes: np.ndarray, scores: np.ndarray, meta: runtime.Meta, limits: Limits
) -> runtime.Detections:
    """Decode one image's raw outputs and suppress overlaps."""
    if limits.plain:
        return runtime.postprocess(
            boxes, scores, meta, limits.score, limits.iou, limits.count
        )
    from keras_lightnets.heads import nms

    decoded = runtime.decode_boxes(boxes, meta.anchors, meta.box_weights)
    decoded = np.clip(decoded, 0, 1)[None]
    values = runtime.class_scores(scores, meta.scores)[None]
    options: dict[str, Any] = {
        "score_threshold": limits.score,
        "max_detections": limits.count,
        "class_agnostic": limits.class_agnostic,
    }
    if limits.suppression == "soft":
        found = nms.soft_nms(decoded, values, **options)
    else:
        found = nms.nms(decoded, values, iou_threshold=limits.iou, **options)
    count = int(found.count[0])
    parts = (np.asarray(part)[0, :count] for part in found[:3])
    return runtime.Detections(*parts)


def _place(found: runtime.Detections, place: runtime.Placement) -> runtime.Detections:
    return runtime.Detections(place.to_pixels(found.boxes), found.scores, found.labels)


def coco_rows(found: Answer, image_id: Any, category_ids: Sequence[int]) -> list[dict]:
    """Write what was found as COCO results.

    Args:
        found: What was found in one image.
        image_id: The image's id in the data set.
        category_ids: The data set's id of each label.

    Returns:
        "image_id", "category_id", "bbox" (x, y, width, height), "score".
    """
    objects = found.result
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    corners = np.concatenate([objects.boxes[:, :2], sides], axis=1)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label)],
            "bbox": [round(float(value), 3) for value in box],
            "score": round(float(score), 5),
        }
        for box, score, label in zip(
            corners, objects.scores, objects.labels, strict=True
        )
    ]


def evaluate(
    dataset: CocoDataset,
    find: Finder,
    meta: runtime.Meta,
    *,
    batch_size: int = 16,
    workers: int = 2,
    fast: bool = False,
) -> dict[str, Any]:
    """Compute COCO metrics of a finder on a data set.

    Args:
        dataset: Images and boxes.
        find: The finder.
        meta: Its labels and input size.
        batch_size: Images per call of the finder.
        workers: Threads that read images.
        fast: Count with hotcoco.

    Returns:
        See `metrics.coco_metrics`; also "images" and "skipped_images": those that
        could not be read and count in no figure.

    Raises:
        ValueError: If the classes of model and data differ.
    """
    order = category_order(meta.labels, dataset)
    rows: list[dict[str, Any]] = []
    skipped: set[Any] = set()

    def read(index: int) -> np.ndarray:
        return dataset.sample(index)[0]

    stream = answer_all(
        len(dataset), read, find, batch_size=batch_size, workers=workers
    )
    for index, item in enumerate(stream):
        image_id = dataset.records[index].image_id
        if isinstance(item, Answer):
            rows += coco_rows(item, image_id, order)
        else:
            skipped.add(image_id)
    truth = dataset.without(skipped).coco_dict()
    result = metrics.coco_metrics(truth, rows, fast=fast)
    return {**result, "images": len(dataset), "skipped_images": len(skipped)}


def category_order(labels: Sequence[str], dataset: CocoDataset) -> list[int]:
    """Return the data set's category id of each label of a model.

    Args:
        labels: The model's class names.
        dataset: The data.

    Returns:
        One id per label.

    Raises:
        ValueError: If the names differ; those that only one side has are listed.
    """
    order = same_classes(labels, dataset.names, dataset.source)
    return [dataset.category_ids[index] for index in order]
