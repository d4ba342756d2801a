"""EfficientDet through the detection task: options, targets, training, files."""

import numpy as np
import pytest

from keras_lightnets.heads import efficientdet
from keras_lightnets.tasks import detect, finder
from keras_lightnets.tasks.detector import DetectConfig
from keras_lightnets.tools import runtime

SMALL = {"channels": 16, "cells": 1, "repeats": 1}


@pytest.fixture(scope="module")
def config(tiny_options, tmp_path_factory):
    options = {**tiny_options, "head_options": SMALL, "image_size": 128}
    return DetectConfig(
        **options,
        head="efficientdet_lite0",
        runs=str(tmp_path_factory.mktemp("runs")),
        name="effdet",
    )


def test_head_name_chooses_the_variant(config):
    config = config.replace(labels=("blue", "red"), head_options={"channels": 16})
    head = detect.head_config(config)
    assert (head.channels, head.cells, head.fusion, head.act) == (16, 3, "sum", "relu6")
    assert head.anchor_scale == efficientdet.VARIANTS["lite0"].anchor_scale
    assert (head.classes, head.iou_threshold) == (2, config.nms_iou)


def test_model_and_sidecar_fit(config):
    config = config.replace(labels=("blue", "red"))
    outputs = detect.build_model(config).output
    meta = runtime.Meta.from_dict(detect.describe(config))
    count = 9 * (16**2 + 8**2 + 4**2 + 2**2 + 1)
    assert meta.anchors.shape == (count, 4)
    assert (meta.scores, meta.box_weights) == ("sigmoid", (1.0, 1.0, 1.0, 1.0))
    assert outputs["boxes"].shape == (None, count, 4)
    assert outputs["scores"].shape == (None, count, 2)


def test_perfect_predictor_scores_one(config):
    """Targets fed back as outputs: encoding, scaling and ids fit together."""
    config = config.replace(labels=("red", "blue"), nms_iou=0.99)
    batches = iter(detect.batches(config, "val"))

    def predictor(images):
        _, targets = next(batches)
        scores = np.eye(3, dtype="float32")[np.maximum(targets["scores"], 0)]
        return {"boxes": targets["boxes"][..., :4], "scores": scores[..., 1:] * 40 - 20}

    result = detect.evaluate_fn(config)(predictor)
    assert result["mAP"] == pytest.approx(1.0, abs=1e-3)


def test_suppression_is_chosen_by_options():
    """Two classes on one box, and a box beside it that overlaps by 0.6."""
    anchors = np.array([[0.5, 0.5, 0.4, 0.4], [0.6, 0.5, 0.4, 0.4]], "float32")
    meta = runtime.Meta(("a", "b"), (64, 64), scores="sigmoid", anchors=anchors)
    raw = {
        "boxes": np.zeros((1, 2, 4), "float32"),
        "scores": np.array([[[3.0, 2.0], [1.0, -9.0]]], "float32"),
    }
    picture, seen = np.zeros((64, 64, 3), np.uint8), {}
    for name, options in (
        ("plain", {}),
        ("agnostic", {"class_agnostic": True}),
        ("soft", {"suppression": "soft"}),
    ):
        limits = finder.Limits(score=0.1, iou=0.55, **options)
        find = finder.batch_finder(lambda _: raw, meta, limits, 1)
        (found,) = find([picture])
        seen[name] = found.labels.tolist()
        assert limits.plain is (name == "plain")
        if name == "soft":
            sigmoid = 1 / (1 + np.exp(-np.array([3.0, 2.0, 1.0])))
            sigmoid[2] *= np.exp(-(0.6**2) / 0.5)
            np.testing.assert_allclose(found.scores, sigmoid, rtol=1e-4)
        np.testing.assert_allclose(found.boxes[0], [19.2, 19.2, 44.8, 44.8], rtol=1e-5)
    assert seen == {"plain": [0, 1], "agnostic": [0], "soft": [0, 1, 0]}
