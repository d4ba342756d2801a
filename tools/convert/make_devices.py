"""Makes tests/golden/devices.json: what runs where, measured on int8 files.

Run it from a checkout where the package is installed with its extras::

    python tools/convert/make_devices.py [--files FOLDER] [NAME ...]
    python tools/convert/make_devices.py --files FOLDER --latency

Without names it takes the smallest int8 network of every family that is not in the file
yet. Each is converted at a small size after calibration on noise, without its softmax
and with its parallel branches merged, as `export` writes classifiers; weights are
random. Which operators run where depends neither on the weights nor, but for the
largest maps, on the size; cycles and memory do not depend on the weights but for their
compression. `--latency` times the files that an earlier run has left in FOLDER, and
wants the machine for itself.
"""

import argparse
import importlib.metadata
import logging
import pathlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lightnets.tools.convert import golden_files

LOG = logging.getLogger(__name__)
SIZE = 96
CALIBRATION = 4
RUNS = 30


def smallest(family: str) -> str | None:
    """Return the family's int8 network with the fewest parameters, None without.

    Args:
        family: Name in the registry's FAMILIES.
    """
    from keras_lightnets._registry import family_module

    def params(name: str) -> int:
        return golden_files.read(name)["params"]

    names = [spec.name for spec in family_module(family).SPECS if spec.int8_ok]
    return min(names, key=params, default=None)


def convert(name: str) -> bytes:
    """Return a network's int8 file, with int8 input and logits.

    Args:
        name: Registry name.
    """
    import keras

    import keras_lightnets
    from keras_lightnets.tools import bench
    from keras_lightnets.tools.export import tflite
    from keras_lightnets.tools.fuse import merge_branches

    keras.utils.set_random_seed(0)
    side = min(SIZE, keras_lightnets.get_spec(name).default_size)
    model = keras_lightnets.create_model(
        name,
        weights=None,
        input_shape=(side, side, 3),
        classifier_activation=None,
    )
    bench.settle(model, _pictures(side))
    made = merge_branches(model)
    return tflite.convert(made, "int8", "int8", list(_pictures(side)))


def _pictures(side: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (CALIBRATION, side, side, 3)).astype("float32")


def facts(content: bytes) -> dict[str, Any]:
    """Try a file on every device that can be tried here.

    Args:
        content: The int8 file.

    Returns:
        Size, XNNPACK partitions, Arm's estimates by target, TFLite Micro's report.
    """
    from keras_lightnets.tools.export import ethosu, micro, opened

    file = opened.TFLiteFile(content)
    side = file.io["inputs"][0]["shape"][1]
    tried = micro.report(content, list(_pictures(side)))
    return {
        "size": side,
        "bytes": len(content),
        "ops": sum(file.ops.values()),
        "xnnpack_partitions": file.xnnpack_partitions,
        "npu": {target: _npu(content, target) for target in ethosu.TARGETS},
        "micro": {
            "arena_bytes": tried.arena_bytes,
            "equal": tried.equal,
            "max_error_steps": tried.max_error_steps,
            "problem": tried.problem,
            "missing": dict(tried.missing),
        },
    }


def _npu(content: bytes, target: str) -> dict[str, Any]:
    """Return Vela's estimate, or its reason where it does not compile the file."""
    from keras_lightnets.tools.export import ethosu

    try:
        (row,) = ethosu.estimates(content, [target])
    except ValueError as error:
        return {"problem": str(error)}
    counts = Counter(op.op for op in row.cpu_ops)
    reasons = {op.op: op.reason for op in reversed(row.cpu_ops)}
    rate = row.inferences_per_second
    return {
        "cycles": row.cycles,
        "inferences_per_second": None if rate is None else round(rate, 1),
        "sram_kib": round(row.sram_kib, 1),
        "dram_kib": round(row.dram_kib, 1),
        "flash_kib": round(row.flash_kib, 1),
        "cpu_ops": {
            op: {"count": count, "reason": reasons[op]} for op, count in counts.items()
        },
    }


def latency(path: pathlib.Path) -> dict[str, float]:
    """Return the median time of a file in LiteRT, threads to milliseconds.

    Args:
        path: The .tflite file.
    """
    from keras_lightnets.tools import runtime

    found = {}
    for threads in (1, 2):
        model = runtime.TFLiteModel(path, threads)
        picture = np.full(model.inputs[0]["shape"], 99)
        seconds = []
        for _ in range(RUNS + 3):
            start = time.perf_counter()
            model.run(picture)
            seconds.append(time.perf_counter() - start)
        found[str(threads)] = round(1000 * statistics.median(seconds[3:]), 3)
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages that were asked."""
    names = ("ai-edge-litert", "ethos-u-vela", "tflite-micro")
    return {name: importlib.metadata.version(name) for name in names}


def main(arguments: Sequence[str]) -> int:
    """Write the facts of the named networks, or of all that lack.

    Args:
        arguments: Command line; see the module's text.

    Returns:
        The process's exit status.
    """
    parser = argparse.ArgumentParser(description="Make tests/golden/devices.json.")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--files", type=pathlib.Path, help="keep the files here")
    parser.add_argument("--latency", action="store_true", help="only time the files")
    options = parser.parse_args(arguments)
    known = golden_files.read("devices", missing={"networks": {}})
    networks = known["networks"]
    if options.latency:
        for path in sorted(options.files.glob("*.tflite")):
            networks[path.stem]["latency_ms"] = latency(path)
        _write(known)
        return 0
    import keras

    from keras_lightnets._registry import FAMILIES

    wanted = [smallest(family) for family in FAMILIES]
    known["versions"] = versions()
    for name in options.names or [n for n in wanted if n and n not in networks]:
        content = convert(name)
        if options.files:
            options.files.mkdir(parents=True, exist_ok=True)
            (options.files / f"{name}.tflite").write_bytes(content)
        networks[name] = facts(content)
        LOG.info("%s %s", name, networks[name])
        keras.backend.clear_session()
        _write(known)
    return 0


def _write(known: dict[str, Any]) -> None:
    known["networks"] = dict(sorted(known["networks"].items()))
    golden_files.write("devices", known)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
