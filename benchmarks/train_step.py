"""Training step of our networks against keras.applications and kimm.

Run with: python benchmarks/train_step.py   (kimm: pip install --no-deps kimm)

Each network is trained by the same `fit` on the same arrays, each in a process of
its own as a user trains it: in a shared one, memory that the first network freed
makes the later ones faster. Rounds are interleaved and only one process works at a
time, so a busy moment of the machine meets every side.
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

SOURCES = {
    "keras_lightnets": ("keras_lightnets", {"include_preprocessing": False}),
    "keras.applications": ("keras.applications", {}),
    "kimm": ("kimm.models", {"include_preprocessing": False}),
    # Our network of Keras' own layers: neither publisher above has grouped ones.
    "keras layers": ("keras_lightnets", {"include_preprocessing": False}),
}
# Network -> package -> what it is called there.
NETWORKS = {
    "MobileNetV2": {
        "keras_lightnets": "MobileNetV2",
        "keras.applications": "MobileNetV2",
        "kimm": "MobileNetV2W100",
    },
    "GhostNet": {"keras_lightnets": "GhostNet", "kimm": "GhostNetW100"},
    "ShuffleNetV1 0.5x, 3 groups": {
        "keras_lightnets": "ShuffleNetV1G3W050",
        "keras layers": "ShuffleNetV1G3W050",
    },
}


def train(package: str, function: str, size: int, batch: int, pipe: Connection) -> None:
    """Build a network, then train one round for every True that arrives.

    Sends the images per second of each round.
    """
    import keras

    module, options = SOURCES[package]
    build = getattr(importlib.import_module(module), function)
    model = build(
        input_shape=(size, size, 3),
        weights=None,
        classifier_activation=None,
        **options,
    )
    if package == "keras layers":
        model = keras.models.clone_model(model, clone_function=as_keras_has_it)
    rng = np.random.default_rng(0)
    # Two batches, seen again: reading the arrays must not be part of the step.
    epochs = 4 if size < 128 else 2
    x = rng.normal(size=(batch * 2, size, size, 3)).astype("float32")
    y = rng.integers(0, 1000, batch * 2)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.fit(x, y, batch_size=batch, verbose=0)
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter()
        model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
        pipe.send(epochs * len(x) / (time.perf_counter() - start))


def as_keras_has_it(layer):
    """Return the Keras layer that one of ours makes faster, others anew."""
    import keras

    kind = getattr(keras.layers, type(layer).__name__)
    return kind.from_config(layer.get_config())


@contextlib.contextmanager
def trainers(functions: dict[str, str], size: int, batch: int) -> Iterator[dict]:
    """Start a process per package, wait until it has built, end it afterwards."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for package, function in functions.items():
        pipes[package], theirs = context.Pipe()
        arguments = (package, function, size, batch, theirs)
        processes.append(context.Process(target=train, args=arguments))
        processes[-1].start()
        pipes[package].recv()
    yield pipes
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()


def measure(
    functions: dict[str, str], size: int, batch: int, rounds: int
) -> dict[str, list[float]]:
    """Return images per second of each package, one list entry per round."""
    speeds: dict[str, list[float]] = {package: [] for package in functions}
    with trainers(functions, size, batch) as pipes:
        for _ in range(rounds):
            for package, pipe in pipes.items():
                pipe.send(True)
                speeds[package].append(pipe.recv())
    return speeds


def main() -> None:
    """Measure, print and store the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=["96x32", "224x8"])
    args = parser.parse_args()
    rows = []
    for setting in args.only:
        size, batch = (int(v) for v in setting.split("x"))
        for network, functions in NETWORKS.items():
            speeds = measure(functions, size, batch, args.rounds)
            own = speeds["keras_lightnets"]
            for package, values in speeds.items():
                ratios = [a / b for a, b in zip(own, values, strict=True)]
                rows.append(
                    {
                        "network": network,
                        "size": size,
                        "batch": batch,
                        "package": package,
                        "images/s, median": round(statistics.median(values), 1),
                        "best round": round(max(values), 1),
                        "ours is faster by, median": round(
                            statistics.median(ratios), 2
                        ),
                        "best to best": round(max(own) / max(values), 2),
                    }
                )
                print(rows[-1], flush=True)
    page.record(
        "train_step",
        "Training step",
        "python benchmarks/train_step.py",
        rows,
        "The same `fit` with SGD and momentum in float32, each network in a process "
        "of its own, rounds interleaved; the median ratio is taken round by round, "
        "`best to best` compares the fastest rounds, which other users of the machine "
        "disturb least. The gain comes from TensorFlow's fused batch normalisation "
        "kernel, which Keras 3 does not use, and in grouped convolutions from the "
        "kernel that Keras 3 replaces by XLA. `keras layers` is our network with "
        "Keras' own layers in these two places.",
    )


if __name__ == "__main__":
    main()
