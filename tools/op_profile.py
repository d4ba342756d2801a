"""What each operation of a .tflite file costs, by LiteRT's own profiler.

The interpreter's Python interface has no profiler; LiteRT's C library, which comes in
the same package, has. It is called in a process of its own, so that a release with
another interface ends that process and not the caller's. XNNPACK reports the kernels
that it has chosen, so their names are its own.
"""

import ctypes
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_lightnets._errors import require
from keras_lightnets._registry import get_spec

# Of LiteRT's kinds of events: an operation on plain kernels, one inside a delegate.
PLAIN, DELEGATED = 2, 8
# Element types of LiteRT by TFLite's.
_ELEMENTS = {0: 1, 3: 3, 9: 9}
_CPU = 1


@dataclasses.dataclass(frozen=True)
class OpTime:
    """What one operation takes.

    Attributes:
        name: XNNPACK's name of the kernel, or TFLite's of the operation.
        microseconds: Median of the runs.
        delegated: Whether XNNPACK runs it.
    """

    name: str
    microseconds: float
    delegated: bool


def profile(content: bytes, runs: int = 30, threads: int = 1) -> list[OpTime]:
    """Measure every operation of a file.

    Args:
        content: The .tflite file.
        runs: Measured runs, behind three that are not.
        threads: Threads of XNNPACK.

    Returns:
        The operations in order of execution. Inputs are zeros.

    Raises:
        MissingExtraError: If LiteRT is not installed.
        RuntimeError: If this release of LiteRT does not profile the file.

    Example:
        >>> ops = profile(Path("model.tflite").read_bytes())  # doctest: +SKIP
        >>> ops[0].name  # doctest: +SKIP
        'Convolution (NHWC, QC8) IGEMM'
    """
    require("ai_edge_litert", "litert")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path), str(runs), str(threads)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise RuntimeError(
            f"This release of ai-edge-litert does not profile the file: {reason[0]}. "
            "Version 2.3 does."
        )
    rows = json.loads(done.stdout.splitlines()[-1])
    return [OpTime(**row) for row in rows]


def by_name(ops: Sequence[OpTime]) -> list[tuple[str, int, float]]:
    """Sum the operations of one name.

    Args:
        ops: What `profile` returned.

    Returns:
        (name, number of operations, microseconds of all), the longest first.

    Example:
        >>> by_name([OpTime("Add", 2.0, True), OpTime("Add", 3.0, True)])
        [('Add', 2, 5.0)]
    """
    found: dict[str, list[float]] = {}
    for op in ops:
        found.setdefault(op.name, []).append(op.microseconds)
    rows = [(name, len(times), sum(times)) for name, times in found.items()]
    return sorted(rows, key=lambda row: -row[2])


def profile_networks(
    names: Sequence[str],
    *,
    size: int = 0,
    threads: int = 1,
    runs: int = 30,
    calibration: Sequence[Any] | None = None,
) -> dict[tuple[str, str], list[OpTime]]:
    """Convert networks with random weights and measure their operations.

    Args:
        names: Registry names, or shell patterns of them.
        size: Input side in pixels; 0 for each network's published one.
        threads: Threads of XNNPACK.
        runs: Measured runs of every file.
        calibration: Pictures for the int8 ranges; random ones when not given.

    Returns:
        The operations of each file by (network, "float32" or "int8").
    """
    from keras_lightnets.tools import bench
    from keras_lightnets.tools.export import tflite

    found = {}
    for name in bench.expand(names):
        pictures = None if calibration is None else list(calibration)
        model, shown = bench.settled(name, size, pictures)
        files = {"float32": tflite.convert(model)}
        if get_spec(name).int8_ok:
            files["int8"] = tflite.convert(model, "int8", "int8", shown)
        for kind, content in files.items():
            found[name, kind] = profile(content, runs, threads)
    return found


def table(title: str, ops: Sequence[OpTime]) -> Any:
    """Return the operations by name as a `rich.table.Table`, the longest first.

    Args:
        title: Heading.
        ops: What `profile` returned.
    """
    from rich import box
    from rich.table import Table

    whole = sum(op.microseconds for op in ops)
    plain = {op.name for op in ops if not op.delegated}
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    made.add_column("operation", no_wrap=True)
    for header in ("count", "us", "share, %"):
        made.add_column(header, justify="right")
    for name, count, time in by_name(ops):
        shown = f"{name} (outside XNNPACK)" if name in plain else name
        made.add_row(shown, str(count), f"{time:.0f}", f"{100 * time / whole:.1f}")
    made.add_row("all", str(len(ops)), f"{whole:.0f}", "100.0")
    return made


class _Layout(ctypes.Structure):
    _fields_ = [
        ("rank", ctypes.c_uint, 7),
        ("has_strides", ctypes.c_uint, 1),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    ]


class _TensorType(ctypes.Structure):
    _fields_ = [("element", ctypes.c_int), ("layout", _Layout)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start", ctypes.c_uint64),
        ("elapsed", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    ]


class _Session:
    """A file opened through LiteRT's C library, with profiling on."""

    def __init__(self, path: str, threads: int) -> None:
        found = importlib.util.find_spec("ai_edge_litert")
        if found is None or found.origin is None:
            raise RuntimeError("ai-edge-litert is not installed")
        self._library = ctypes.CDLL(str(Path(found.origin).with_name("libLiteRt.so")))
        self._kept: list[Any] = []
        self._environment = self._made("LiteRtCreateEnvironment", 0, None)
        model = self._made(
            "LiteRtCreateModelFromFile", self._environment, path.encode()
        )
        options = self._made("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._option(options, "runtime_options_string", "enable_profiling = true\n")
        self._option(options, "xnnpack", f"num_threads = {threads}\n")
        ends = (self._environment, model, options)
        self._model = self._made("LiteRtCreateCompiledModel", *ends)
        self._profiler = self._made("LiteRtCompiledModelGetProfiler", self._model)
        shapes = list(_ends(path))
        self._buffers = {
            side: self._allocate(side, [t for s, t in shapes if s == side])
            for side in ("Input", "Output")
        }

    def run(self) -> list[tuple[str, float, bool]]:
        """Run once; return name, microseconds and whether XNNPACK ran it, by op."""
        ins, outs = self._buffers["Input"], self._buffers["Output"]
        sizes = [ctypes.c_size_t(n) for n in (0, len(ins), len(outs))]
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        self._call(
            "LiteRtRunCompiledModel", self._model, *sizes[:2], ins, sizes[2], outs
        )
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        return [
            (event.tag.decode(), float(event.elapsed), event.kind == DELEGATED)
            for event in events
            if event.kind in (PLAIN, DELEGATED)
        ]

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} returns {status}")

    def _made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(made))
        return made

    def _option(self, options: Any, name: str, text: str) -> None:
        payload = ctypes.create_string_buffer(text.encode())
        release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda pointer: None)
        self._kept += [payload, release]
        pointer = ctypes.cast(payload, ctypes.c_void_p)
        ends = (name.encode(), pointer, release)
        made = self._made("LiteRtCreateOpaqueOptions", *ends)
        self._call("LiteRtAddOpaqueOptions", options, made)

    def _allocate(self, side: str, types: list[_TensorType]) -> Any:
        buffers = []
        for i, kind in enumerate(types):
            place = (ctypes.c_size_t(0), ctypes.c_size_t(i))
            name = f"LiteRtGetCompiledModel{side}BufferRequirements"
            needs = self._made(name, self._model, *place)
            ends = (self._environment, ctypes.byref(kind), needs)
            made = self._made("LiteRtCreateManagedTensorBufferFromRequirements", *ends)
            buffers.append(made.value)
        return (ctypes.c_void_p * len(buffers))(*buffers)


def _ends(path: str) -> Iterator[tuple[str, _TensorType]]:
    """Yield side and type of each input and output of a file."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAsModel(Path(path).read_bytes(), 0).Subgraphs(0)
    ends = [("Input", graph.Inputs(i)) for i in range(graph.InputsLength())]
    ends += [("Output", graph.Outputs(i)) for i in range(graph.OutputsLength())]
    for side, index in ends:
        tensor = graph.Tensors(index)
        kind = _TensorType(element=_ELEMENTS[tensor.Type()])
        kind.layout.rank = tensor.ShapeLength()
        for place in range(tensor.ShapeLength()):
            kind.layout.dimensions[place] = tensor.Shape(place)
        yield side, kind


def _main(path: str, runs: str, threads: str) -> None:
    session = _Session(path, int(threads))
    for _ in range(3):
        session.run()
    rounds = [session.run() for _ in range(int(runs))]
    rows = [
        {
            "name": same[0][0],
            "microseconds": statistics.median(time for _, time, _ in same),
            "delegated": same[0][2],
        }
        for same in zip(*rounds, strict=True)
    ]
    sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
