"""Predict and build times of networks that kimm or keras.applications has too.

Run with: python benchmarks/families.py   (kimm: pip install --no-deps kimm)

Each network predicts in a process of its own, as in train_step.py; rounds are
interleaved and only one process works at a time, so a busy moment of the machine
meets every side. One batch in memory is seen again: reading it is not part of it.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import page
from train_step import SOURCES

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


def work(package: str, function: str, size: int, batch: int, pipe: Connection) -> None:
    """For every True that arrives send milliseconds per layer and per image."""
    import keras

    module, options = SOURCES[package]
    function = getattr(importlib.import_module(module), function)

    def build() -> keras.Model:
        return function(
            input_shape=(size, size, 3),
            weights=None,
            classifier_activation=None,
            **options,
        )

    # The first build of a process starts the backend.
    model = build()
    x = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype("float32")
    model.predict(x, batch_size=batch, verbose=0)
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter()
        built = build()
        middle = time.perf_counter()
        layers = len(built.layers)
        for _ in range(4):
            model.predict(x, batch_size=batch, verbose=0)
        end = time.perf_counter()
        pipe.send((1000 * (middle - start) / layers, 250 * (end - middle) / batch))


@contextlib.contextmanager
def workers(functions: dict[str, str], size: int, batch: int) -> Iterator[dict]:
    """Start a process per package, wait until it has built, end it afterwards."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for package, function in functions.items():
        pipes[package], theirs = context.Pipe()
        arguments = (package, function, size, batch, theirs)
        processes.append(context.Process(target=work, args=arguments))
        processes[-1].start()
        pipes[package].recv()
    yield pipes
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()


def measure(
    functions: dict[str, str], size: int, batch: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return (ms per layer, ms per image) of each package, round by round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    with workers(functions, size, batch) as pipes:
        for _ in range(rounds):
            for package, pipe in pipes.items():
                pipe.send(True)
                times[package].append(pipe.recv())
    return times


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
        times = measure(NETWORKS[network], args.size, args.batch, args.rounds)
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
        "`predict` of the same batch, and building the network anew; each package in "
        "a process of its own, rounds interleaved, medians; ratios are taken round by "
        "round. Networks are those that kimm 0.2.5 or keras.applications has too; "
        "kimm does not build MobileNetV3 without weights.",
    )


if __name__ == "__main__":
    main()
