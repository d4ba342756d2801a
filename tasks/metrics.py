"""COCO detection metrics, by pycocotools or by the faster hotcoco."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lightnets._errors import require

# The twelve figures, in the order of COCOeval.stats.
FIGURES = (
    "mAP",
    "mAP50",
    "mAP75",
    "mAP_small",
    "mAP_medium",
    "mAP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
# Recall values at which COCO samples precision.
RECALLS = np.linspace(0.0, 1.0, 101)


def coco_metrics(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], *, fast: bool = False
) -> dict[str, Any]:
    """Compute COCO's twelve figures, the AP per class and the mean PR curve.

    Args:
        truth: COCO annotations: "images", "annotations", "categories". Areas and
            crowd flags may be missing.
        found: Detections: "image_id", "category_id", "bbox" (x, y, width, height
            in pixels) and "score".
        fast: Use hotcoco in place of pycocotools.

    Returns:
        The names of FIGURES -> 0..1, or None where no annotation has that size;
        "per_class": name -> {"mAP", "mAP50"}; "pr_curve": 101 precisions at IoU
        0.5, mean of the classes.

    Raises:
        MissingExtraError: If `fast` and hotcoco is not installed.

    Reference:
        Lin et al. 2014, https://arxiv.org/abs/1405.0312.
    """
    load, judge_class = _judge(fast)
    with contextlib.redirect_stdout(io.StringIO()):
        coco_truth = load(_coco_data(truth, _truth_rows(truth)))
        coco_found = load(_coco_data(truth, _found_rows(found)))
        judge = judge_class(coco_truth, coco_found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats = [float(value) for value in judge.stats]
    precision = np.asarray(judge.eval["precision"])
    figures = dict(zip(FIGURES, map(_or_none, stats), strict=True))
    return {**figures, **_curves(precision, truth, list(judge.params.catIds))}


def _load_pycocotools(data: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = data
    coco.createIndex()
    return coco


def _load_hotcoco(data: dict[str, Any]) -> Any:
    return require("hotcoco", "fast").COCO(data)


def _judge(fast: bool) -> tuple[Any, Any]:
    """Return the engine's loader and its COCOeval."""
    if fast:
        return _load_hotcoco, require("hotcoco", "fast").COCOeval
    from pycocotools.cocoeval import COCOeval

    return _load_pycocotools, COCOeval


def _coco_data(truth: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {},
        "images": [dict(image) for image in truth["images"]],
        "categories": [dict(item) for item in truth["categories"]],
        "annotations": rows,
    }


def _truth_rows(truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for index, item in enumerate(truth["annotations"], start=1):
        x, y, width, height = (float(value) for value in item["bbox"])
        rows.append(
            {
                # pycocotools takes id 0 for "no match", so ids are given anew.
                "id": index,
                "image_id": item["image_id"],
                "category_id": item["category_id"],
                "bbox": [x, y, width, height],
                "area": float(item.get("area", width * height)),
                "iscrowd": int(item.get("iscrowd", 0)),
            }
        )
    return rows


def _found_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": list(item["bbox"]),
            "score": float(item["score"]),
            "area": float(item["bbox"][2] * item["bbox"][3]),
            "iscrowd": 0,
        }
        for index, item in enumerate(found, start=1)
    ]


def _curves(
    precision: np.ndarray, truth: Mapping[str, Any], order: list[int]
) -> dict[str, Any]:
    """Per-class AP and the curve at IoU 0.5; precision is (T, R, K, areas, dets)."""
    names = {item["id"]: str(item["name"]) for item in truth["categories"]}
    whole = precision[:, :, :, 0, -1]
    per_class = {
        names[key]: {
            "mAP": _mean(whole[:, :, column]),
            "mAP50": _mean(whole[0, :, column]),
        }
        for column, key in enumerate(order)
    }
    present = [k for k in range(len(order)) if whole[0, 0, k] > -1]
    curve = whole[0][:, present].mean(1) if present else np.zeros(len(RECALLS))
    return {"per_class": per_class, "pr_curve": [round(float(v), 6) for v in curve]}


def _mean(values: np.ndarray) -> float | None:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None


def _or_none(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else value
