"""Read and write .tflite files without TensorFlow.

The schema classes are the generated ones that ship with ai_edge_litert (0.4 s to
import); TensorFlow carries the same file, which is loaded from its path where the
first is missing, so that nobody waits 10 s for `import tensorflow`. Both need only
the flatbuffers package, a dependency of either.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keras_lightnets import _errors

MAGIC = b"TFL3"
# Constants up to this many values are kept: shapes, axes, paddings, permutations.
SMALL = 64
# Custom ops that vendors' compilers leave in the place of a graph.
COMPILED = {"edgetpu-custom-op": "the Edge TPU", "ethos-u": "Arm Ethos-U"}
_ENUMS = {
    "padding": "Padding",
    "fusedActivationFunction": "ActivationFunctionType",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a graph.

    Attributes:
        index: Position in the subgraph.
        name: Name in the file, "" where it has none.
        dtype: Name of the schema's type: "INT8", "FLOAT32", ...
        shape: Static shape.
        signature: Shape with -1 where it is dynamic, or the shape.
        const: Whether the values are in the file.
        outside: Whether a constant's values lie behind the flatbuffer.
        scales: Quantisation scales; one, one per channel, or none.
        zero_points: As many as scales.
        value: The values of a small integer constant, flat.
        zeros: Whether all values of a constant are its zero point.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...] = ()
    const: bool = False
    outside: bool = False
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    value: tuple[int, ...] | None = None
    zeros: bool = False

    @property
    def dynamic(self) -> bool:
        """Whether the file leaves a dimension open."""
        return -1 in self.signature or -1 in self.shape

    def row(self) -> dict[str, Any]:
        """Return an input or output as plain values."""
        return {
            "name": self.name,
            "dtype": self.dtype.lower(),
            "shape": list(self.shape),
            "scale": self.scales[0] if self.scales else None,
            "zero_point": self.zero_points[0] if self.zero_points else None,
        }


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator: builtin name ("CUSTOM" for custom ones), version, tensors."""

    index: int
    name: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    custom_code: str = ""

    @property
    def label(self) -> str:
        """The custom op's own name, else the builtin one."""
        return self.custom_code or self.name


@dataclasses.dataclass(frozen=True)
class Graph:
    """The first subgraph of a file."""

    ops: tuple[Op, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensors: tuple[Tensor, ...]
    subgraphs: int = 1
    metadata: tuple[str, ...] = ()


@functools.cache
def schema() -> ModuleType:
    """Return the module of generated schema classes.

    Raises:
        MissingExtraError: If neither ai_edge_litert nor tensorflow is installed.
    """
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError:
        found = importlib.util.find_spec("tensorflow")
    if found is None or not found.submodule_search_locations:
        return _errors.require("ai_edge_litert.schema_py_generated", "litert")
    path = Path(found.submodule_search_locations[0])
    path = path / "lite" / "python" / "schema_py_generated.py"
    spec = importlib.util.spec_from_file_location("_tflite_schema", path)
    if spec is None or spec.loader is None:
        return _errors.require("ai_edge_litert.schema_py_generated", "litert")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _names(enum: str) -> dict[int, str]:
    values = vars(getattr(schema(), enum))
    return {code: name for name, code in values.items() if isinstance(code, int)}


def load(source: str | os.PathLike[str] | bytes) -> tuple[Any, bytes]:
    """Read a file into the schema's editable objects.

    Args:
        source: Path or content of a .tflite file.

    Returns:
        The `ModelT` object and the file's content.

    Raises:
        ValueError: If the file is missing, cut short or not a TFLite model.
    """
    name = "the given bytes"
    if isinstance(source, (bytes, bytearray)):
        content = bytes(source)
    else:
        name = str(source)
        if not Path(source).is_file():
            raise ValueError(f"No file at {name}.")
        content = Path(source).read_bytes()
    if content[4:8] != MAGIC:
        raise ValueError(
            f"{name}: not a TFLite file: bytes 4 to 8 should be {MAGIC!r}, received "
            f"{content[4:8]!r}."
        )
    try:
        model = schema().ModelT.InitFromPackedBuf(content, 0)
    except (struct.error, IndexError, ValueError, TypeError, MemoryError) as error:
        raise ValueError(
            f"{name}: a TFLite file cut short or damaged ({len(content)} bytes): "
            f"{error}. Copy or export it again."
        ) from error
    if not model.subgraphs:
        raise ValueError(f"{name}: the TFLite file holds no graph.")
    return model, content


def pack(model: Any) -> bytes:
    """Write the schema's objects as the content of a .tflite file."""
    flatbuffers = importlib.import_module("flatbuffers")
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=MAGIC)
    return bytes(builder.Output())


def builtin_name(code: Any) -> str:
    """Name of an operator code: that of the builtin, "CUSTOM" for custom ones."""
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _names("BuiltinOperator").get(builtin, f"OPERATOR_{builtin}")


def add_buffer(model: Any, content: bytes) -> int:
    """Append a buffer to the schema's objects and return its number."""
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def read(source: str | os.PathLike[str] | bytes) -> Graph:
    """Read the first subgraph of a .tflite file.

    Args:
        source: Path or content.

    Returns:
        Operators in the file's order with their tensors and attributes.

    Raises:
        ValueError: If the file is missing, cut short or not a TFLite model.

    Example:
        >>> [op.name for op in read("model.tflite").ops]  # doctest: +SKIP
    """
    model, content = load(source)
    try:
        return _graph(model, content)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"A damaged TFLite file: a reference points nowhere ({error!r})."
        ) from error


def require_plain(graph: Graph, device: str, integers: Sequence[str] = ()) -> None:
    """Refuse a graph that a device's compiler cannot start with.

    Args:
        graph: What `read` returned.
        device: The device, in words.
        integers: Types of which an activation must be; none: any graph will do.

    Raises:
        ValueError: If the graph is compiled already, leaves a dimension besides the
            batch open, or works on floats where integers are asked for.
    """
    for op in graph.ops:
        if op.custom_code in COMPILED:
            raise ValueError(
                f"The file is compiled for {COMPILED[op.custom_code]} already: its "
                "operators are inside one custom op. Pass the file from before the "
                "compiler."
            )
    for tensor in graph.inputs:
        if -1 in tensor.signature[1:]:
            raise ValueError(
                f"Input {tensor.name!r} leaves its size open: {tensor.signature}. "
                f"For {device} export it with a fixed size."
            )
    sides = [tensor for op in graph.ops for tensor in (*op.inputs, *op.outputs)]
    kinds = {
        tensor.dtype for tensor in sides if tensor is not None and not tensor.const
    }
    if integers and not kinds.intersection(integers):
        raise ValueError(
            f"The file works on {', '.join(sorted(kinds)) or 'nothing'}; {device} runs "
            f"{' or '.join(integers)} only. Export it as tflite-int8."
        )


def _graph(model: Any, content: bytes) -> Graph:
    plan = model.subgraphs[0]
    tensors = tuple(
        _tensor(index, row, model.buffers, content)
        for index, row in enumerate(plan.tensors)
    )
    pick = functools.partial(_pick, tensors)
    codes = model.operatorCodes
    ops = tuple(
        _op(index, row, codes[row.opcodeIndex], pick)
        for index, row in enumerate(_list(plan.operators))
    )
    return Graph(
        ops=ops,
        inputs=tuple(tensors[i] for i in _list(plan.inputs)),
        outputs=tuple(tensors[i] for i in _list(plan.outputs)),
        tensors=tensors,
        subgraphs=len(model.subgraphs),
        metadata=tuple(_text(row.name) for row in _list(model.metadata)),
    )


def _list(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _pick(tensors: tuple[Tensor, ...], indices: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if i < 0 else tensors[i] for i in _list(indices))


def _tensor(index: int, row: Any, buffers: Any, content: bytes) -> Tensor:
    shape = tuple(int(size) for size in _list(row.shape))
    signature = tuple(int(size) for size in _list(row.shapeSignature)) or shape
    buffer = buffers[row.buffer]
    outside = bool(buffer.offset and buffer.offset > 1)
    data = b"" if buffer.data is None else bytes(bytearray(buffer.data))
    if outside:
        data = content[buffer.offset : buffer.offset + buffer.size]
        if len(data) != buffer.size:
            raise IndexError(f"values of tensor {index} lie behind the file's end")
    params = row.quantization
    scales = () if params is None else tuple(map(float, _list(params.scale)))
    points = () if params is None else tuple(map(int, _list(params.zeroPoint)))
    dtype = _names("TensorType")[row.type]
    return Tensor(
        index=index,
        name=_text(row.name),
        dtype=dtype,
        shape=shape,
        signature=signature,
        const=bool(data),
        outside=outside,
        scales=scales,
        zero_points=points,
        value=_small_value(data, dtype),
        zeros=bool(data) and _is_zero(data, dtype, points),
    )


def _small_value(data: bytes, dtype: str) -> tuple[int, ...] | None:
    """Values of a short integer constant."""
    if dtype not in ("INT32", "INT64", "INT8", "UINT8") or not data:
        return None
    if len(data) > SMALL * np.dtype(dtype.lower()).itemsize:
        return None
    return tuple(int(value) for value in np.frombuffer(data, dtype.lower()))


def _is_zero(data: bytes, dtype: str, points: tuple[int, ...]) -> bool:
    """Whether a constant holds nothing but real zeros."""
    if dtype not in ("INT8", "UINT8"):
        return not any(data)
    point = points[0] if points else 0
    return bool((np.frombuffer(data, dtype.lower()) == point).all())


def _op(index: int, row: Any, code: Any, pick: Any) -> Op:
    return Op(
        index=index,
        name=builtin_name(code),
        version=code.version,
        inputs=pick(row.inputs),
        outputs=pick(row.outputs),
        attributes=_attributes(row.builtinOptions),
        custom_code=_text(code.customCode),
    )


def _attributes(options: Any) -> dict[str, Any]:
    """The op's options as plain values; activation and padding by name."""
    plain: dict[str, Any] = {}
    for key, value in vars(options).items() if options is not None else ():
        if key in _ENUMS:
            value = _names(_ENUMS[key]).get(value, str(value))
        elif isinstance(value, (list, np.ndarray)):
            value = [int(item) for item in value]
        plain[key] = value
    return plain
