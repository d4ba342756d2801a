"""How long an exported file takes on this machine, and what machine that is."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets.tools import bench
from keras_lightnets.tools.export.opened import OpenedFile

WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one picture at one number of threads.

    Attributes:
        threads: Threads of the interpreter.
        median_ms: Median of the runs.
        low_ms: Lower quartile.
        high_ms: Upper quartile.
        runs: How many were timed.
    """

    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


def measure(
    opener: Callable[..., OpenedFile],
    content: bytes,
    threads: Sequence[int] = (1, 2),
    runs: int = 20,
) -> tuple[Latency, ...]:
    """Time a file; the numbers of threads take turns.

    Args:
        opener: A format's `open`.
        content: The file.
        threads: Numbers of threads.
        runs: Timed runs of each.

    Returns:
        One row per number of threads: from a picture of 0-255 to float outputs.

    Raises:
        ValueError: If a number is below 1.
    """
    if runs < 1 or min(threads, default=0) < 1:
        raise ValueError(
            f"threads and runs must be 1 or more. Received: {list(threads)}, {runs}"
        )
    files = [opener(content, count) for count in threads]
    shape = files[0].io["inputs"][0]["shape"]
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)

    def timer(file: OpenedFile) -> Callable[[], float]:
        def timed() -> float:
            start = time.perf_counter()
            file.run(picture)
            return (time.perf_counter() - start) * 1e3

        return timed

    timers = [timer(file) for file in files]
    bench.in_turns(timers, WARM_UP)
    rows = []
    for count, times in zip(threads, bench.in_turns(timers, runs), strict=True):
        low, middle, high = (float(v) for v in np.percentile(times, (25, 50, 75)))
        rows.append(Latency(count, middle, low, high, runs))
    return tuple(rows)


def machine() -> dict[str, Any]:
    """Return processor, number of cores, system and Python of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
