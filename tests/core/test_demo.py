"""The whole path in small: draw, train, quantise, export, verify, report."""

import json
import re

import pytest

from keras_lightnets import _demo, _deploy
from keras_lightnets.tasks.data import synthetic

SMALL = {
    "image_size": 96,
    "epochs": 1,
    "batch_size": 8,
    "backbone": "mobilenet_v2",
    "backbone_options": {"width": 0.35},
    "weights": None,
    "freeze": None,
    "deterministic": False,
}


def test_a_run_must_exist_and_formats_be_known(tmp_path):
    with pytest.raises(ValueError, match="holds no trained model"):
        _deploy.deploy(_deploy.DeployOptions(run=str(tmp_path)))
    with pytest.raises(ValueError, match="Did you mean 'edgetpu'"):
        _deploy.deploy(_deploy.DeployOptions(run=str(tmp_path), formats=("edgtpu",)))


@pytest.mark.export
def test_demo_leaves_files_and_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(_demo, "QAT_EPOCHS", 1)
    small = synthetic.SyntheticConfig(train=16, val=8, size=128)
    synthetic.write_shapes(tmp_path / "demo-data", small)
    summary = _demo.run_demo(tmp_path / "demo", **SMALL)
    stored = json.loads((tmp_path / "demo" / "demo.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(summary))
    files = [*_demo.FORMATS, "edgetpu-postprocess"]
    for name in files:
        folder = tmp_path / "demo" / "export" / name
        assert {"model.tflite", "model.json", "labels.txt"} <= {
            path.name for path in folder.iterdir()
        }
    assert summary["edgetpu"]["network_mapped"]
    assert summary["edgetpu"]["mapped"] == summary["edgetpu"]["ops"]
    page = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert page.count("<figure") >= 2 + small.val
    assert not re.search(r"""(src|href)\s*=\s*["']https?:""", page)
    again = _deploy.deploy(
        _deploy.DeployOptions(
            run=str(tmp_path / "demo"), formats=("tflite-int8",), reuse_qat=True
        )
    )
    assert again["qat"]["mAP"] == pytest.approx(
        summary["models"]["quantised, aware"]["mAP"]
    )
