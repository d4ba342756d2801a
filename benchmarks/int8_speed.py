"""Int8 .tflite files of this package against those of others, and against float.

Run with: python benchmarks/int8_speed.py FOLDER   (kimm: pip install --no-deps kimm)

The first run converts into FOLDER, which takes most of an hour; files that are there
are not made again. Theirs are made as their users do it: the TFLite converter reads
the Keras model and calibrates it.
"""

import argparse
import importlib
import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import page

from keras_lightnets import get_spec, list_models
from keras_lightnets._registry import family_of
from keras_lightnets.tools import bench

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "tests" / "golden"
SIDE = 224
KERAS, KIMM = "keras.applications", "kimm.models"
# Our network -> (package, what it is called there).
PEERS = {
    "mobilenet_v3_large": [(KERAS, "MobileNetV3Large")],
    "mobilenet_v2": [(KERAS, "MobileNetV2"), (KIMM, "MobileNetV2W100")],
    "efficientnet_lite0": [(KIMM, "EfficientNetLiteB0")],
    "ghostnet": [(KIMM, "GhostNetW100")],
}
PAPER = ("alexnet", "shufflenet_v1_g3_050")


def smallest() -> list[str]:
    """Return the variant with the fewest weights of every family that int8 takes."""
    found: dict[str, tuple[int, str]] = {}
    for name in list_models():
        if get_spec(name).int8_ok:
            golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
            size, family = (golden["params"], name), family_of(name)
            found[family] = min(found.get(family, size), size)
    return [name for _, name in sorted(found.values())]


def convert(folder: pathlib.Path, sections: list[str]) -> None:
    """Make the files of some sections that are missing."""
    from keras_lightnets.tools.export import tflite
    from keras_lightnets.tools.quantize.bridge import UnsupportedLayerError

    ours = {"int8_peers": PEERS, "int8_paper": PAPER, "int8_ops": PROFILED}
    names = [ours.get(section) or smallest() for section in sections]
    for name in dict.fromkeys(name for some in names for name in some):
        paths = {kind: folder / f"{name}.{kind}.tflite" for kind in bench.KINDS}
        if all(path.exists() for path in paths.values()):
            continue
        print("convert", name, flush=True)
        model, pictures = bench.settled(name, 0)
        for kind, path in paths.items():
            options = ("int8", "int8", pictures) if kind == "int8" else ()
            try:
                path.write_bytes(tflite.convert(model, *options))
            except UnsupportedLayerError as error:
                print("no file:", error, flush=True)
    peers = [*PEERS.values()] if "int8_peers" in sections else []
    for package, function in [peer for some in peers for peer in some]:
        path = folder / f"{package}.{function}.int8.tflite"
        if not path.exists():
            print("convert", package, function, flush=True)
            path.write_bytes(as_users_do(package, function))


def as_users_do(package: str, function: str) -> bytes:
    """Convert a network of another package with the TFLite converter."""
    import tensorflow as tf

    model = getattr(importlib.import_module(package), function)(
        input_shape=(SIDE, SIDE, 3), weights=None
    )

    def pictures() -> Iterator[list[np.ndarray]]:
        for picture in bench.random_pictures(SIDE):
            yield [picture[None]]

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = pictures
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    return converter.convert()


def measure(
    folder: pathlib.Path, names: list[str], threads: int, rounds: int
) -> dict[str, list[float]]:
    """Return the milliseconds of every round, by file, taken in turns."""
    timers = [bench.timer((folder / name).read_bytes(), threads) for name in names]
    times = bench.in_turns(timers, rounds)
    return {
        name: [1000 * value for value in values]
        for name, values in zip(names, times, strict=True)
    }


def partitions(folder: pathlib.Path, name: str) -> int | None:
    """Return in how many parts XNNPACK runs a file."""
    from keras_lightnets.tools.export.opened import TFLiteFile

    return TFLiteFile((folder / name).read_bytes()).xnnpack_partitions


def faster(theirs: list[float], ours: list[float]) -> tuple[float, float]:
    """Return the median of the ratios round by round, and best to best."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return round(statistics.median(ratios), 2), round(min(theirs) / min(ours), 2)


def peer_rows(folder: pathlib.Path, rounds: int) -> list[dict[str, Any]]:
    """Compare with the files that others' users get."""
    pairs = [
        (f"{name}.int8.tflite", f"{package}.{function}.int8.tflite")
        for name, peers in PEERS.items()
        for package, function in peers
    ]
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    times = {count: measure(folder, names, count, rounds) for count in (1, 2)}
    rows = []
    for ours, theirs in pairs:
        row: dict[str, Any] = {
            "network": ours.split(".")[0],
            "their file": theirs.removesuffix(".int8.tflite"),
            "parts, ours / theirs": " / ".join(
                str(partitions(folder, name)) for name in (ours, theirs)
            ),
        }
        for count, found in times.items():
            medians = [statistics.median(found[name]) for name in (ours, theirs)]
            row[f"ms at {count}T, ours / theirs"] = " / ".join(
                f"{value:.2f}" for value in medians
            )
            ratio, best = faster(found[theirs], found[ours])
            row[f"ours is faster by, {count}T (best to best)"] = f"{ratio} ({best})"
        rows.append(row)
    return rows


def paper_rows(folder: pathlib.Path, rounds: int) -> list[dict[str, Any]]:
    """Compare AlexNet with ShuffleNetV1 0.5x, of which the paper says 13 times."""
    rows = []
    for kind in bench.KINDS:
        names = [f"{name}.{kind}.tflite" for name in PAPER]
        found = measure(folder, names, 1, rounds)
        ratio, best = faster(*(found[name] for name in names))
        rows.append(
            {
                "kind": kind,
                **{
                    f"{name}, ms at 1T": round(statistics.median(times), 2)
                    for name, times in zip(PAPER, found.values(), strict=True)
                },
                "AlexNet takes, times": ratio,
                "best to best": best,
            }
        )
    return rows


def family_rows(folder: pathlib.Path, rounds: int) -> list[dict[str, Any]]:
    """Compare int8 with float, the smallest variant of every family."""
    names, left = [], []
    for name in smallest():
        there = (folder / f"{name}.int8.tflite").exists()
        (names if there else left).append(name)
    if left:
        print("without a file, left out:", *left, flush=True)
    files = [f"{name}.{kind}.tflite" for name in names for kind in bench.KINDS]
    found = measure(folder, files, 1, rounds)
    rows = []
    for name in names:
        float_times, int8_times = (
            found[f"{name}.{kind}.tflite"] for kind in bench.KINDS
        )
        ratio, best = faster(float_times, int8_times)
        rows.append(
            {
                "family": family_of(name),
                "network": name,
                "parts": partitions(folder, f"{name}.int8.tflite"),
                "float32, ms": round(statistics.median(float_times), 2),
                "int8, ms": round(statistics.median(int8_times), 2),
                "int8 is faster by": ratio,
                "best to best": best,
            }
        )
    return rows


# Networks whose operations are shown, and the kinds by a word of XNNPACK's name.
PROFILED = (
    "mobilenet_v3_large",
    "mobilenet_v2",
    "shufflenet_v1_g3_050",
    "squeezenext_g",
    "channelnet_v3",
    "micronet_m0",
)
KINDS_OF_OPS = {
    "Fully Connected": "1x1 convolutions and dense",
    "DWConv": "depthwise convolutions",
    "IGEMM": "other convolutions",
}


def kind_of(name: str) -> str:
    """Return the kind of an operation by XNNPACK's name."""
    return next((kind for word, kind in KINDS_OF_OPS.items() if word in name), "rest")


def products(content: bytes) -> dict[str, int]:
    """Return the multiply-adds of a file by kind of operation."""
    from keras_lightnets.tools.export import _flatbuffer

    found = dict.fromkeys([*KINDS_OF_OPS.values(), "rest"], 0)
    for op in _flatbuffer.read(content).ops:
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            kernel, out = op.inputs[1].shape, op.outputs[0].shape
            taps = kernel[1:3] if op.name == "DEPTHWISE_CONV_2D" else kernel[1:]
            grouped = op.name == "CONV_2D" and kernel[3] != op.inputs[0].shape[3]
            word = "Fully Connected"
            if op.name == "DEPTHWISE_CONV_2D":
                word = "DWConv"
            elif grouped or kernel[1:3] != (1, 1) and len(kernel) == 4:
                word = "IGEMM"
            found[KINDS_OF_OPS[word]] += math.prod(out) * math.prod(taps)
    return found


def op_rows(folder: pathlib.Path, rounds: int) -> list[dict[str, Any]]:
    """Show what each kind of operation takes in float and in int8."""
    from keras_lightnets.tools import op_profile

    rows = []
    for name in PROFILED:
        times: dict[str, dict[str, float]] = {}
        for kind in bench.KINDS:
            content = (folder / f"{name}.{kind}.tflite").read_bytes()
            times[kind] = {}
            for op in op_profile.profile(content, rounds):
                group = times[kind].setdefault(kind_of(op.name), 0.0)
                times[kind][kind_of(op.name)] = group + op.microseconds
        for group, count in products(content).items():
            row = {
                "network": name,
                "operations": group,
                "MMAdds": round(count / 1e6, 1),
            }
            for kind in bench.KINDS:
                spent = times[kind].get(group, 0.0)
                row[f"{kind}, us"] = round(spent)
                rate = f"{count / 1e3 / spent:.0f}" if count and spent else ""
                row[f"{kind}, GMAdds/s"] = rate
            rows.append(row)
    return rows


SECTIONS = {
    "int8_peers": (
        "Int8 files of keras.applications and kimm",
        peer_rows,
        "LiteRT with XNNPACK, random weights, 224 px, files with int8 inputs and "
        "outputs that read grey levels where the package's default does; rounds "
        "interleaved, medians, ratios round by round.",
    ),
    "int8_paper": (
        "AlexNet and ShuffleNetV1 0.5x (3 groups)",
        paper_rows,
        "The ShuffleNet paper measures 13 times on one core of a phone.",
    ),
    "int8_families": (
        "Int8 against float, one thread",
        family_rows,
        "The smallest variant of every family at its published size, random weights, "
        "rounds interleaved.",
    ),
    "int8_ops": (
        "What operations take, float and int8, one thread",
        op_rows,
        "By LiteRT's profiler, medians of each operation. Without int8 products of its "
        "own (VNNI, or Arm's dot product) a processor multiplies int8 no faster than "
        "float: the rates of 1x1 convolutions are equal, and windows of few channels "
        "are slower, as int8 kernels take eight at a time. Where convolutions are "
        "nearly all, as in MobileNetV2, equal networks take equal time.",
    ),
}


def main() -> None:
    """Convert, measure, print and store the sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--convert", action="store_true", help="Only make the files.")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    convert(args.folder, args.only)
    if args.convert:
        return
    for name in args.only:
        title, rows_of, note = SECTIONS[name]
        rows = rows_of(args.folder, args.rounds)
        for row in rows:
            print(row, flush=True)
        page.record(name, title, "python benchmarks/int8_speed.py FOLDER", rows, note)


if __name__ == "__main__":
    main()
