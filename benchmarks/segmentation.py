"""Segmenters on CamVid, trained on the CPU, float and int8; latency of two heads.

Run with: python benchmarks/segmentation.py camvid | heads   (LIGHTNETS_SHARED: data)

`camvid` trains EfficientNet-Lite0 with LR-ASPP and measures the validation split with
the Keras model and with the int8 file itself. `heads` times LR-ASPP against R-ASPP on
the same backbone through LiteRT, in turns.
"""

import argparse
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import page

from keras_lightnets import _deploy
from keras_lightnets.tasks import segment

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = pathlib.Path(os.environ.get("LIGHTNETS_SHARED", ROOT.parent / "shared"))

CAMVID = {
    "recipe": "demo",
    "data": str(SHARED / "data" / "camvid"),
    "image_size": 480,
    "image_height": 360,
    "head": "lraspp",
    "dice": 0.5,
    "learning_rate": 1.5e-3,
    "epochs": 16,
    "batch_size": 4,
    "eval_every": 4,
}
# MobileNetV3, table 7: Cityscapes' classes and half its resolution.
CLASSES, SIZE, ROUNDS = 19, (512, 1024), 30


def row(model: str, found: dict, seconds: float | None = None) -> dict:
    """Return one line of the CamVid table."""
    return {
        "model": model,
        "mIoU": f"{found['miou']:.4f}",
        "class accuracy": f"{found['class_accuracy']:.4f}",
        "pixel accuracy": f"{found['pixel_accuracy']:.4f}",
        "boundary F1": f"{found['boundary_f1']:.4f}",
        "training minutes": f"{seconds / 60:.1f}" if seconds else "",
    }


def camvid(out: pathlib.Path, options: dict) -> None:
    """Train, export, measure the files; store the section.

    Args:
        out: Folder of the runs.
        options: Options of the segmentation task.
    """
    config = segment.SegmentConfig.parse({**options, "name": "camvid", "runs": out})
    start = time.perf_counter()
    best = segment.train(config, resume=True)["best"]
    seconds = time.perf_counter() - start
    deployed = _deploy.deploy(
        _deploy.DeployOptions(
            run=str(config.folder), formats=("tflite-float32", "tflite-int8")
        )
    )
    files = {name: file["metrics"] for name, file in deployed["files"].items()}
    height, width = config.size
    page.record(
        "camvid",
        f"CamVid: EfficientNet-Lite0 + LR-ASPP at {width} x {height}",
        "python benchmarks/segmentation.py camvid",
        [
            row("Keras, float32", best, seconds),
            row("float32 .tflite", files["tflite-float32"]),
            row("int8 .tflite", files["tflite-int8"]),
        ],
        "184 training and 101 validation images, 11 classes, void left out; ImageNet "
        f"weights, recipe `demo` with {config.epochs} epochs. Files measured by "
        "running them; int8 after training, on 100 training images.",
    )


def heads(out: pathlib.Path) -> None:
    """Time two heads on one backbone in turns; store the section.

    Args:
        out: Not used.
    """
    from keras_lightnets.tools import runtime
    from keras_lightnets.tools.export import tflite

    models = {}
    for head, filters in (("raspp", 256), ("lraspp", 128)):
        config = segment.SegmentConfig(
            labels=tuple(str(i) for i in range(CLASSES)),
            backbone="mobilenet_v2",
            weights=None,
            head=head,
            head_options={"filters": filters},
            image_height=SIZE[0],
            image_size=SIZE[1],
        )
        model = segment.build_model(config)
        content = tflite.convert(model, "float32", "float", None)
        models[f"{head}, {filters} filters"] = runtime.TFLiteModel(content, 1)
    picture = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3)).astype("float32")
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 1):
        for name, file in models.items():
            start = time.perf_counter()
            file.run(picture)
            if number:  # the first run warms up
                times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    page.record(
        "seg_heads",
        f"R-ASPP and LR-ASPP on MobileNetV2 at {SIZE[1]} x {SIZE[0]}",
        "python benchmarks/segmentation.py heads",
        [
            {
                "head": name,
                "latency_ms": f"{value:.1f}",
                "against R-ASPP": f"{100 * (value / first - 1):+.0f} %",
            }
            for name, value in medians.items()
        ],
        f"float32 through LiteRT on one thread, median of {ROUNDS} runs in turns.",
    )


def main() -> None:
    """Run the named benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("camvid", "heads"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs")
    parser.add_argument("--epochs", type=int, default=CAMVID["epochs"])
    args = parser.parse_args()
    if args.name == "heads":
        heads(args.out)
    else:
        camvid(args.out, {**CAMVID, "epochs": args.epochs})


if __name__ == "__main__":
    main()
