"""The whole path on a data set that it draws itself."""

import json
import time
from pathlib import Path
from typing import Any

from keras_lightnets import _deploy
from keras_lightnets.tasks import detect

FORMATS = ("tflite-float32", "tflite-int8", "edgetpu")
QAT_EPOCHS = 2


def run_demo(out: Path, **changes: Any) -> dict[str, Any]:
    """Draw shapes, train EfficientNet-Lite0 + SSDLite, quantise, export, verify.

    Args:
        out: The run's folder; the data set lies in `out`-data beside it.
        **changes: Training options other than the recipe's, such as `epochs=1`.

    Returns:
        Rows of the table: COCO mAP of the float model, the quantisation-aware model
        and each file, agreement, ops, seconds.
    """
    from keras_lightnets.tasks.data import synthetic

    start = time.perf_counter()
    shapes = out.with_name(f"{out.name}-data")
    if not (shapes / "annotations" / "instances_val.json").is_file():
        synthetic.write_shapes(shapes)
    options = {
        "recipe": "demo",
        "runs": str(out.parent),
        "name": out.name,
        "data": str(shapes / "train"),
        "annotations": str(shapes / "annotations" / "instances_train.json"),
        "val_data": str(shapes / "val"),
        "val_annotations": str(shapes / "annotations" / "instances_val.json"),
    }
    config = detect.DetectConfig.parse({**options, **changes})
    detect.train(config, overwrite=True)
    trained = time.perf_counter()
    deployed = _deploy.deploy(
        _deploy.DeployOptions.parse(
            {
                "run": str(out),
                "formats": FORMATS,
                "qat_epochs": QAT_EPOCHS,
                "postprocess": True,
            }
        )
    )
    end = time.perf_counter()
    summary = _summary(deployed, {"train": trained - start, "deploy": end - trained})
    (out / "demo.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return summary


def _summary(deployed: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    rows: dict[str, Any] = {"float": {"mAP": deployed["float"]["mAP"]}}
    if deployed["qat"]:
        rows["qat"] = {"mAP": deployed["qat"]["mAP"]}
    for name, found in deployed["files"].items():
        rows[name] = {
            "mAP": found["metrics"]["mAP"],
            "bytes": found["bytes"],
            "agreement": found["agreement"],
            "problems": "; ".join(found["problems"]) or "none",
        }
    return {**rows, "seconds": seconds}
