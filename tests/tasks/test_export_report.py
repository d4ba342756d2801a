"""One report over all formats of a run, and what is refused before any work."""

import json

import pytest
from drawn import SIDE, write_pictures

from keras_lightnets import _deploy
from keras_lightnets.tasks import classify
from keras_lightnets.tasks.classifier import ClassifyConfig
from keras_lightnets.tools import card

FORMATS = ("tflite-float32", "tflite-int8", "edgetpu", "onnx", "onnx-int8")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"formats": ("onx",)}, "Did you mean 'onnx'"),
        ({"formats": ("tflite-int8",), "io": "unit8"}, "Did you mean 'uint8'"),
        ({"formats": ("onnx",), "opset": 19}, "Legal: 13, 14, 15, 16, 17, 18"),
        ({"formats": ("edgetpu",), "opset": 15}, "format with an operator set"),
        ({"formats": ("onnx",), "postprocess": True}, "format with the detection op"),
    ],
)
def test_options_are_checked_before_the_run_is_read(tmp_path, changes, text):
    options = _deploy.DeployOptions(run=str(tmp_path / "none"), **changes)
    with pytest.raises(ValueError, match=text):
        _deploy.deploy(options)


def test_a_run_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no trained model"):
        _deploy.deploy(_deploy.DeployOptions(run=str(tmp_path), formats=("onnx",)))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_pictures(root / "train", 3, 0)
    write_pictures(root / "val", 2, 1)
    made = ClassifyConfig(
        backbone="mobilenet_v2",
        backbone_options={"width": 0.35},
        weights=None,
        batch_size=4,
        epochs=1,
        workers=1,
        deterministic=False,
        data=str(root / "train"),
        val_data=str(root / "val"),
        image_size=SIDE,
        runs=str(root / "runs"),
        name="drawn",
    )
    classify.train(made)
    return made


@pytest.mark.export
def test_one_report_for_all_formats(config):
    options = _deploy.DeployOptions(
        run=str(config.folder), formats=FORMATS, calibration=6, timed_runs=3
    )
    found = _deploy.deploy(options)
    folder = config.folder / "export"
    stored = json.loads((folder / "export.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(found))
    assert list(stored["files"]) == list(FORMATS)
    for name, file in stored["files"].items():
        assert [row["threads"] for row in file["latency"]] == [1, 2], name
        assert all(0 < row["median_ms"] < 1e4 for row in file["latency"])
        assert (
            file["bytes"]
            == (folder / name).joinpath(file["path"].rpartition("/")[2]).stat().st_size
        )
    for name in ("tflite-float32", "onnx"):
        assert stored["files"][name]["metrics"]["top1"] == pytest.approx(
            stored["float"]["top1"], abs=1e-6
        )
    ends = stored["files"]["onnx-int8"]["io"]
    assert ends["inputs"][0]["dtype"] == "uint8"
    assert stored["model"]["weights"]["source"] == "none"
    text = (folder / "card.md").read_text("utf-8")
    assert text == card.card(stored)
    assert all(f"`{name}`" in text for name in FORMATS)


@pytest.mark.export
def test_a_folder_that_cannot_be_written_to(config):
    blocked = config.folder / "export"
    if blocked.is_dir():
        blocked.rename(config.folder / "export-kept")
    blocked.write_text("in the way")
    options = _deploy.DeployOptions(
        run=str(config.folder), formats=("tflite-float32",), timed_runs=0
    )
    with pytest.raises(OSError, match="export"):
        _deploy.deploy(options)
    assert blocked.read_text() == "in the way"
    assert not list(config.folder.glob("**/.model*"))
    blocked.unlink()
