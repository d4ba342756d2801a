"""Suppression against torchvision's results and against a slow reference."""

from pathlib import Path

import numpy as np
import pytest

from keras_lightnets.heads import boxes as box_ops
from keras_lightnets.heads.nms import class_scores, nms, soft_nms
from keras_lightnets.tools.convert import make_ssdlite_parity as source

PARITY = Path(__file__).parents[1] / "parity" / "ssdlite_nms.npz"


def arrays(found):
    return [np.asarray(part) for part in found]


@pytest.mark.parametrize("case", range(source.NMS_CASES))
def test_equals_torchvision(case):
    boxes, scores, threshold = source.seeded_candidates(case)
    with np.load(PARITY) as stored:
        kept = stored[f"case{case}"]
    found, values, labels, count = arrays(
        nms(boxes[None], scores[None, :, None], iou_threshold=threshold)
    )
    assert count.tolist() == [len(kept)]
    np.testing.assert_array_equal(found[0, : len(kept)], boxes[kept])
    np.testing.assert_array_equal(values[0, : len(kept)], scores[kept])
    assert (labels[0, : len(kept)] == 0).all()
    assert (labels[0, len(kept) :] == -1).all()
    assert not found[0, len(kept) :].any()


def slow_nms(boxes, scores, score_threshold, iou_threshold, most):
    """Greedy suppression per class, in loops."""
    found = []
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        kept: list[int] = []
        for index in order[scores[order, label] > score_threshold]:
            others = boxes[[k for k in kept]].reshape(-1, 4)
            if not (
                box_ops.iou(boxes[index : index + 1], others) > iou_threshold
            ).any():
                kept.append(index)
        found += [(scores[i, label], -label, -i) for i in kept]
    found = sorted(found, reverse=True)[:most]
    return [(-i, -label) for _, label, i in found]


def test_classes_and_images_are_apart():
    rng = np.random.default_rng(3)
    boxes = np.stack([source.seeded_candidates(i)[0] for i in (0, 2)])
    scores = rng.uniform(0, 1, (2, 120, 5)).astype("float32")
    limits = {"score_threshold": 0.3, "iou_threshold": 0.4}
    found = arrays(nms(boxes, scores, max_detections=60, **limits))
    for image in range(2):
        expected = slow_nms(boxes[image], scores[image], 0.3, 0.4, 60)
        count = found[3][image]
        assert count == len(expected) == 60
        index, labels = zip(*expected, strict=True)
        np.testing.assert_array_equal(found[2][image, :count], labels)
        np.testing.assert_array_equal(found[0][image, :count], boxes[image][[*index]])


def slow_soft_nms(boxes, scores, score_threshold, sigma, most):
    """Soft suppression per class, in loops."""
    left, found = scores.astype("float64").copy(), []
    while left.max() > score_threshold and len(found) < most:
        index, label = np.unravel_index(left.argmax(), left.shape)
        found.append((left[index, label], int(label), int(index)))
        overlap = box_ops.iou(boxes[index : index + 1], boxes)[0]
        left[:, label] *= np.exp(-(overlap**2) / sigma)
        left[index, label] = 0.0
    return found


def test_soft_suppression_per_class():
    rng = np.random.default_rng(5)
    boxes = np.stack([source.seeded_candidates(i)[0] for i in (0, 2)])
    scores = rng.uniform(0, 1, (2, 120, 3)).astype("float32")
    options = {"score_threshold": 0.2, "sigma": 0.3, "max_detections": 50}
    found = arrays(soft_nms(boxes, scores, **options))
    for image in range(2):
        expected = slow_soft_nms(boxes[image], scores[image], 0.2, 0.3, 50)
        values, labels, index = (np.array(part) for part in zip(*expected, strict=True))
        count = found[3][image]
        assert count == len(expected)
        np.testing.assert_array_equal(found[2][image, :count], labels)
        np.testing.assert_array_equal(found[0][image, :count], boxes[image][index])
        np.testing.assert_allclose(found[1][image, :count], values, rtol=1e-4)


def test_class_agnostic_is_one_class():
    """As if all classes' boxes were of one class."""
    boxes, _, _ = source.seeded_candidates(0)
    scores = np.random.default_rng(6).uniform(0, 1, (120, 3)).astype("float32")
    limits = {"score_threshold": 0.3, "iou_threshold": 0.4, "max_detections": 40}
    found = arrays(nms(boxes[None], scores[None], class_agnostic=True, **limits))
    merged = np.repeat(boxes, 3, axis=0)
    expected = slow_nms(merged, scores.reshape(-1, 1), 0.3, 0.4, 40)
    index = np.array([i for i, _ in expected])
    count = int(found[3][0])
    assert count == len(expected)
    np.testing.assert_array_equal(found[0][0, :count], merged[index])
    np.testing.assert_array_equal(found[2][0, :count], index % 3)


def test_candidates_limit_what_is_considered():
    boxes, scores, _ = source.seeded_candidates(0)
    best = np.argsort(-scores)[:7]
    options = {"iou_threshold": 1.0, "max_detections": 20}
    for limit in ({"candidates": 7}, {"per_class": 7}):
        found = arrays(nms(boxes[None], scores[None, :, None], **options, **limit))
        assert found[3].tolist() == [7]
        np.testing.assert_array_equal(found[1][0, :7], scores[best])


def test_nothing_found_and_empty_boxes():
    boxes = np.zeros((1, 4, 4), "float32")
    quiet = arrays(nms(boxes, np.zeros((1, 4, 2), "float32"), max_detections=9))
    assert quiet[3].tolist() == [0]
    assert quiet[0].shape == (1, 9, 4)
    # Boxes without area overlap nothing, as in torchvision.
    scores = np.full((1, 4, 1), 0.5, "float32")
    assert arrays(nms(boxes, scores))[3].tolist() == [4]


def test_class_scores():
    logits = np.array([[[1.0, 2.0, 0.5]]], "float32")
    soft = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(
        class_scores(logits, "softmax"), soft[..., 1:], rtol=1e-5
    )
    np.testing.assert_allclose(
        class_scores(logits, "sigmoid"), 1 / (1 + np.exp(-logits)), rtol=1e-5
    )
    with pytest.raises(ValueError, match="Did you mean 'softmax'"):
        class_scores(logits, "sofmax")


def test_refuses():
    with pytest.raises(ValueError, match="sigma=0"):
        soft_nms(np.zeros((1, 2, 4)), np.zeros((1, 2, 1)), sigma=0)
    with pytest.raises(ValueError, match="iou_threshold=1.5"):
        nms(np.zeros((1, 2, 4)), np.zeros((1, 2, 1)), iou_threshold=1.5)
