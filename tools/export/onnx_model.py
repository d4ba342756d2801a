"""Models to ONNX through tf2onnx, and ONNX files opened with onnxruntime.

A float file is made from the bridged twin with a batch of one: tf2onnx breaks on the
compiled wrapper that Keras puts around grouped convolutions, and on constants without
a dimension; the twin has neither.

An int8 file is the int8 TFLite file in another form: the same weights, and a
QuantizeLinear, DequantizeLinear pair with the same scale at every tensor. So both
forms round alike, after training or aware of quantisation.
"""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets._errors import require, unknown
from keras_lightnets.tools.export import lower, tflite

# tf2onnx 1.17 refuses 19 and later; per-channel scales need 13.
OPSETS = tuple(range(13, 19))
OPSET = 17
PAIR = ("QuantizeLinear", "DequantizeLinear")
# Values behind them are some of those before them, or means of such: rounded inputs
# stay in the same range.
KEEPS: tuple[str, ...] = (
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Split",
)
KEEPS += ("Pad", "Gather", "Concat", "MaxPool", "AveragePool", "Resize", "Identity")
# Merged into the operator before them.
ACTIVATIONS = ("Relu", "Clip")
META_KEY = "keras_lightnets"


def convert(model: Any, opset: int = OPSET) -> bytes:
    """Convert a Keras 3 model to a float32 ONNX file with a fixed batch of one.

    Args:
        model: A functional Keras 3 model; its input is grey levels of 0-255, channels
            last, as in the model itself.
        opset: ONNX operator set, one of `OPSETS`.

    Returns:
        The file; inputs and outputs are named as in the model.

    Raises:
        ValueError: If the operator set is not legal, or tf2onnx leaves an operator
            out of it.
        UnsupportedLayerError: If a layer cannot be converted.
        MissingExtraError: If the ONNX packages are not installed.
    """
    from keras_lightnets.tools.quantize import _passes, bridge

    _check_opset(opset)
    require("tf2onnx", "onnx")
    graph = bridge.to_graph(model).copy()
    _passes.fold_norms(graph)
    _passes.fold_input(graph, raw=False)
    _passes.bake(graph)
    for change in lower.ONNX:
        change(graph)
    tf_model, _ = bridge.emit(graph, batch=1)
    frozen = tflite.freeze(lambda *x: tflite.call(tf_model, x), graph)
    made = _tf2onnx(
        frozen.graph.as_graph_def(),
        opset=opset,
        input_names=[tensor.name for tensor in frozen.inputs],
        output_names=[tensor.name for tensor in frozen.outputs],
    )
    return _finish(made, list(graph.inputs), list(graph.outputs))


def convert_int8(
    model: Any, calibration: Iterable[Any] | None, opset: int = OPSET
) -> bytes:
    """Convert a model to an int8 ONNX file; see `convert`.

    Args:
        model: A functional Keras 3 model, or what `qat.prepare` returned.
        calibration: Pictures for the ranges, see `tflite.convert`.
        opset: ONNX operator set, one of `OPSETS`.

    Returns:
        The file: int8 weights, pairs of QuantizeLinear and DequantizeLinear. It reads
        the bytes of a picture, uint8, and returns floats.
    """
    _check_opset(opset)
    require("tf2onnx", "onnx")
    content = tflite.convert(model, "int8", "uint8", calibration)
    made = tflite.interpreter(content)
    inputs, outputs = (
        [row["name"] for row in rows]
        for rows in (made.get_input_details(), made.get_output_details())
    )
    handle, path = tempfile.mkstemp(suffix=".tflite")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        made = _tf2onnx(opset=opset, tflite_path=path)
    finally:
        Path(path).unlink()
    for end in made.graph.output:
        _return_floats(made.graph, end)
    return _finish(made, inputs, outputs)


def _return_floats(graph: Any, end: Any) -> None:
    """Undo the rounding of an output to bytes, whose scale no reader would know."""
    onnx = require("onnx", "onnx")
    maker = next(node for node in graph.node if end.name in node.output)
    scale_and_zero = list(maker.input[1:3])
    name = f"{end.name}_float"
    node = onnx.helper.make_node(
        "DequantizeLinear", [end.name, *scale_and_zero], [name]
    )
    graph.node.append(node)
    end.name = name
    end.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _check_opset(opset: int) -> None:
    if opset not in OPSETS:
        raise unknown("ONNX operator set", opset, OPSETS)


def _tf2onnx(frozen: Any = None, **options: Any) -> Any:
    """Convert a frozen TensorFlow graph, or the file at `tflite_path`.

    tf2onnx's own `from_graph_def` copies all weights for each of its optimisers, in
    case one fails: 5 GB more for AlexNet.
    """
    import tensorflow as tf

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    loader = require("tf2onnx.tf_loader", "onnx")
    tfonnx = require("tf2onnx.tfonnx", "onnx")
    optimizer = require("tf2onnx.optimizer", "onnx")
    with tflite.quiet(), tf.device("/cpu:0"), tf.Graph().as_default() as graph:
        if frozen is not None:
            ends = options["input_names"], options["output_names"]
            tf.import_graph_def(loader.tf_optimize(*ends, frozen), name="")
        made = tfonnx.process_tf_graph(graph, continue_on_error=True, **options)
        return optimizer.optimize_graph(made, catch_errors=False).make_model("model")


def _finish(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Check the graph, name its ends, drop what tf2onnx writes about itself."""
    onnx = require("onnx", "onnx")
    foreign = sorted(
        {n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, n.domain)}
    )
    if foreign:
        raise ValueError(
            f"tf2onnx has no ONNX operator for {', '.join(foreign)}. Replace the "
            "layer, or export to TFLite."
        )
    for ends, names in ((model.graph.input, inputs), (model.graph.output, outputs)):
        for end, name in zip(ends, names, strict=True):
            if end.name != name:
                _rename(model.graph, end.name, name)
                end.name = name
    model.graph.name, model.graph.doc_string = "model", ""
    model.producer_name, model.producer_version = "keras_lightnets", ""
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a tensor; a node or tensor that has the new name already moves away."""
    for before, after in ((new, f"{new}__inner"), (old, new)):
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == before:
                        names[place] = after
        for row in (*graph.initializer, *graph.value_info):
            if row.name == before:
                row.name = after


def add_metadata(content: bytes, values: Mapping[str, str]) -> bytes:
    """Write texts into a file's metadata.

    Args:
        content: The ONNX file.
        values: Key to text, such as the sidecar under `META_KEY`.

    Returns:
        The file with them.
    """
    onnx = require("onnx", "onnx")
    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, dict(values))
    return model.SerializeToString(deterministic=True)


class OnnxFile:
    """An .onnx file and its onnxruntime session; see `opened.OpenedFile`.

    Args:
        content: The file.
        threads: Threads of the session.

    Raises:
        ValueError: If it is not an ONNX model or onnxruntime refuses it.
        MissingExtraError: If the ONNX packages are not installed.
    """

    xnnpack_partitions: int | None = None
    xnnpack_outside: tuple[str, ...] = ()

    def __init__(self, content: bytes, threads: int = 2) -> None:
        onnx = require("onnx", "onnx")
        self._session = _session(content, threads)
        graph = onnx.load_from_string(content).graph
        self.outputs = tuple(row.name for row in self._session.get_outputs())
        self.ops: Mapping[str, int] = dict(Counter(n.op_type for n in graph.node))
        ends = {
            "inputs": self._session.get_inputs(),
            "outputs": self._session.get_outputs(),
        }
        self.io: Mapping[str, Any] = {
            side: [_row(graph, end) for end in rows] for side, rows in ends.items()
        }
        self.steps: Mapping[str, float] = {
            row["name"]: row["scale"] or 0.0 for row in self.io["outputs"]
        }
        quantised = any(node.op_type in PAIR for node in graph.node)
        self.float_ops = float_ops(graph) if quantised else tuple(self.ops)
        self.open_dimensions = tuple(
            row["name"]
            for rows in self.io.values()
            for row in rows
            if not all(isinstance(side, int) for side in row["shape"])
        )

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run a batch of one picture, 0..255; float32 outputs in the file's order."""
        (row,) = self._session.get_inputs()
        pixels = np.asarray(batch, np.float32)
        if row.type == "tensor(uint8)":
            pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        found = self._session.run(None, {row.name: pixels})
        return [np.asarray(value, np.float32) for value in found]


def _session(content: bytes, threads: int) -> Any:
    ort = require("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        # onnxruntime raises its own classes, which share no base but this one.
        raise ValueError(f"onnxruntime refused the file: {error}") from error


def _row(graph: Any, end: Any) -> dict[str, Any]:
    """An input or output as plain values; the scale is that behind a float end."""
    onnx = require("onnx", "onnx")
    kind = end.type.removeprefix("tensor(").removesuffix(")")
    scale = zero = None
    for node in graph.node:
        if node.op_type in PAIR and end.name in (node.input[0], node.output[0]):
            held = {row.name: row for row in graph.initializer}
            values = [held.get(name) for name in node.input[1:3]]
            if all(value is not None for value in values):
                scale, zero = (
                    onnx.numpy_helper.to_array(value).item() for value in values
                )
    return {
        "name": end.name,
        "dtype": "float32" if kind == "float" else kind,
        "shape": list(end.shape),
        "scale": scale,
        "zero_point": zero,
    }


def float_ops(graph: Any) -> tuple[str, ...]:
    """Name the operators of a quantised graph that no pair stands in front of.

    Args:
        graph: `onnx.GraphProto` with QuantizeLinear and DequantizeLinear.

    Returns:
        One text per operator that computes on values which are not rounded to 8
        bits; activations belong to the operator before them.
    """
    constant = {row.name for row in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def variable(node: Any) -> list[str]:
        return [name for name in node.input if name and name not in constant]

    def rounded(name: str) -> bool:
        node = makers.get(name)
        if node is None or node.op_type not in KEEPS:
            return node is not None and node.op_type == "DequantizeLinear"
        return all(rounded(read) for read in variable(node))

    found = []
    for place, node in enumerate(graph.node):
        if node.op_type in (*PAIR, *KEEPS, *ACTIVATIONS, "Constant"):
            continue
        if not all(rounded(name) for name in variable(node)):
            found.append(f"op {place} {node.op_type} that makes {node.output[0]!r}")
    return tuple(found)
