"""Training step of our networks against keras.applications and kimm.

Run with: python benchmarks/train_step.py   (kimm: pip install --no-deps kimm)

Each network is trained by the same `fit` on the same arrays; rounds are
interleaved, so a busy moment of the machine meets every side.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import page

import keras_lightnets


def networks(size: int) -> dict[str, dict[str, keras.Model]]:
    """Return network -> publisher -> model, built alike: no weights, 1000 classes."""
    import kimm

    shape = (size, size, 3)
    logits = {"weights": None, "classifier_activation": None}
    kimm_options = {"input_shape": shape, "include_preprocessing": False, **logits}
    ours = {"input_shape": shape, "include_preprocessing": False, **logits}
    return {
        "MobileNetV2": {
            "keras_lightnets": keras_lightnets.MobileNetV2(**ours),
            "keras.applications": keras.applications.MobileNetV2(
                input_shape=shape, **logits
            ),
            "kimm": kimm.models.MobileNetV2W100(**kimm_options),
        },
        "GhostNet": {
            "keras_lightnets": keras_lightnets.GhostNet(**ours),
            "kimm": kimm.models.GhostNetW100(**kimm_options),
        },
    }


def measure(models: dict[str, keras.Model], size: int, batch: int, rounds: int):
    """Return images per second of each model, one list entry per round."""
    rng = np.random.default_rng(0)
    # Two batches, seen again: reading the arrays must not be part of the step.
    epochs = 4 if size < 128 else 2
    x = rng.normal(size=(batch * 2, size, size, 3)).astype("float32")
    y = rng.integers(0, 1000, batch * 2)
    for model in models.values():
        model.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        model.fit(x, y, batch_size=batch, verbose=0)
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
            speeds[name].append(epochs * len(x) / (time.perf_counter() - start))
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
        for network, models in networks(size).items():
            speeds = measure(models, size, batch, args.rounds)
            own = speeds["keras_lightnets"]
            for name, values in speeds.items():
                ratios = [a / b for a, b in zip(own, values, strict=True)]
                rows.append(
                    {
                        "network": network,
                        "size": size,
                        "batch": batch,
                        "package": name,
                        "images/s, median": round(statistics.median(values), 1),
                        "best round": round(max(values), 1),
                        "ours is faster by, median": round(
                            statistics.median(ratios), 2
                        ),
                        "best to best": round(max(own) / max(values), 2),
                    }
                )
                print(rows[-1], flush=True)
            keras.backend.clear_session()
    page.record(
        "train_step",
        "Training step",
        "python benchmarks/train_step.py",
        rows,
        "The same `fit` with SGD and momentum in float32, rounds interleaved; the "
        "median ratio is taken round by round, `best to best` compares the fastest "
        "rounds, which other users of the machine disturb least. The gain comes from "
        "TensorFlow's fused batch normalisation kernel, which Keras 3 does not use.",
    )


if __name__ == "__main__":
    main()
