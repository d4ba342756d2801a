"""Which operators of a .tflite file the Edge TPU compiler would map, and why not.

The prediction needs the file alone. It agrees op by op with 72 stored and some 130
public pairs of a file and its compiled form. Where the vendor's `edgetpu_compiler` is
on the PATH, it is run as well and the two are compared.

Partition rule: the compiler makes one Edge TPU subgraph. An op that depends on an op
left on the CPU stays on the CPU too, whatever its place in the file; leading ops that
turn floats into 8 bits do not count.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_lightnets.tools.export import _flatbuffer
from keras_lightnets.tools.export._edgetpu_advice import DEPENDENT, STATIC
from keras_lightnets.tools.export._edgetpu_memory import CACHE_BYTES, parameter_bytes
from keras_lightnets.tools.export._edgetpu_rules import (
    EIGHT_BIT,
    RULES,
    Refusal,
    refusal,
)
from keras_lightnets.tools.export._flatbuffer import Graph, Op, Tensor

COMPILER = "edgetpu_compiler"
MAPPED = "Mapped to Edge TPU"
DEPENDS = "More than one subgraph is not supported"
# Inputs that set an output's size; one that is computed makes the size dynamic.
SIZE_INPUTS = {
    "RESHAPE": (1,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "STRIDED_SLICE": (1, 2, 3),
    "SLICE": (1, 2),
    "TILE": (1,),
    "PAD": (1,),
    "PADV2": (1,),
    "MIRROR_PAD": (1,),
    "TRANSPOSE": (1,),
    "TRANSPOSE_CONV": (0,),
    "EXPAND_DIMS": (1,),
    "BROADCAST_TO": (1,),
    "BATCH_TO_SPACE_ND": (1, 2),
    "SPACE_TO_BATCH_ND": (1, 2),
    "FILL": (0,),
    "RANGE": (0, 1, 2),
    "WHERE": (0,),
}
POSTPROCESS = "TFLite_Detection_PostProcess"


@dataclasses.dataclass(frozen=True)
class OpVerdict:
    """What happens to one op.

    Attributes:
        index: Place in the file.
        op: Operator.
        mapped: Whether it runs on the Edge TPU.
        reason: Why, or why not.
        advice: What to change so that it is mapped; "" where it is.
    """

    index: int
    op: str
    mapped: bool
    reason: str
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class CompilerReport:
    """What the vendor's compiler said.

    Attributes:
        version: The compiler's version line.
        mapped: Operator name to the count mapped.
        unmapped: Operator name to the count left on the CPU.
        statuses: Rows of its table: operator, count, status.
        error: Its error text when it produced nothing, else "".
        differences: Where the prediction says something else; empty is agreement.
    """

    version: str
    mapped: Mapping[str, int]
    unmapped: Mapping[str, int]
    statuses: tuple[tuple[str, int, str], ...] = ()
    error: str = ""
    differences: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the prediction holds for every operator name."""
        return not self.differences


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The prediction for one file.

    Attributes:
        ops: One row per operator, in the file's order.
        on_chip_bytes: Parameter bytes cached on the chip.
        streamed_bytes: Parameter bytes sent again with every image.
        io: Name, dtype, shape, scale and zero point of inputs and outputs.
        border: Positions of the ops that turn floats into 8 bits and back, and of
            detection post-processing: on the CPU by design.
        compiler: The vendor's own word, where its compiler was run.
    """

    ops: tuple[OpVerdict, ...]
    on_chip_bytes: int
    streamed_bytes: int
    io: Mapping[str, Any]
    border: frozenset[int] = frozenset()
    compiler: CompilerReport | None = None

    @property
    def mapped(self) -> int:
        """How many ops run on the Edge TPU."""
        return sum(row.mapped for row in self.ops)

    @property
    def all_mapped(self) -> bool:
        """Whether every op runs on the Edge TPU."""
        return bool(self.ops) and all(row.mapped for row in self.ops)

    @property
    def network_mapped(self) -> bool:
        """Whether every op between float conversion and post-processing is mapped."""
        inner = [row for row in self.ops if row.index not in self.border]
        return bool(inner) and all(row.mapped for row in inner)

    @property
    def first_unmapped(self) -> OpVerdict | None:
        """The first op in the file's order that stays on the CPU."""
        return next((row for row in self.ops if not row.mapped), None)

    def json(self) -> dict[str, Any]:
        """Return the verdict as plain values for `json.dumps`."""
        data: dict[str, Any] = {
            "ops": [dataclasses.asdict(row) for row in self.ops],
            "on_chip_bytes": self.on_chip_bytes,
            "streamed_bytes": self.streamed_bytes,
            "io": dict(self.io),
        }
        if self.compiler is not None:
            data["compiler"] = {
                **dataclasses.asdict(self.compiler),
                "agrees": self.compiler.agrees,
            }
        return data

    def table(self) -> str:
        """Return the verdict as text: a summary, then the ops that stay on the CPU."""
        lines = [
            f"{self.mapped} of {len(self.ops)} ops mapped to the Edge TPU",
            f"parameters: {self.on_chip_bytes:,} bytes on chip, "
            f"{self.streamed_bytes:,} streamed",
        ]
        for side in ("inputs", "outputs"):
            for row in self.io[side]:
                lines.append(
                    f"{side[:-1]}: {row['name']} {row['dtype']} {row['shape']}"
                )
        counts = Counter((row.op, row.mapped) for row in self.ops)
        lines += ["", f"{'operator':<30}{'count':>6}  runs on"]
        for (name, mapped), count in counts.items():
            place = "Edge TPU" if mapped else "CPU"
            lines.append(f"{name:<30}{count:>6}  {place}")
        left = [row for row in self.ops if not row.mapped]
        lines += ["", "left on the CPU:"] if left else []
        lines += [f"  op {row.index} {row.op}: {row.reason}" for row in left]
        lines += _changes(left)
        if self.compiler is not None:
            lines += ["", *_compiler_lines(self.compiler)]
        return "\n".join(lines)


def _changes(left: Sequence[OpVerdict]) -> list[str]:
    """What to change, once for all ops that need the same."""
    counts = Counter((row.advice, row.op) for row in left if row.advice)
    lines = [f"  {n} x {op}: {advice}" for (advice, op), n in counts.items()]
    return ["", "what to change:", *lines] if lines else []


def _compiler_lines(report: CompilerReport) -> list[str]:
    lines = [report.version or COMPILER]
    if report.error:
        lines.append(f"  failed: {report.error}")
    for text in report.differences or ("agrees with the prediction",):
        lines.append(f"  {text}")
    return lines


def verdict(
    source: str | os.PathLike[str] | bytes | Sequence[Mapping[str, Any]],
    compiler: bool | None = None,
) -> Verdict:
    """Predict what the Edge TPU compiler does with a file.

    Args:
        source: Path or content of a .tflite file, or a list of ops, each with the
            keys op, version, attrs, inputs, outputs, in_ids, out_ids.
        compiler: Whether to run `edgetpu_compiler` too; None runs it if it is on the
            PATH. Ignored for a list of ops.

    Returns:
        One row per op, parameter bytes, inputs and outputs.

    Raises:
        ValueError: If the file is missing, damaged, compiled already, works on floats
            or leaves its size open.
        FileNotFoundError: If the compiler is asked for and not on the PATH.

    Example:
        >>> verdict("model_int8.tflite").all_mapped  # doctest: +SKIP
    """
    if not isinstance(source, (str, bytes, os.PathLike)):
        return _judge(graph_of(source))
    result = _judge(_flatbuffer.read(source), EIGHT_BIT)
    if compiler is None:
        compiler = shutil.which(COMPILER) is not None
    if not compiler:
        return result
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    return dataclasses.replace(result, compiler=run_compiler(content, result))


def _judge(graph: Graph, integers: Sequence[str] = ()) -> Verdict:
    _flatbuffer.require_plain(graph, "the Edge TPU", integers)
    rows = _partition(graph)
    on_chip, streamed = _memory(graph, rows)
    io = {"inputs": graph.inputs, "outputs": graph.outputs}
    return Verdict(
        ops=rows,
        on_chip_bytes=on_chip,
        streamed_bytes=streamed,
        io={side: [tensor.row() for tensor in io[side]] for side in io},
        border=_border(graph),
    )


def _partition(graph: Graph) -> tuple[OpVerdict, ...]:
    """Judge each op alone, then by what it depends on."""
    dynamic = next(filter(None, map(_dynamic, graph.ops)), None)
    producer: dict[int, Op] = {}
    rows: dict[int, OpVerdict] = {}
    leading: set[int] = set()
    for op in graph.ops:
        before = {
            producer[tensor.index].index: producer[tensor.index]
            for tensor in op.inputs
            if tensor is not None and tensor.index in producer
        }
        producer |= {tensor.index: op for tensor in op.outputs}
        found = dynamic or refusal(op)
        wall = [b for b in before if not rows[b].mapped and b not in leading]
        if found is None and wall:
            cause = before[wall[0]]
            text = f"{DEPENDS}: depends on op {cause.index} {cause.label} on the CPU"
            found = Refusal(text, DEPENDENT)
        if found and leading.issuperset(before) and not _stays_eight_bit(op):
            leading.add(op.index)
        if found is None:
            note = f", {RULES[op.name].note}" if RULES[op.name].note else ""
            row = OpVerdict(op.index, op.label, True, f"{MAPPED}{note}")
        else:
            advice = str(found.advice)
            row = OpVerdict(op.index, op.label, False, found.reason, advice)
        rows[op.index] = row
    return tuple(rows.values())


def _border(graph: Graph) -> frozenset[int]:
    """Conversions from and to floats, and what leads in floats to post-processing."""
    found = set()
    wanted: set[int] = set()
    for op in reversed(graph.ops):
        sides = [t for t in (*op.inputs, *op.outputs) if t is not None and not t.const]
        floats = {tensor.index for tensor in sides if tensor.dtype == "FLOAT32"}
        leads = wanted & {tensor.index for tensor in op.outputs}
        if leads or op.custom_code == POSTPROCESS:
            wanted |= floats
            found.add(op.index)
        elif op.name in ("QUANTIZE", "DEQUANTIZE") and floats:
            found.add(op.index)
    return frozenset(found)


def _dynamic(op: Op) -> Refusal | None:
    """Why the whole graph is refused: an op whose output size is not fixed.

    A batch of -1 in the shape signature alone does no harm [G].
    """
    sizes = SIZE_INPUTS.get(op.name, ())
    given = [op.inputs[at] for at in sizes if at < len(op.inputs)]
    computed = any(tensor is not None and not tensor.const for tensor in given)
    if not computed and all(min(t.shape, default=0) >= 0 for t in op.outputs):
        return None
    return Refusal(
        "The compiler refuses a graph with dynamic-sized tensors: the size of op "
        f"{op.index} {op.label} is computed [I#829]",
        STATIC,
    )


def _stays_eight_bit(op: Op) -> bool:
    """Whether an op takes and makes 8 bits, so that it stands inside the network."""
    given = [tensor for tensor in op.inputs if tensor is not None and not tensor.const]
    sides = (given, op.outputs)
    return all(any(tensor.dtype in EIGHT_BIT for tensor in side) for side in sides)


def _memory(graph: Graph, rows: Sequence[OpVerdict]) -> tuple[int, int]:
    """Fill the cache in the file's order; what no longer fits is streamed."""
    on_chip = streamed = 0
    for op, row in zip(graph.ops, rows, strict=True):
        size = parameter_bytes(op) if row.mapped else 0
        if on_chip + size <= CACHE_BYTES:
            on_chip += size
        else:
            streamed += size
    return on_chip, streamed


def graph_of(ops: Sequence[Mapping[str, Any]]) -> Graph:
    """Build a graph from a list of plain op descriptions.

    Args:
        ops: Rows with op, version, inputs, outputs, in_ids, out_ids and, where there
            are any, attrs, idx and custom_code; a tensor is a mapping with dtype,
            shape and, for constants, const and value.

    Returns:
        The graph; its inputs and outputs are the tensors nobody makes or takes.

    Raises:
        ValueError: If a row lacks a key.
    """
    built = []
    for index, row in enumerate(ops):
        lacking = {"op", "version", "inputs", "outputs", "in_ids", "out_ids"} - set(row)
        if lacking:
            raise ValueError(
                f"Op {index} lacks the keys {sorted(lacking)}; it holds {sorted(row)}."
            )
        pairs = zip(row["in_ids"], row["inputs"], strict=True)
        ends = zip(row["out_ids"], row["outputs"], strict=True)
        built.append(
            Op(
                index=row.get("idx", index),
                name=row["op"].partition(":")[0],
                version=row["version"],
                inputs=tuple(_plain_tensor(i, t) if t else None for i, t in pairs),
                outputs=tuple(_plain_tensor(i, t) for i, t in ends),
                attributes=row.get("attrs") or {},
                custom_code=row.get("custom_code") or row["op"].partition(":")[2],
            )
        )
    made = {t.index: t for op in built for t in op.outputs}
    taken = {t.index: t for op in built for t in op.inputs if t is not None}
    sources = [t for i, t in taken.items() if i not in made and not t.const]
    sinks = [t for i, t in made.items() if i not in taken]
    every = tuple({**taken, **made}.values())
    return Graph(tuple(built), tuple(sources), tuple(sinks), every)


def _plain_tensor(index: int, row: Mapping[str, Any]) -> Tensor:
    scale = row.get("scale")
    count = row.get("nscale", 1 if scale else 0)
    value = row.get("value")
    return Tensor(
        index=index,
        name=row.get("name", ""),
        dtype=row["dtype"],
        shape=tuple(row["shape"]),
        const=bool(row.get("const")),
        scales=(scale or 1.0,) * count,
        zero_points=(row.get("zp") or 0,) * count,
        value=None if value is None else tuple(value),
        zeros=value is not None and not any(value),
    )


_ROW = re.compile(r"^([A-Z][A-Za-z0-9_]*)\s+(\d+)\s{2,}(\S.*?)\s*$")


def run_compiler(content: bytes, predicted: Verdict) -> CompilerReport:
    """Run the vendor's compiler on a file and compare it with a prediction.

    Args:
        content: The .tflite file.
        predicted: What `verdict` said of it.

    Returns:
        The compiler's counts and where they differ.

    Raises:
        FileNotFoundError: If the compiler is not on the PATH.
    """
    path = shutil.which(COMPILER)
    if path is None:
        raise FileNotFoundError(
            f"{COMPILER} is not on the PATH. It runs on x86-64 Linux; install the "
            "edgetpu-compiler package of Coral's Debian repository."
        )
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.tflite"
        model.write_bytes(content)
        done = subprocess.run(
            [path, "-s", "-o", folder, str(model)],
            capture_output=True,
            text=True,
            check=False,
        )
    return read_log(done.stdout + done.stderr, predicted, failed=done.returncode != 0)


def read_log(text: str, predicted: Verdict, failed: bool = False) -> CompilerReport:
    """Read the compiler's log and compare it with a prediction.

    Args:
        text: What the compiler printed when called with -s.
        predicted: What `verdict` said of the same file.
        failed: Whether the compiler ended with an error.

    Returns:
        The counts per operator and where they differ.
    """
    lines = text.splitlines()
    version = next((line for line in lines if line.startswith("Edge TPU Comp")), "")
    found = [match for line in lines if (match := _ROW.match(line.strip()))]
    rows = tuple((m[1], int(m[2]), m[3]) for m in found if m[1] != "Operator")
    mapped: Counter[str] = Counter()
    unmapped: Counter[str] = Counter()
    for name, count, status in rows:
        (mapped if status == MAPPED else unmapped)[name] += count
    error = ""
    if failed or not rows:
        wrong = [line for line in lines if "rror" in line or "nvalid" in line]
        error = (wrong or lines or ["it printed nothing"])[-1].strip()
    return CompilerReport(
        version=version.strip(),
        mapped=dict(mapped),
        unmapped=dict(unmapped),
        statuses=rows,
        error=error,
        differences=tuple(_differences(predicted, mapped, error)),
    )


def _differences(
    predicted: Verdict, mapped: Mapping[str, int], error: str
) -> list[str]:
    ours = Counter(_log_name(row.op) for row in predicted.ops if row.mapped)
    if error:
        return [f"predicted {sum(ours.values())} mapped ops, {error}"] if ours else []
    return [
        f"{name}: predicted {ours[name]} mapped, the compiler mapped {mapped[name]}"
        for name in sorted({*ours, *mapped})
        if ours[name] != mapped[name]
    ]


def _log_name(name: str) -> str:
    return name if name in RULES else "CUSTOM"
