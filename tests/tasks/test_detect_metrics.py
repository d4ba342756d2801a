"""COCO metrics: both engines give the same twelve figures."""

import json

import numpy as np
import pytest

from keras_lightnets.tasks import metrics


def guesses(truth, seed):
    """Return noisy copies of the annotations, some with a wrong class."""
    rng = np.random.default_rng(seed)
    keys = [item["id"] for item in truth["categories"]]
    found = []
    for item in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(item["bbox"]) + rng.normal(0, 0.08, 4) * item["bbox"][2]
            box[2:] = np.maximum(box[2:], 1)
            right = rng.random() < 0.9
            found.append(
                {
                    "image_id": item["image_id"],
                    "category_id": item["category_id"] if right else rng.choice(keys),
                    "bbox": box.round(2).tolist(),
                    # Few distinct scores: ties must be broken alike.
                    "score": round(float(rng.random()), 2),
                }
            )
    return found


def drawn_truth():
    rng = np.random.default_rng(5)
    images = [{"id": i, "width": 640, "height": 480} for i in range(20)]
    categories = [{"id": i, "name": f"c{i}"} for i in (1, 4, 9)]
    annotations = [
        {
            "image_id": int(rng.integers(20)),
            "category_id": int(rng.choice([1, 4])),
            "bbox": [*rng.uniform(0, 300, 2), *rng.uniform(8, 200, 2)],
            "iscrowd": int(rng.random() < 0.05),
        }
        for _ in range(150)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("seed", [0, 1])
def test_fast_engine_equals_pycocotools_on_drawn_boxes(seed):
    pytest.importorskip("hotcoco", reason="extra fast is not installed")
    truth = drawn_truth()
    found = guesses(truth, seed)
    slow, fast = (metrics.coco_metrics(truth, found, fast=f) for f in (False, True))
    assert 0.1 < slow["mAP"] < 0.9
    assert fast == slow


def test_fast_engine_equals_pycocotools_on_coco(shared):
    pytest.importorskip("hotcoco", reason="extra fast is not installed")
    folder = shared / "data" / "coco128" / "annotations"
    truth = json.loads(sorted(folder.glob("*val*.json"))[0].read_text())
    found = guesses(truth, 0)
    slow, fast = (metrics.coco_metrics(truth, found, fast=f) for f in (False, True))
    assert all(slow[name] is not None for name in metrics.FIGURES)
    assert fast == slow


@pytest.mark.parametrize("fast", [False, True])
def test_perfect_and_empty_results(fast):
    if fast:
        pytest.importorskip("hotcoco", reason="extra fast is not installed")
    truth = drawn_truth()
    for item in truth["annotations"]:
        item["iscrowd"] = 0
    found = [{**item, "score": 0.9} for item in truth["annotations"]]
    perfect = metrics.coco_metrics(truth, found, fast=fast)
    assert perfect["mAP"] == pytest.approx(1.0)
    assert perfect["per_class"]["c9"]["mAP"] is None
    assert perfect["per_class"]["c1"]["mAP50"] == pytest.approx(1.0)
    assert perfect["pr_curve"] == [1.0] * 101
    empty = metrics.coco_metrics(truth, [], fast=fast)
    assert empty["mAP"] == 0.0
    assert sum(empty["pr_curve"]) == 0


def test_metrics_print_nothing(capsys):
    metrics.coco_metrics(drawn_truth(), [])
    assert capsys.readouterr().out == ""
