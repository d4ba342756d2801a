"""Segmenter and classifier: quantised, exported, measured on the file, run alone."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from drawn import HEIGHT, NAMES, SIDE, WIDTH, write_pictures, write_split

import keras_lightnets
from keras_lightnets import _deploy, heads
from keras_lightnets.tasks import classify, segment
from keras_lightnets.tasks.classifier import ClassifyConfig
from keras_lightnets.tasks.segmenter import SegmentConfig
from keras_lightnets.tools import runtime, runtime_labels

TINY = {
    "backbone": "mobilenet_v2",
    "backbone_options": {"width": 0.35},
    "weights": None,
    "batch_size": 4,
    "epochs": 1,
    "workers": 1,
    "deterministic": False,
}


# Segmentation head -> what of the training differs from TINY.
SEGMENTERS = {
    "lraspp": {"head_options": {"filters": 16}},
    "raspp": {"head_options": {"filters": 16}},
    "deeplabv3": {"head_options": {"filters": 16}},
    "eseg_lite_s": {"head_options": {"channels": 16, "cells": 1}},
    "eseg_s": {"head_options": {"channels": 16, "cells": 1}},
    "espnet": {"backbone": "espnet_encoder_q3", "backbone_options": {}},
    "espnet_c": {"backbone": "espnet_encoder_q3", "backbone_options": {}},
    "espnet_v2": {"backbone": "espnet_v2_050", "backbone_options": {}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("deploy")
    write_split(root / "scenes", "train", 8, 0)
    write_split(root / "scenes", "val", 3, 50)
    write_pictures(root / "train", 3, 0)
    write_pictures(root / "val", 2, 1)
    return root


@pytest.fixture(scope="module", params=[*SEGMENTERS, "classify"])
def exported(request, runs):
    """Return task, run folder and what the export has measured."""
    tiny = {**TINY, **SEGMENTERS.get(request.param, {})}
    shared = {**tiny, "runs": str(runs / "runs"), "name": request.param}
    if request.param == "classify":
        data = {"data": str(runs / "train"), "val_data": str(runs / "val")}
        config = ClassifyConfig(**shared, **data, image_size=SIDE)
        classify.train(config)
    else:
        size = {"image_size": WIDTH, "image_height": HEIGHT}
        data = {"data": str(runs / "scenes"), "head": request.param}
        config = SegmentConfig(**shared, **data, **size)
        segment.train(config)
    options = _deploy.DeployOptions(
        run=str(config.folder),
        formats=("tflite-float32", "tflite-int8"),
        qat_epochs=1,
        calibration=8,
    )
    return config, _deploy.deploy(options)


def test_every_kind_of_head_is_walked():
    def kind(head):
        row = heads.HEADS[head]
        return row.build, row.defaults.get("fusion"), row.defaults.get("act")

    found = {kind(name) for name in heads.for_task("segment")}
    assert found == {kind(name) for name in SEGMENTERS}


@pytest.mark.export
def test_files_keep_the_metric_and_run_alone(exported, runs, tmp_path):
    config, found = exported
    name = {"segment": "pixel_accuracy", "classify": "top1"}[config.task]
    floats, int8 = (found["files"][f"tflite-{k}"] for k in ("float32", "int8"))
    assert floats["problems"] == []
    assert floats["metrics"][name] == pytest.approx(found["float"][name], abs=1e-3)
    assert int8["metrics"][name] == pytest.approx(found["qat"][name], abs=0.03)
    assert not any("float" in text for text in int8["problems"])
    assert int8["agreement"] > 0.9
    # The two runtime files, without the package, give what the task measured.
    for module in (runtime, runtime_labels):
        shutil.copy(module.__file__, tmp_path)
    folder = config.folder / "export" / "tflite-int8"
    picture = next((runs / "val").rglob("*.png"))
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-c"),
            "import sys; sys.path.insert(0, sys.argv.pop(1)); "
            "sys.modules['keras_lightnets'] = None; "
            "import runtime_labels; sys.exit(runtime_labels.main())",
            *(str(tmp_path), str(folder / "model.tflite"), str(picture)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    shares = json.loads(done.stdout)[config.task]
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    labels = NAMES if config.task == "segment" else config.labels
    assert not labels or set(shares) <= set(labels)


@pytest.mark.export
def test_the_detection_op_is_refused(exported):
    config, _ = exported
    with pytest.raises(ValueError, match="op for boxes"):
        _deploy.deploy(
            _deploy.DeployOptions(
                run=str(config.folder), formats=("tflite-float32",), postprocess=True
            )
        )


@pytest.mark.export
def test_branches_are_merged(runs):
    data = {"data": str(runs / "train"), "val_data": str(runs / "val")}
    network: dict = {"backbone": "repghostnet_050", "backbone_options": {}}
    # Statistics that one epoch moves: first ones let the signal grow out of range.
    network["bn_momentum"] = 0.5
    shared = {**TINY, **network, "runs": str(runs / "runs"), "name": "branches"}
    config = ClassifyConfig(**shared, **data, image_size=SIDE)
    classify.train(config)
    found = _deploy.deploy(
        _deploy.DeployOptions(run=str(config.folder), formats=("tflite-int8",))
    )
    trained = keras_lightnets.load_model(config.folder / "best.keras")
    assert found["model"]["params"] < trained.count_params()
    file = found["files"]["tflite-int8"]
    # As trained there are 49: two more in each of 16 blocks.
    assert file["ops"]["ADD"] == 17
    assert file["agreement"] == 1.0
    assert not any("float" in text for text in file["problems"])


def test_meta_round_trips_and_refuses_other_tasks(tmp_path):
    meta = runtime_labels.LabelMeta("classify", ("a", "b"), (32, 48), "crop", crop=0.9)
    assert runtime_labels.LabelMeta.from_dict(meta.to_dict()) == meta
    (tmp_path / "m.json").write_text(json.dumps({**meta.to_dict(), "task": "detect"}))
    with pytest.raises(ValueError, match="Legal: segment, classify"):
        runtime_labels.load_meta(tmp_path / "m.json")
    with pytest.raises(ValueError, match="No sidecar"):
        runtime_labels.load_meta(tmp_path / "n.json")
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        runtime_labels.load_meta(tmp_path / "m.json")


def test_maps_are_spread_over_the_picture():
    """A letterboxed map comes back without its border."""
    meta = runtime_labels.LabelMeta("segment", ("a", "b"), (32, 32), "letterbox")
    picture = np.zeros((16, 64, 3), np.uint8)
    _, place = runtime_labels.prepare(picture, meta)
    scores = np.zeros((8, 8, 2), np.float32)
    scores[..., 1] = np.linspace(-1, 1, 8)[None]
    found = runtime_labels.spread(scores, place)
    assert found.shape == (16, 64, 2)
    assert (found[:, :30].argmax(-1) == 0).all()
    assert (found[:, 34:].argmax(-1) == 1).all()
