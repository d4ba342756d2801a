"""An exported file opened for running: what `verify` and the reports ask of it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from keras_lightnets.tools import runtime
from keras_lightnets.tools.export import _flatbuffer, partitions
from keras_lightnets.tools.export._flatbuffer import Graph, Op, Tensor

INTEGERS = ("INT8", "UINT8")


class OpenedFile(Protocol):
    """What every kind of file offers.

    Attributes:
        outputs: Names of the outputs, in the file's order.
        ops: Operator name to count.
        io: "inputs" and "outputs": rows of name, dtype, shape, scale, zero_point.
        steps: Size of one quantisation step of each output, 0 for float ones.
        float_ops: Ops that work on floats, named; those at a float input or output
            do not count. An int8 file must have none.
        open_dimensions: Inputs and outputs whose shape the file leaves open.
        xnnpack_partitions: Parts of the graph that XNNPACK runs, None where that
            does not apply.
        xnnpack_outside: Ops that XNNPACK leaves to plain kernels, named.
    """

    outputs: tuple[str, ...]
    ops: Mapping[str, int]
    io: Mapping[str, Any]
    steps: Mapping[str, float]
    float_ops: tuple[str, ...]
    open_dimensions: tuple[str, ...]
    xnnpack_partitions: int | None
    xnnpack_outside: tuple[str, ...]

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run a batch of one picture, 0..255; float32 outputs in the file's order."""


class TFLiteFile:
    """A .tflite file and its interpreter; see `OpenedFile`.

    Args:
        content: The file.
        threads: Threads of the interpreter.

    Raises:
        ValueError: If it is not a TFLite model.
    """

    def __init__(self, content: bytes, threads: int = 2) -> None:
        graph = _flatbuffer.read(content)
        self._model = runtime.TFLiteModel(content, threads)
        self.outputs = tuple(row["name"] for row in self._model.outputs)
        self.ops: Mapping[str, int] = dict(Counter(op.label for op in graph.ops))
        ends = {"inputs": graph.inputs, "outputs": graph.outputs}
        self.io: Mapping[str, Any] = {
            side: [tensor.row() for tensor in tensors] for side, tensors in ends.items()
        }
        self.steps: Mapping[str, float] = {
            tensor.name: _step(graph, tensor) for tensor in graph.outputs
        }
        self.float_ops = float_ops(graph)
        self.open_dimensions = tuple(
            tensor.name or str(tensor.index)
            for tensor in (*graph.inputs, *graph.outputs)
            if tensor.dynamic
        )
        found = partitions.split(graph, self._model._interpreter)
        self.xnnpack_partitions = found[0] if found else None
        self.xnnpack_outside = tuple(_describe(op) for op in found[1]) if found else ()

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run a batch of one picture, 0..255; float32 outputs in the file's order."""
        return self._model.run(batch)


def float_ops(graph: Graph) -> tuple[str, ...]:
    """Name the ops that work on floats; those at a float input or output do not count.

    Args:
        graph: What `_flatbuffer.read` returned.

    Returns:
        One text per op: position, operator and the tensor it makes, which carries
        the name of the layer.
    """
    ends = {tensor.index for tensor in (*graph.inputs, *graph.outputs)}
    return tuple(_describe(op) for op in graph.ops if _is_float(op, ends))


def _is_float(op: Op, ends: set[int]) -> bool:
    tensors = [tensor for tensor in (*op.inputs, *op.outputs) if tensor is not None]
    floats = [tensor for tensor in tensors if tensor.dtype.startswith("FLOAT")]
    if op.name in ("QUANTIZE", "DEQUANTIZE"):
        return any(tensor.index not in ends for tensor in floats)
    return bool(floats)


def _describe(op: Op) -> str:
    made = op.outputs[0].name if op.outputs else ""
    return f"op {op.index} {op.label} that makes {made!r}"


def _step(graph: Graph, tensor: Tensor) -> float:
    """Quantisation step behind an output, also where it is given as floats."""
    for op in graph.ops:
        if op.name == "DEQUANTIZE" and tensor in op.outputs and op.inputs[0]:
            tensor = op.inputs[0]
    quantised = tensor.dtype in INTEGERS and len(tensor.scales) == 1
    return tensor.scales[0] if quantised else 0.0
