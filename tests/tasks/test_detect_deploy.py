"""Every kind of detection head: trained, quantised, exported, measured on the file."""

import pytest

from keras_lightnets import _deploy, heads
from keras_lightnets.tasks import detect
from keras_lightnets.tasks.detector import DetectConfig

# Two steps per epoch: statistics and scores must move fast to show anything.
FAST = {
    "backbone": "mobilenet_v1",
    "backbone_options": {"width": 0.25},
    "epochs": 30,
    "learning_rate": 0.01,
    "bn_momentum": 0.8,
    "augment": "none",
    "ema": 0.0,
    "eval_every": 10,
    "deterministic": False,
}
PYRAMID = {"channels": 16, "cells": 1, "repeats": 1}
# Head -> what of the training differs from FAST.
DETECTORS = {
    "ssdlite": {"image_size": 128},
    "fpn_lite": {"head_options": {"channels": 16, "repeats": 1}, "image_size": 128},
    "pelee": {"head_options": {"channels": 16}, "image_size": 288},
    "efficientdet_d0": {"head_options": PYRAMID, "image_size": 128},
    "efficientdet_lite0": {"head_options": PYRAMID, "image_size": 128},
}


def kind(head):
    """What makes heads of one function differ for int8."""
    row = heads.HEADS[head]
    return row.build, row.defaults.get("fusion")


def test_every_kind_of_head_is_walked():
    assert {kind(name) for name in heads.for_task("detect")} == set(
        map(kind, DETECTORS)
    )


@pytest.mark.train
@pytest.mark.parametrize("head", DETECTORS)
def test_trains_quantises_and_exports_with_the_op(head, tiny_options, tmp_path):
    options = {**tiny_options, **FAST, **DETECTORS[head]}
    config = DetectConfig(**options, head=head, runs=str(tmp_path), name=head)
    result = detect.train(config)
    assert result["best"]["mAP50"] > 0.2
    deployed = _deploy.deploy(
        _deploy.DeployOptions(
            run=str(config.folder),
            formats=("edgetpu",),
            qat_epochs=1,
            qat_batch_size=4,
            calibration=8,
            postprocess=True,
        )
    )
    file = deployed["files"]["edgetpu"]
    assert not file["verification"]["float_ops"]
    # So few steps leave many anchors that are decided by a hair.
    assert file["agreement"] > 0.9
    # Scores of one int8 step are cut off in another order by the op.
    limit = 0.01 * file["postprocess"]["detections"]
    assert file["postprocess"]["unmatched"] <= limit
    assert file["ops"]["TFLite_Detection_PostProcess"] == 1
    assert file["metrics"]["mAP"] == pytest.approx(deployed["qat"]["mAP"], abs=0.05)
