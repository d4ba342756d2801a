"""Segmenters on CamVid, trained on the CPU, float and int8; latency of two heads.

Run with: python benchmarks/segmentation.py camvid | espnet | heads
(LIGHTNETS_SHARED: data; KERAS_LIGHTNETS_MIRROR: ESPNet's official files)

`camvid` trains EfficientNet-Lite0 with LR-ASPP and measures the validation split with
the Keras model and with the int8 file itself. `espnet` quantises ESPNet with its
official weights, as it is and with equalised channels. `heads` times LR-ASPP against
R-ASPP on the same backbone through LiteRT, in turns.
"""

import argparse
import itertools
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
    "freeze": "c3",
    "epochs": 9,
    "batch_size": 4,
    "eval_every": 9,
    "deterministic": False,
}
# MobileNetV3, table 7: Cityscapes' classes and half its resolution.
CLASSES, SIZE, ROUNDS = 19, (512, 1024), 30
HALVED = {"reduced_tail": True, "reduced_expand": True}
# Backbone and its options, maps, head and its filters; as in tables 7 and 8 of the
# paper MobileNetV2 is cut before its last 1x1 convolution.
NETS: dict[str, tuple[str, dict, tuple[str, ...], str, int]] = {
    "MobileNetV2, R-ASPP": ("mobilenet_v2", {}, ("c5",), "raspp", 256),
    "MobileNetV2, LR-ASPP": ("mobilenet_v2", {}, ("c3", "c5"), "lraspp", 128),
    "MobileNetV3-Large halved, LR-ASPP": (
        *("mobilenet_v3_large", HALVED),
        *(("c3", "features"), "lraspp", 128),
    ),
}


def row(model: str, found: dict) -> dict:
    """Return one line of the CamVid table."""
    return {
        "model": model,
        "mIoU": f"{found['miou']:.4f}",
        "class accuracy": f"{found['class_accuracy']:.4f}",
        "pixel accuracy": f"{found['pixel_accuracy']:.4f}",
        "boundary F1": f"{found['boundary_f1']:.4f}",
    }


def camvid(out: pathlib.Path, options: dict) -> None:
    """Train, export, measure the files; store the section.

    Args:
        out: Folder of the runs.
        options: Options of the segmentation task.
    """
    config = segment.SegmentConfig.parse(
        {**options, "name": "camvid", "runs": str(out)}
    )
    best = segment.train(config, resume=True)["best"]
    work = _deploy.Deployment(_deploy.DeployOptions(run=str(config.folder)))
    file = work.export("tflite-int8")
    height, width = config.size
    page.record(
        "camvid",
        f"CamVid: EfficientNet-Lite0 + LR-ASPP at {width} x {height}",
        "python benchmarks/segmentation.py camvid",
        [
            row("Keras, float32", best),
            row("int8 .tflite", file["metrics"]),
        ],
        "184 training and 101 validation images, 11 classes, void left out; ImageNet "
        f"weights, recipe `demo` with {config.epochs} epochs, stages up to stride 8 "
        "frozen. The file measured by running it; int8 after training, on 100 training "
        "images.",
    )


def espnet(out: pathlib.Path) -> None:
    """Quantise ESPNet's official CamVid weights for two targets, plain and equalised.

    Args:
        out: Folder of the files.
    """
    from keras_lightnets import heads as registry
    from keras_lightnets.tools.export import formats
    from keras_lightnets.tools.quantize.equalise import equalise
    from keras_lightnets.tools.runtime_labels import LabelMeta

    def measure(model: str, **options: str) -> dict:
        return segment.evaluate(
            segment.EvalOptions(model=model, data=CAMVID["data"], **options)
        )

    model, labels = registry.create_segmenter("espnet", "camvid")
    size = (CAMVID["image_height"], CAMVID["image_size"])
    train = segment.open_data(segment.SegmentConfig.parse(CAMVID)).train
    pictures = [train.sample(i)[0] for i in range(0, len(train), 4)]
    rows = [row("Keras, float32", measure("espnet", weights="camvid"))]
    sources = {"": model, ", equalised": equalise(model, pictures)}
    for target, (name, source) in itertools.product(
        ("tflite-int8", "edgetpu"), sources.items()
    ):
        path = out / "espnet" / f"{target}{name[2:]}" / "model.tflite"
        formats.export(
            source,
            target,
            path,
            calibration=pictures,
            samples=pictures[:2],
            detector=formats.Detector(LabelMeta("segment", labels, size), None),
        )
        rows.append(row(f"{target}{name}", measure(str(path))))
        print(rows[-1], flush=True)
    page.record(
        "espnet",
        "CamVid: ESPNet with the authors' weights",
        "python benchmarks/segmentation.py espnet",
        rows,
        f"101 validation images at {size[1]} x {size[0]}, files measured by running "
        f"them; quantised after training on {len(pictures)} training images. The "
        "image, whose values are a hundredth of the other channels', joins them three "
        "times; `equalise` moves factors across these joints, which changes no float "
        "output.",
    )


def heads(out: pathlib.Path) -> None:
    """Time two heads on one backbone, and the paper's pair, in turns.

    Args:
        out: Not used.
    """
    import keras_lightnets
    from keras_lightnets import heads as registry
    from keras_lightnets.tools import runtime
    from keras_lightnets.tools.export import tflite

    models = {}
    for name, (backbone, options, maps, head, filters) in NETS.items():
        body = keras_lightnets.create_model(
            backbone,
            include_top=False,
            weights=None,
            input_shape=(*SIZE, 3),
            endpoints=maps,
            output_stride=16,
            **options,
        )
        config = registry.HEADS[head].config(classes=CLASSES, filters=filters)
        model = registry.attach(body, head, config)
        content = tflite.convert(model, "float32", "float", None)
        models[name] = runtime.TFLiteModel(content, 1)
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
        f"R-ASPP and LR-ASPP at {SIZE[1]} x {SIZE[0]}",
        "python benchmarks/segmentation.py heads",
        [
            {
                "network": name,
                "latency_ms": f"{value:.1f}",
                "against the first": f"{100 * (value / first - 1):+.0f} %",
            }
            for name, value in medians.items()
        ],
        f"float32 through LiteRT on one thread, median of {ROUNDS} runs in turns. "
        "The abstract of MobileNetV3 calls the third 34 % faster than the first.",
    )


def main() -> None:
    """Run the named benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("camvid", "espnet", "heads"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs")
    parser.add_argument("--epochs", type=int, default=CAMVID["epochs"])
    args = parser.parse_args()
    if args.name != "camvid":
        {"espnet": espnet, "heads": heads}[args.name](args.out)
    else:
        camvid(args.out, {**CAMVID, "epochs": args.epochs})


if __name__ == "__main__":
    main()
