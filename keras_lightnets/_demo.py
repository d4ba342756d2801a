"""The whole path on a data set that it draws itself."""

import csv
import sys
import time
from pathlib import Path
from typing import Any

from keras_lightnets import _deploy
from keras_lightnets.tasks import detect, run
from keras_lightnets.tools.export import report

FORMATS = ("tflite-float32", "tflite-int8", "edgetpu")
EPOCHS, QAT_EPOCHS = 6, 2
PICTURES = 8
SHOWN_SCORE = 0.4
COMMAND = "keras-lightnets demo --out {}"


def run_demo(out: Path, **changes: Any) -> dict[str, Any]:
    """Draw shapes, train EfficientNet-Lite0 + SSDLite, quantise, export, verify.

    Args:
        out: The run's folder; the data set lies in `out`-data beside it.
        **changes: Training options other than the recipe's, such as `epochs=1`.

    Returns:
        Per model ("float", "qat" and each file) its figures, the Edge TPU verdict,
        seconds, and the report's path.
    """
    clock = _Clock()
    options = {
        "recipe": "demo",
        "epochs": EPOCHS,
        "runs": str(out.parent),
        "name": out.name,
        **_draw(out.with_name(f"{out.name}-data")),
    }
    config = detect.DetectConfig.parse({**options, **changes})
    clock.lap("draw")
    detect.train(config, overwrite=True)
    clock.lap("train")
    work = _deploy.Deployment(
        _deploy.DeployOptions(run=str(out), qat_epochs=QAT_EPOCHS)
    )
    models = {"Keras, float": work.measure_float(), "quantised, aware": work.quantise()}
    clock.lap("quantise")
    files = {name: work.export(name) for name in FORMATS}
    files["edgetpu, post-processed"] = work.export("edgetpu", postprocess=True)
    clock.lap("export")
    summary: dict[str, Any] = {"models": _rows(models, files), "seconds": clock.laps}
    summary["edgetpu"] = _verdict(files["edgetpu"])
    page = report.Report(
        title="keras_lightnets demo",
        lead="EfficientNet-Lite0 + SSDLite, trained on drawn shapes, quantised, "
        "exported and measured on this machine by running each file.",
        facts=_facts(summary, sum(clock.laps.values())),
        tables=[_table(summary["models"]), _seconds(clock.laps)],
        charts=_charts(out),
        pictures=_pictures(config, out / "export" / "tflite-int8" / "model.tflite"),
        commands=[COMMAND.format(out)],
    )
    summary["report"] = str(report.write_report(out / "report.html", page))
    run.write_json(out / "demo.json", summary)
    return summary


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 1)
        self._last = now
        sys.stderr.write(f"{name}: {self.laps[name]:.0f} s\n")


def _draw(folder: Path) -> dict[str, str]:
    """Draw the data set once and return the options that name it."""
    from keras_lightnets.tasks.data import synthetic

    notes = folder / "annotations"
    if not (notes / "instances_val.json").is_file():
        synthetic.write_shapes(folder)
    return {
        "data": str(folder / "train"),
        "annotations": str(notes / "instances_train.json"),
        "val_data": str(folder / "val"),
        "val_annotations": str(notes / "instances_val.json"),
    }


def _rows(models: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    measured = {**models, **{name: file["metrics"] for name, file in files.items()}}
    rows: dict[str, Any] = {
        name: {key: found[key] for key in ("mAP", "mAP50")}
        for name, found in measured.items()
    }
    for name, file in files.items():
        rows[name]["bytes"] = file["bytes"]
        rows[name]["agreement"] = file["agreement"]
        rows[name]["problems"] = "; ".join(file["problems"]) or "none"
    return rows


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    verdict = found["verdicts"]["edgetpu"]
    mapped = sum(op["mapped"] for op in verdict["ops"])
    return {
        "ops": len(verdict["ops"]),
        "mapped": mapped,
        "network_mapped": not any("mapped" in text for text in found["problems"]),
        "on_chip_bytes": verdict["on_chip_bytes"],
        "streamed_bytes": verdict["streamed_bytes"],
    }


def _facts(summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    models, edge = summary["models"], summary["edgetpu"]
    return {
        "mAP float": models["Keras, float"]["mAP"],
        "mAP int8 file": models["tflite-int8"]["mAP"],
        "int8 bytes": models["tflite-int8"]["bytes"],
        "Edge TPU ops mapped": f"{edge['mapped']} of {edge['ops']}",
        "minutes": seconds / 60,
    }


def _table(models: dict[str, Any]) -> report.Table:
    keys = ("mAP", "mAP50", "bytes", "agreement", "problems")
    return report.Table(
        "Models and files",
        ("model", "mAP@[.5:.95]", "mAP@.5", "bytes", "agreement", "problems"),
        [(name, *(row.get(key) for key in keys)) for name, row in models.items()],
        "Agreement: share of anchors where the file decides for the same class as the "
        "model it came from.",
    )


def _seconds(laps: dict[str, float]) -> report.Table:
    return report.Table("Time", ("step", "seconds"), list(laps.items()))


def _charts(out: Path) -> list[report.Chart]:
    with (out / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def line(key: str) -> list[tuple[float, float]]:
        return [(float(r["epoch"]), float(r[key])) for r in rows if r.get(key)]

    losses = {key: line(key) for key in ("loss", "boxes_loss", "scores_loss")}
    found = {key: line(key) for key in ("mAP", "mAP50", "mAP75")}
    return [
        report.Chart("Training loss", "epoch", "loss", losses),
        report.Chart("Validation", "epoch", "average precision", found),
    ]


def _pictures(config: detect.DetectConfig, file: Path) -> list[report.Picture]:
    """Return the first validation images with what the int8 file finds in them."""
    from keras_lightnets.tools import runtime

    detector = runtime.Detector(file)
    data = detect.open_data(config).val
    pictures = []
    for index in range(min(PICTURES, len(data))):
        image = data.sample(index)[0]
        found = detector.detect(image, SHOWN_SCORE)
        names = [detector.meta.labels[int(label)] for label in found.labels]
        texts = [f"{n} {s:.2f}" for n, s in zip(names, found.scores, strict=True)]
        labels = [int(label) for label in found.labels]
        name = data.records[index].file_name
        pictures.append(report.Picture(image, found.boxes, labels, texts, name))
    return pictures
