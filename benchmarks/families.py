"""Predict and build times of networks that kimm or keras.applications has too.

Run with: python benchmarks/families.py   (kimm: pip install --no-deps kimm)

Predict sees four batches in one call: starting one costs as much as a small network.
Each package works in a process of its own, as `turns` has it.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import page
import turns

OWN, KERAS, KIMM = "keras_lightnets", "keras.applications", "kimm"
# Network -> package -> what it is called there.
NETWORKS = {
    "MobileNetV2": {
        OWN: "MobileNetV2",
        KERAS: "MobileNetV2",
        KIMM: "MobileNetV2W100",
    },
    "MobileNetV3-Large": {OWN: "MobileNetV3Large", KERAS: "MobileNetV3Large"},
    "MobileNetV3-Small": {OWN: "MobileNetV3Small", KERAS: "MobileNetV3Small"},
    "EfficientNet-B0": {
        OWN: "EfficientNetB0",
        KERAS: "EfficientNetB0",
        KIMM: "EfficientNetB0",
    },
    "EfficientNetV2-B0": {
        OWN: "EfficientNetV2B0",
        KERAS: "EfficientNetV2B0",
        KIMM: "EfficientNetV2B0",
    },
    "EfficientNet-Lite0": {OWN: "EfficientNetLite0", KIMM: "EfficientNetLiteB0"},
    "GhostNet": {OWN: "GhostNet", KIMM: "GhostNetW100"},
}


def prepare(
    package: str, function: str, size: int, batch: int
) -> Callable[[], tuple[float, float]]:
    """Return what measures milliseconds per layer (build) and per image (predict)."""
    # The first build of a process starts the backend.
    model = turns.build(package, function, size)
    shape = (4 * batch, size, size, 3)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    model.predict(x, batch_size=batch, verbose=0)

    def measure() -> tuple[float, float]:
        start = time.perf_counter()
        built = turns.build(package, function, size)
        middle = time.perf_counter()
        model.predict(x, batch_size=batch, verbose=0)
        end = time.perf_counter()
        layers = len(built.layers)
        return 1000 * (middle - start) / layers, 1000 * (end - middle) / len(x)

    return measure


def rows_of(network: str, times: dict[str, list[tuple[float, float]]]) -> list[dict]:
    """Return a row per package; ratios are taken round by round."""
    rows = []
    for package, values in times.items():
        builds, predicts = zip(*values, strict=True)
        own_builds, own_predicts = zip(*times[OWN], strict=True)

        def ratio(a: tuple[float, ...], b: tuple[float, ...]) -> float:
            return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 2)

        rows.append(
            {
                "network": network,
                "package": package,
                "predict, ms per image": round(statistics.median(predicts), 2),
                "ours predicts faster by": ratio(predicts, own_predicts),
                "build, ms per layer": round(statistics.median(builds), 3),
                "ours per layer to theirs": ratio(own_builds, builds),
            }
        )
    return rows


def main() -> None:
    """Measure, print and, for the whole table, store the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=None)
    args = parser.parse_args()
    rows = []
    for network in args.only or NETWORKS:
        times = turns.take_turns(
            prepare, NETWORKS[network], (args.size, args.batch), args.rounds
        )
        for row in rows_of(network, times):
            rows.append(row)
            print(row, flush=True)
    if args.only:
        return
    page.record(
        "families",
        "Predict and build",
        "python benchmarks/families.py",
        rows,
        "`predict` of four batches, and building the network anew; each package in "
        "a process of its own, rounds interleaved, medians; ratios are taken round by "
        "round. Networks are those that kimm 0.2.5 or keras.applications has too; "
        "kimm does not build MobileNetV3 without weights. Where a machine's times come "
        "in coarse steps, small differences do not show.",
    )


if __name__ == "__main__":
    main()
