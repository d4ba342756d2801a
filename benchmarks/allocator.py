"""Training step with and without `keras_lightnets.keep_memory`.

Run with: python benchmarks/allocator.py

Linux with glibc only. Each side works in a process of its own, as `turns` has it.
"""

import argparse
import os
import resource
import statistics
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import page
import train_step
import turns

SETTINGS = ((96, 32), (224, 8), (320, 8))
SIDES = {"as it comes": "MobileNetV2", "keep_memory": "MobileNetV2"}


def prepare(
    side: str, function: str, size: int, batch: int
) -> Callable[[], tuple[float, float, float]]:
    """Return what measures images/s, seconds in the kernel per image, and MiB."""
    import keras_lightnets

    if side == "keep_memory" and not keras_lightnets.keep_memory():
        raise SystemExit("Needs Linux with glibc and no variable MALLOC_... set.")
    train = train_step.prepare("keras_lightnets", function, size, batch)
    # What `train` sees in one call; see its `epochs`.
    images = (4 if size < 128 else 2) * 2 * batch

    def measure() -> tuple[float, float, float]:
        before = resource.getrusage(resource.RUSAGE_SELF)
        speed = train()
        after = resource.getrusage(resource.RUSAGE_SELF)
        kernel = (after.ru_stime - before.ru_stime) / images
        return speed, kernel, after.ru_maxrss / 1024

    return measure


def main() -> None:
    """Measure, print and store the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for size, batch in SETTINGS:
        found = turns.take_turns(prepare, SIDES, (size, batch), args.rounds)
        plain = [speed for speed, _, _ in found["as it comes"]]
        for side, values in found.items():
            speeds, kernel, memory = zip(*values, strict=True)
            ratios = [a / b for a, b in zip(speeds, plain, strict=True)]
            rows.append(
                {
                    "network": SIDES[side],
                    "size": size,
                    "batch": batch,
                    "memory": side,
                    "images/s, median": round(statistics.median(speeds), 1),
                    "ratio, median": round(statistics.median(ratios), 2),
                    "best to best": round(max(speeds) / max(plain), 2),
                    "kernel ms per image": round(1000 * statistics.median(kernel), 1),
                    "peak MiB": round(max(memory)),
                }
            )
            print(rows[-1], flush=True)
    page.record(
        "allocator",
        "Memory that the process keeps",
        "python benchmarks/allocator.py",
        rows,
        "Training step as above, with and without `keras_lightnets.keep_memory()`, "
        "which `train` calls on the CPU: glibc then keeps freed blocks instead of "
        "giving them back to the kernel, which clears their pages at each step.",
    )


if __name__ == "__main__":
    main()
