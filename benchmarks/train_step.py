"""Training step of our networks against keras.applications and kimm.

Run with: python benchmarks/train_step.py   (kimm: pip install --no-deps kimm)

Each network is trained by the same `fit` on the same arrays, as `turns` has it.
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


def prepare(package: str, function: str, size: int, batch: int) -> Callable[[], float]:
    """Build a network; return what trains it and returns the images per second."""
    import keras

    model = turns.build(package, function, size)
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

    def measure() -> float:
        start = time.perf_counter()
        model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
        return epochs * len(x) / (time.perf_counter() - start)

    return measure


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
            speeds = turns.take_turns(prepare, functions, (size, batch), args.rounds)
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
