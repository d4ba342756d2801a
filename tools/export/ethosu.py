"""Compile int8 files for Arm Ethos-U with Arm's own compiler and read its estimate.

The compiler is the registry package `ethos-u-vela` (extra `ethosu`, Apache-2.0). It
runs as a process of its own: on files that it does not like it ends the process.
Cycles and memory are what the compiler's model of the chip says, not measurements, and
cover the NPU only; ops left over run on the Cortex-M beside it.
"""

import csv
import dataclasses
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_lightnets import _errors
from keras_lightnets.tools.export import _flatbuffer
from keras_lightnets.tools.export._flatbuffer import Graph, Op
from keras_lightnets.tools.export.files import write_files

COMPILED = "ethos-u"
INTEGERS = ("INT8", "UINT8", "INT16")
CONFIG = "Arm/vela.ini"


@dataclasses.dataclass(frozen=True)
class Target:
    """One chip as the compiler knows it; clock and memories are those of `system`.

    Attributes:
        accelerator: The compiler's name of the NPU and its multiply-adds per cycle.
        system: Section `System_Config` of the compiler's own Arm/vela.ini.
        memory: Section `Memory_Mode` of the same file.
    """

    accelerator: str
    system: str
    memory: str


# The compiler's defaults of each chip, said aloud.
TARGETS: Mapping[str, Target] = {
    row.accelerator: row
    for row in (
        Target("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram"),
        Target("ethos-u65-256", "Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
        Target("ethos-u85-256", "Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
    )
}


@dataclasses.dataclass(frozen=True)
class CpuOp:
    """An op that the NPU does not take: operator, the tensor it makes, and why."""

    op: str
    output: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of one file on one target.

    Attributes:
        target: Name in `TARGETS`.
        system: The compiler's system configuration.
        memory: The compiler's memory mode.
        clock_mhz: Clock of the NPU.
        cycles: NPU cycles of one inference.
        inferences_per_second: At that clock; None when no op is on the NPU.
        macs: Multiply-adds of one inference, as the NPU does them.
        sram_kib: Peak of the on-chip memory.
        dram_kib: DRAM used.
        flash_kib: Flash used, on chip and off chip.
        ops: Ops of the file.
        cpu_ops: Those left over for the CPU.
        bytes: Size of the compiled file.
    """

    target: str
    system: str
    memory: str
    clock_mhz: float
    cycles: int
    inferences_per_second: float | None
    macs: int
    sram_kib: float
    dram_kib: float
    flash_kib: float
    ops: int
    cpu_ops: tuple[CpuOp, ...]
    bytes: int

    @property
    def npu_ops(self) -> int:
        """How many ops of the file run on the NPU."""
        return self.ops - len(self.cpu_ops)

    @property
    def all_mapped(self) -> bool:
        """Whether the whole network runs on the NPU."""
        return not self.cpu_ops

    def json(self) -> dict[str, Any]:
        """Return the estimate as plain values for `json.dumps`."""
        return {**dataclasses.asdict(self), "npu_ops": self.npu_ops}

    def table(self) -> str:
        """Return the estimate as text, ops left on the CPU last."""
        rate = self.inferences_per_second
        speed = "nothing on the NPU" if rate is None else f"{rate:,.0f} inferences/s"
        lines = [
            f"{self.target} ({self.system}, {self.memory}, {self.clock_mhz:g} MHz), "
            "estimate of Arm's compiler",
            f"  {self.npu_ops} of {self.ops} ops on the NPU, {self.cycles:,} cycles, "
            f"{speed}",
            f"  SRAM {self.sram_kib:,.1f} KiB, DRAM {self.dram_kib:,.1f} KiB, flash "
            f"{self.flash_kib:,.1f} KiB",
        ]
        counts = Counter((row.op, row.reason) for row in self.cpu_ops)
        lines += [f"  CPU: {n} x {op}: {why}" for (op, why), n in counts.items()]
        return "\n".join(lines)


def compile_file(
    source: str | os.PathLike[str] | bytes, target: str
) -> tuple[bytes, Estimate]:
    """Compile an int8 file for one target.

    Args:
        source: Path or content of a .tflite file.
        target: Name in `TARGETS`.

    Returns:
        The compiled .tflite file, whose NPU part is one custom op, and the estimate.

    Raises:
        MissingExtraError: If `ethos-u-vela` is not installed.
        ValueError: If the file is damaged, compiled already or works on floats, or
            the compiler refuses it.

    Example:
        >>> compile_file("model_int8.tflite", "ethos-u55-128")  # doctest: +SKIP
    """
    if target not in TARGETS:
        raise _errors.unknown("Ethos-U target", target, TARGETS)
    _, content = _flatbuffer.load(source)
    graph = _flatbuffer.read(content)
    _flatbuffer.require_plain(graph, "Ethos-U", INTEGERS)
    _errors.require("ethosu.vela", "ethosu")
    with tempfile.TemporaryDirectory() as folder:
        text = _run(content, TARGETS[target], Path(folder))
        made = Path(folder) / "out" / "model_vela.tflite"
        summaries = list(made.parent.glob("model_summary_*.csv"))
        if not made.is_file() or not summaries:
            raise ValueError(_failure(text, target, code=0))
        compiled = made.read_bytes()
        with summaries[0].open(encoding="utf-8", newline="") as file:
            (row,) = csv.DictReader(file)
    left = _left_over(_flatbuffer.read(compiled), text)
    return compiled, _estimate(target, row, len(graph.ops), left, len(compiled))


def estimates(
    source: str | os.PathLike[str] | bytes, targets: Sequence[str] = tuple(TARGETS)
) -> tuple[Estimate, ...]:
    """Return the estimates of a file for several targets.

    Args:
        source: Path or content of a .tflite file.
        targets: Names in `TARGETS`.

    Raises:
        MissingExtraError: If `ethos-u-vela` is not installed.
        ValueError: As `compile_file`.
    """
    return tuple(compile_file(source, target)[1] for target in targets)


def write(path: str | os.PathLike[str], target: str) -> tuple[Path, Estimate]:
    """Compile a file and write the result beside it, whole or not at all.

    Args:
        path: A .tflite file.
        target: Name in `TARGETS`.

    Returns:
        Path of NAME_TARGET_vela.tflite and the estimate.

    Raises:
        MissingExtraError: If `ethos-u-vela` is not installed.
        ValueError: As `compile_file`.
    """
    path = Path(path)
    compiled, found = compile_file(path, target)
    (written,) = write_files({path.with_name(path.stem + ending(target)): compiled})
    return written, found


def ending(target: str) -> str:
    """Return what follows a model's name in the name of its compiled file."""
    return f"_{target}_vela.tflite"


def _run(content: bytes, target: Target, folder: Path) -> str:
    """Run the compiler; return what it printed."""
    model = folder / "model.tflite"
    model.write_bytes(content)
    command = [
        *(sys.executable, "-m", "ethosu.vela", str(model)),
        *("--accelerator-config", target.accelerator, "--config", CONFIG),
        *("--system-config", target.system, "--memory-mode", target.memory),
        *("--output-dir", str(folder / "out")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode:
        raise ValueError(_failure(text, target.accelerator, done.returncode))
    return text


def _failure(text: str, target: str, code: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if "rror" in line or "ailed" in line]
    said = (wrong or lines or ["it printed nothing"])[-1]
    how = f"status {code}" if code >= 0 else f"signal {-code}"
    return f"Vela did not compile the file for {target} ({how}): {said}"


_WARNING = re.compile(
    r"^Warning \(supported operators\) operator: (?P<op>[^,]+), ofm: '(?P<ofm>.*)'\n"
    r"Reason: (?P<reason>.*)$",
    re.MULTILINE,
)


def _left_over(compiled: Graph, text: str) -> tuple[CpuOp, ...]:
    """The ops that the compiled file still holds, with the compiler's reasons."""
    found = list(_WARNING.finditer(text))
    by_output = {match["ofm"]: match["reason"].strip() for match in found}
    by_name = {match["op"]: match["reason"].strip() for match in found}

    def row(op: Op) -> CpuOp:
        name = op.outputs[0].name if op.outputs else ""
        known = by_output.get(name) or by_name.get(op.label)
        return CpuOp(op.label, name, known or "the compiler does not say why")

    return tuple(row(op) for op in compiled.ops if op.custom_code != COMPILED)


def _estimate(
    target: str,
    row: Mapping[str, str],
    ops: int,
    left: tuple[CpuOp, ...],
    size: int,
) -> Estimate:
    def number(key: str) -> float:
        value = float(row[key])
        return value if math.isfinite(value) else 0.0

    rate = number("inferences_per_second")
    flash = [number(f"{place}_chip_flash_memory_used") for place in ("on", "off")]
    return Estimate(
        target=target,
        system=row["system_config"],
        memory=row["memory_mode"],
        clock_mhz=number("core_clock") / 1e6,
        cycles=round(number("cycles_total")),
        inferences_per_second=rate if len(left) < ops and rate else None,
        macs=round(number("nn_macs")),
        sram_kib=number("sram_memory_used"),
        dram_kib=number("dram_memory_used"),
        flash_kib=sum(flash),
        ops=ops,
        cpu_ops=left,
        bytes=size,
    )
