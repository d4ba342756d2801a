"""Import time and time to build a network.

Run with: python benchmarks/startup.py   (kimm: pip install --no-deps kimm)
"""

import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import page

IMPORTS = {
    "keras_lightnets": "import keras_lightnets",
    "keras_lightnets, all specs": "import keras_lightnets as k; k.list_models()",
    "keras": "import keras",
    "kimm": "import kimm",
}
CODE = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def import_seconds(statement: str, rounds: int = 3) -> float:
    """Return the median seconds of an import in fresh processes."""
    times = []
    for _ in range(rounds):
        shown = subprocess.run(
            [sys.executable, "-c", CODE.format(statement)],
            capture_output=True,
            text=True,
            check=True,
        )
        times.append(float(shown.stdout.split()[-1]))
    return statistics.median(times)


def builders() -> dict:
    """Return what is built -> function that builds it."""
    import keras
    import kimm

    import keras_lightnets

    options = {"weights": None, "input_shape": (224, 224, 3)}
    return {
        "MobileNetV2, keras_lightnets": lambda: keras_lightnets.MobileNetV2(**options),
        "MobileNetV2, keras.applications": lambda: keras.applications.MobileNetV2(
            **options
        ),
        "MobileNetV2, kimm": lambda: kimm.models.MobileNetV2W100(**options),
        "MobileNetV3Large, keras_lightnets": lambda: keras_lightnets.MobileNetV3Large(
            **options
        ),
        "MobileNetV3Large, keras.applications": (
            lambda: keras.applications.MobileNetV3Large(**options)
        ),
    }


def build_milliseconds(rounds: int = 5) -> list[dict]:
    """Return a row per network, rounds interleaved; the first round is not counted."""
    functions = builders()
    times: dict[str, list[float]] = {name: [] for name in functions}
    layers = {}
    for _ in range(rounds + 1):
        for name, build in functions.items():
            start = time.perf_counter()
            model = build()
            times[name].append(1000 * (time.perf_counter() - start))
            layers[name] = len(model.layers)
    rows = []
    for name, values in times.items():
        middle = statistics.median(values[1:])
        rows.append(
            {
                "what": f"build {name}",
                "seconds": f"{middle / 1000:.3f}",
                "ms per layer": f"{middle / layers[name]:.2f}",
            }
        )
    return rows


def main() -> None:
    """Measure and store the section."""
    rows = [
        {
            "what": f"import {name}",
            "seconds": f"{import_seconds(code):.3f}",
            "ms per layer": "",
        }
        for name, code in IMPORTS.items()
    ]
    rows += build_milliseconds()
    for row in rows:
        print(row, flush=True)
    page.record(
        "startup",
        "Import and build",
        "python benchmarks/startup.py",
        rows,
        "Imports in fresh processes, medians of 3; builds in one process, medians of 5 "
        "interleaved rounds at 224 px without weights. kimm 0.2.5 does not build "
        "MobileNetV3 without weights.",
    )


if __name__ == "__main__":
    main()
