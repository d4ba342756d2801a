"""Run a .tflite file in TFLite Micro, the interpreter of microcontrollers.

The interpreter is the registry package `tflite-micro` (extra `micro`, Apache-2.0): the
C++ of the boards with its reference kernels. It runs in a process of its own, because
kernels end the process on values they do not like: the int8 SOFTMAX stops where the sum
of exp(x - max) over the classes reaches 512, so where the best of 512 or more classes
has less than 1/512, as in networks without trained weights.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets import _errors
from keras_lightnets.tools import runtime
from keras_lightnets.tools.export import _flatbuffer
from keras_lightnets.tools.export._flatbuffer import Graph, Op

CHILD = "keras_lightnets.tools.export._micro_child"
# From this many classes on the SOFTMAX kernel can stop.
SOFTMAX_LIMIT = 512
NOISE_SAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Board:
    """A microcontroller: RAM and flash in KiB, by its maker's data sheet."""

    name: str
    ram_kib: int
    flash_kib: int


BOARDS: tuple[Board, ...] = (
    Board("nRF52840 (Arduino Nano 33 BLE)", 256, 1024),
    Board("RP2040 (Pico)", 264, 2048),
    Board("STM32F746", 320, 1024),
    Board("ESP32-S3", 512, 8192),
    Board("RP2350 (Pico 2)", 520, 4096),
    Board("i.MX RT1062 (Teensy 4.1)", 1024, 7936),
    Board("STM32H743", 1024, 2048),
)
# Set aside for program and stack: an allowance, not a measurement.
PROGRAM_RAM_KIB = 32
PROGRAM_FLASH_KIB = 128


@dataclasses.dataclass(frozen=True)
class MicroReport:
    """What TFLite Micro makes of a file.

    Attributes:
        ops: Ops of the file.
        model_bytes: Size of the file: the flash it takes.
        arena_bytes: Smallest tensor arena that works: the RAM it takes; None where
            the file does not run.
        samples: Inputs it was run on.
        equal: Share of output values equal to those of LiteRT's reference kernels,
            None where it does not run. XNNPACK, LiteRT's default on CPUs, rounds in
            other places; `verify` says how far a file may differ there.
        max_error_steps: Largest difference in steps of the output's quantisation (in
            units for float outputs), None where it does not run.
        missing: Operator to reason: those that the interpreter lacks or refuses.
        problem: Why it does not run, "" where it does.
    """

    ops: int
    model_bytes: int
    arena_bytes: int | None
    samples: int
    equal: float | None
    max_error_steps: float | None
    missing: Mapping[str, str]
    problem: str

    @property
    def runs(self) -> bool:
        """Whether the file runs."""
        return not self.problem

    @property
    def boards(self) -> tuple[str, ...]:
        """Names of the `BOARDS` that it fits beside a small program."""
        if self.arena_bytes is None:
            return ()
        ram = self.arena_bytes / 1024 + PROGRAM_RAM_KIB
        flash = self.model_bytes / 1024 + PROGRAM_FLASH_KIB
        fitting = [b for b in BOARDS if ram <= b.ram_kib and flash <= b.flash_kib]
        return tuple(board.name for board in fitting)

    def json(self) -> dict[str, Any]:
        """Return the report as plain values for `json.dumps`."""
        return {**dataclasses.asdict(self), "boards": list(self.boards)}

    def table(self) -> str:
        """Return the report as text."""
        lines = [f"TFLite Micro: {self.ops} ops, {self.model_bytes:,} bytes of flash"]
        if self.problem:
            lines.append(f"  does not run: {self.problem}")
        lines += [f"  {op}: {reason}" for op, reason in self.missing.items()]
        if self.arena_bytes is not None:
            lines += [
                f"  tensor arena {self.arena_bytes:,} bytes of RAM",
                f"  {self.equal:.2%} of the values equal LiteRT's, largest difference "
                f"{self.max_error_steps:g} steps, {self.samples} samples",
                f"  fits: {', '.join(self.boards) or 'none of the known boards'}",
            ]
        return "\n".join(lines)


def report(
    source: str | os.PathLike[str] | bytes,
    samples: Iterable[np.ndarray] | None = None,
) -> MicroReport:
    """Run a file in TFLite Micro and compare it with LiteRT.

    Args:
        source: Path or content of a .tflite file with one input, int8 or float.
        samples: Pictures (height, width, channels), 0..255; noise by default, which
            says little of a network's accuracy but runs every kernel.

    Returns:
        Whether it runs, the smallest tensor arena, and how far outputs differ
        from LiteRT's reference kernels; where
        it does not run, which operators are the cause.

    Raises:
        MissingExtraError: If `tflite-micro` is not installed.
        ValueError: If the file is damaged or compiled for an accelerator.

    Example:
        >>> report("model_int8.tflite").arena_bytes  # doctest: +SKIP
    """
    _, content = _flatbuffer.load(source)
    graph = _flatbuffer.read(content)
    _flatbuffer.require_plain(graph, "TFLite Micro")
    _errors.require("tflite_micro.python.tflite_micro.runtime", "micro")
    model = runtime.TFLiteModel(content)
    shape = tuple(model.inputs[0]["shape"])
    batches = _noise(shape) if samples is None else [_batch(s) for s in samples]
    base = MicroReport(
        ops=len(graph.ops),
        model_bytes=len(content),
        arena_bytes=None,
        samples=len(batches),
        equal=None,
        max_error_steps=None,
        missing={},
        problem="",
    )
    with tempfile.TemporaryDirectory() as folder:
        inputs: dict[str, Any] = {
            f"x{i}": model.stored(batch) for i, batch in enumerate(batches)
        }
        np.savez(Path(folder) / "inputs.npz", outputs=len(model.outputs), **inputs)
        (result,) = _child([content], Path(folder))
        if result.error:
            return _explained(base, content, graph, result)
        with np.load(Path(folder) / "0.npz") as made:
            found = [
                [made[f"{name}_{place}"] for place in range(len(model.outputs))]
                for name in inputs
            ]
    expected = [_reference(content, inputs[name]) for name in inputs]
    equal, worst = _compare(model, expected, found)
    return dataclasses.replace(
        base, arena_bytes=result.arena, equal=equal, max_error_steps=worst
    )


@dataclasses.dataclass(frozen=True)
class _Result:
    error: str
    arena: int | None = None
    died: bool = False


def _noise(shape: Sequence[int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, shape) for _ in range(NOISE_SAMPLES)]


def _batch(sample: np.ndarray) -> np.ndarray:
    array = np.asarray(sample)
    return array if array.ndim == 4 else array[None]


def _child(contents: Sequence[bytes], folder: Path) -> list[_Result]:
    """Run files in processes of their own; a dead one is followed by another."""
    for number, content in enumerate(contents):
        (folder / f"{number}.tflite").write_bytes(content)
    results: list[_Result] = []
    while len(results) < len(contents):
        command = [sys.executable, "-m", CHILD, str(folder), str(len(contents))]
        done = subprocess.run(
            [*command, str(len(results))], capture_output=True, check=False
        )
        while (path := folder / f"{len(results)}.json").is_file():
            results.append(_result(path))
        if len(results) < len(contents):
            results.append(_Result(_death(done), died=True))
    return results


def _result(path: Path) -> _Result:
    found = json.loads(path.read_text("utf-8"))
    said = path.with_suffix(".log").read_text("utf-8", "replace").strip()
    error = found["error"]
    return _Result(
        (said.splitlines() or [error])[0] if error else "", found.get("arena")
    )


def _death(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the interpreter's process ended by {name}"
    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"the interpreter's process ended with {done.returncode}: {''.join(last)}"


def _explained(
    base: MicroReport, content: bytes, graph: Graph, result: _Result
) -> MicroReport:
    """Name the operators because of which a file does not run."""
    if result.died:
        wide = [op for op in graph.ops if op.name == "SOFTMAX" and _classes(op)]
        missing = {"SOFTMAX": _softmax_advice(_classes(wide[0]))} if wide else {}
        return dataclasses.replace(base, problem=result.error, missing=missing)
    kinds = {op.label: op for op in reversed(graph.ops)}
    alone = [_alone(content, op) for op in kinds.values()]
    with tempfile.TemporaryDirectory() as folder:
        results = _child(alone, Path(folder))
    missing = {
        name: found.error
        for name, found in sorted(zip(kinds, results, strict=True))
        if found.error
    }
    return dataclasses.replace(base, problem=result.error, missing=missing)


def _classes(op: Op) -> int:
    """Classes of a softmax whose kernel can stop, 0 for others."""
    last = op.outputs[0].shape[-1] if op.outputs[0].shape else 0
    return last if last >= SOFTMAX_LIMIT else 0


def _softmax_advice(classes: int) -> str:
    return (
        f"stops where the best of {classes} classes has less than 1/{SOFTMAX_LIMIT}; "
        "export the network without its softmax (classifier_activation=None) or with "
        "trained weights"
    )


def _alone(content: bytes, op: Op) -> bytes:
    """A file with one op of another, and that op's constants."""
    model, _ = _flatbuffer.load(content)
    plan = model.subgraphs[0]
    given = [tensor for tensor in op.inputs if tensor is not None]
    used = {tensor.index for tensor in (*given, *op.outputs)}
    keep = {plan.tensors[index].buffer for index in used}
    for number, buffer in enumerate(model.buffers):
        if number not in keep:
            buffer.data = None
    plan.operators = [plan.operators[op.index]]
    plan.inputs = [tensor.index for tensor in given if not tensor.const]
    plan.outputs = [tensor.index for tensor in op.outputs]
    model.signatureDefs = None
    return _flatbuffer.pack(model)


def _reference(content: bytes, stored: np.ndarray) -> list[np.ndarray]:
    """Run a file with LiteRT's reference kernels; outputs as stored."""
    from keras_lightnets.tools.export import tflite

    made = tflite.interpreter(content, "reference")
    made.set_tensor(made.get_input_details()[0]["index"], stored)
    made.invoke()
    return [made.get_tensor(row["index"]) for row in made.get_output_details()]


def _compare(
    model: runtime.TFLiteModel,
    expected: Sequence[Sequence[np.ndarray]],
    found: Sequence[Sequence[np.ndarray]],
) -> tuple[float, float]:
    """Share of equal values, and the largest difference in steps."""
    equal, worst = [], 0.0
    for wanted, stored in zip(expected, found, strict=True):
        both = (model.floats(wanted), model.floats(stored))
        for value, other, row in zip(*both, model.outputs, strict=True):
            step = row["quantization"][0] or 1.0
            steps = np.abs(value - other.reshape(value.shape)) / step
            equal.append((steps < 0.5).ravel())
            worst = max(worst, float(steps.max()))
    return float(np.concatenate(equal).mean()), round(worst, 3)
