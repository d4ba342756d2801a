"""Detectors trained on real data on the CPU, float and int8.

Run with: python benchmarks/detectors.py bccd | heads | coco128
(LIGHTNETS_SHARED: the data)

`bccd` trains on blood cells and measures the validation split with the Keras model
and with the int8 file itself; `heads` does so for SSDLite and EfficientDet-Lite0 on
one backbone with one recipe. `coco128` checks that a detector can learn 128 images
of 80 classes by heart: it is measured on the images it was trained on.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import page

from keras_lightnets import _deploy
from keras_lightnets.tasks import detect

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("LIGHTNETS_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"

# SSD's default boxes start at a fifth of the image: too large for platelets and for
# most objects of COCO.
SMALL_BOXES = {"anchors": {"scales": [0.08, 0.16, 0.33, 0.52, 0.7, 0.87, 1.0]}}

BCCD = {
    "data": DATA / "bccd" / "train",
    "annotations": DATA / "bccd" / "annotations" / "instances_train.json",
    "val_data": DATA / "bccd" / "val",
    "val_annotations": DATA / "bccd" / "annotations" / "instances_val.json",
    "recipe": "demo",
    "image_size": 320,
    "head_options": SMALL_BOXES,
    "epochs": 30,
    "eval_every": 5,
}
COCO128 = {
    "data": DATA / "coco128" / "train2017",
    "annotations": DATA / "coco128" / "annotations" / "instances_train2017.json",
    "val_data": DATA / "coco128" / "train2017",
    "val_annotations": DATA / "coco128" / "annotations" / "instances_train2017.json",
    "recipe": "demo",
    "image_size": 320,
    "head_options": SMALL_BOXES,
    "augment": "none",
    "freeze": "c1",
    "epochs": 24,
    "eval_every": 8,
}


def run(name: str, options: dict, out: pathlib.Path) -> dict:
    """Train one detector into out/name, or go on with it.

    Args:
        name: Name of the run.
        options: Options of the detection task.
        out: Folder of the runs.

    Returns:
        Metrics of the best model, "run" and "seconds" (None where it went on).
    """
    plain = {
        k: str(v) if isinstance(v, pathlib.Path) else v for k, v in options.items()
    }
    config = detect.DetectConfig.parse({**plain, "name": name, "runs": str(out)})
    fresh, start = not config.folder.exists(), time.perf_counter()
    result = detect.train(config, resume=True)
    seconds = time.perf_counter() - start if fresh else None
    return {**result["best"], "run": result["run"], "seconds": seconds}


def row(model: str, metrics: dict, seconds: float | None = None) -> dict:
    """Return one line of a table."""
    return {
        "model": model,
        "mAP": f"{metrics['mAP']:.3f}",
        "mAP50": f"{metrics['mAP50']:.3f}",
        "training minutes": f"{seconds / 60:.1f}" if seconds else "",
    }


def bccd(out: pathlib.Path) -> None:
    """Train, quantise aware, export, measure the file; store the section."""
    best = run("bccd", BCCD, out)
    deployed = _deploy.deploy(
        _deploy.DeployOptions(run=best["run"], formats=("tflite-int8",), qat_epochs=2)
    )
    page.record(
        "bccd",
        "Blood cells (BCCD): EfficientNet-Lite0 + SSDLite at 320 px",
        "python benchmarks/detectors.py bccd",
        [
            row("Keras, float32", best, best["seconds"]),
            row("quantisation-aware", deployed["qat"]),
            row("int8 .tflite", deployed["files"]["tflite-int8"]["metrics"]),
        ],
        "205 training and 87 validation images, ImageNet weights, recipe `demo` with "
        f"{BCCD['epochs']} epochs; COCO metrics of the validation split by "
        "pycocotools, for the .tflite by running the file.",
    )


# Default boxes of 3 cells of stride 8 suit platelets; no option is needed.
HEADS = {
    "ssdlite": {"head_options": SMALL_BOXES},
    "efficientdet_lite0": {"head_options": {}},
}


def heads(out: pathlib.Path, epochs: int) -> None:
    """Train two heads alike, quantise aware, measure both files; store the section."""
    rows = []
    shared = {**BCCD, "epochs": epochs, "eval_every": epochs}
    for head, options in HEADS.items():
        best = run(f"bccd_{head}", {**shared, "head": head, **options}, out)
        deployed = _deploy.deploy(
            _deploy.DeployOptions(
                run=best["run"], formats=("tflite-int8",), qat_epochs=1
            )
        )
        file = deployed["files"]["tflite-int8"]
        size = {"file MB": f"{file['bytes'] / 1e6:.2f}"}
        for part, metrics in (("float32", best), ("int8 .tflite", file["metrics"])):
            line = row(f"{head}, {part}", metrics)
            del line["training minutes"]
            rows.append({**line, **(size if part != "float32" else {"file MB": ""})})
    page.record(
        "bccd_heads",
        "Blood cells (BCCD): SSDLite and EfficientDet-Lite0 on EfficientNet-Lite0",
        f"python benchmarks/detectors.py heads --epochs {epochs}",
        rows,
        f"Data, recipe and measurement as above, 320 px, {epochs} epochs for both; the "
        "int8 files after one epoch of quantisation-aware training.",
    )


def coco128(out: pathlib.Path) -> None:
    """Learn 128 images by heart; store the section."""
    best = run("coco128", COCO128, out)
    page.record(
        "coco128",
        "COCO128: can the detector learn its training images",
        "python benchmarks/detectors.py coco128",
        [row("EfficientNet-Lite0 + SSDLite at 320 px", best, best["seconds"])],
        "128 images of 80 classes, measured on the same images: a check of targets, "
        "loss and decoding, not of generalisation.",
    )


def main() -> None:
    """Run the named benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("bccd", "heads", "coco128"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs")
    parser.add_argument("--epochs", type=int, default=BCCD["epochs"], help="of `heads`")
    args = parser.parse_args()
    if args.name == "heads":
        heads(args.out, args.epochs)
    else:
        {"bccd": bccd, "coco128": coco128}[args.name](args.out)


if __name__ == "__main__":
    main()
