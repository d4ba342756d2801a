"""Models to TFLite bytes, and TFLite bytes on numpy arrays."""

from __future__ import annotations

import contextlib
import functools
import io as _io
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_lightnets._errors import require, unknown
from keras_lightnets.tools.export import _flatbuffer, _requantise, lower

KINDS = ("float32", "float16", "int8")
IO_TYPES = ("float", "uint8", "int8")
SIGNATURE = "serving_default"


def convert(
    model: Any,
    kind: str = "float32",
    io: str = "float",
    calibration: Iterable[Any] | None = None,
    target: str = "cpu",
) -> bytes:
    """Convert a model to a TFLite file with a fixed batch of one.

    Inputs are always RGB grey levels of 0-255 where the model normalises them
    itself. With io="uint8" the bytes of a picture go in as they are, with "int8"
    those bytes minus 128: the normalisation is part of the input's quantisation
    (scale and zero point) or of the first layers, never of the caller.

    Args:
        model: A functional Keras 3 model, or what `qat.prepare` returned.
        kind: "float32", "float16" (weights only) or "int8".
        io: Type of inputs and outputs: "float", "uint8" or "int8"; the last two
            only with kind="int8".
        calibration: Representative pictures, (height, width, channels) or
            (1, height, width, channels) each, 0-255; needed for a Keras 3 model and
            kind="int8".
        target: Where an int8 file shall run, a name in `lower.TARGETS`.

    Returns:
        The file. Outputs stand in the model's own order and carry its names, in the
        signature "serving_default" and as tensor names; the same model gives the
        same bytes.

    Raises:
        ValueError: If an option is not legal, the calibration set does not fit or
            TensorFlow's converter makes nothing of the graph.
        UnsupportedLayerError: If a layer cannot be converted.
    """
    _check(model, kind, io, calibration)
    if target not in lower.TARGETS:
        raise unknown("target", target, lower.TARGETS)
    if kind != "int8":
        return _float(model, kind)
    lowering = functools.partial(lower.lower, target=target)
    if hasattr(model, "source_weights"):
        function, graph = model.deployed(io != "float", lowering)
        return _finish(function, graph, _int8_types(io), None)
    from keras_lightnets.tools.quantize import ptq

    pictures = () if calibration is None else calibration
    function, graph, samples = ptq.prepare(model, pictures, io != "float", lowering)
    return _finish(function, graph, _int8_types(io), samples)


def _check(model: Any, kind: str, io: str, calibration: Any) -> None:
    if kind not in KINDS:
        raise unknown("TFLite kind", kind, KINDS)
    if io not in IO_TYPES:
        raise unknown("io", io, IO_TYPES)
    if kind != "int8" and io != "float":
        raise ValueError(
            f"io={io!r} needs kind='int8'; a {kind} file reads and returns floats. "
            "Use io='float'."
        )
    quantised = hasattr(model, "source_weights")
    if kind != "int8" and quantised:
        raise ValueError(
            "A quantisation-aware model converts to int8 only. Received: "
            f"kind={kind!r}. Convert the Keras 3 model for a float file."
        )
    if kind == "int8" and not quantised and calibration is None:
        raise ValueError(
            "kind='int8' needs calibration=, an iterable of representative pictures "
            "(height, width, channels) of 0-255; 100 are enough."
        )


def _float(model: Any, kind: str) -> bytes:
    from keras_lightnets.tools.quantize import _passes, bridge

    graph = bridge.to_graph(model).copy()
    _passes.fold_norms(graph)
    _passes.fold_input(graph, raw=False)
    _passes.bake(graph)
    for change in lower.FLOAT:
        change(graph)
    for step in graph:
        if step.config.get("function") == "hard_swish":
            step.config["function"] = "hard_swish_scalar"
    tf_model, _ = bridge.emit(graph, batch=1)

    def configure(tf: Any, converter: Any) -> None:
        if kind == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]

    return _finish(lambda *x: call(tf_model, x), graph, configure, None)


def call(model: Any, inputs: Any) -> Any:
    """Call a tf_keras model on a tuple of tensors, in inference mode."""
    return model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)


def _int8_types(io: str) -> Callable[[Any, Any], None]:
    def configure(tf: Any, converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        kind = {"float": tf.float32, "uint8": tf.uint8, "int8": tf.int8}[io]
        converter.inference_input_type = kind
        converter.inference_output_type = kind

    return configure


def _finish(
    function: Callable[..., Any],
    graph: Any,
    configure: Callable[[Any, Any], None],
    samples: Callable[[], Iterator[list[np.ndarray]]] | None,
) -> bytes:
    """Trace, freeze, convert, name inputs and outputs."""
    import tensorflow as tf

    frozen = freeze(function, graph)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    configure(tf, converter)
    if samples is not None:
        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with quiet():
            content = converter.convert()
    except struct.error as error:  # it reads its own empty file
        raise ValueError(
            f"TensorFlow's converter made an empty file of {graph.name!r} and gave no "
            "reason. Try another format; files of the Edge TPU's form run on CPUs, too."
        ) from error
    return _name(content, list(graph.inputs), list(graph.outputs))


def freeze(function: Callable[..., Any], graph: Any) -> Any:
    """Trace a function with a batch of one and make constants of its weights.

    Args:
        function: Takes and returns tensors, or returns them by name.
        graph: The graph that names its inputs and outputs.

    Returns:
        A concrete function; its outputs stand in the graph's order.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    def flat(*inputs: Any) -> list[Any]:
        found = function(*inputs)
        if isinstance(found, dict):
            return [found[key] for key in graph.outputs]
        return list(found) if isinstance(found, list | tuple) else [found]

    specs = [_spec(tf, name, shape) for name, shape in graph.inputs.items()]
    concrete = tf.function(flat, autograph=False).get_concrete_function(*specs)
    return convert_variables_to_constants_v2(concrete)


def _spec(tf: Any, name: str, shape: tuple[int | None, ...]) -> Any:
    if None in shape[1:]:
        raise ValueError(
            f"Input {name!r} has the shape {shape}; a TFLite file needs fixed sizes. "
            "Build the model with input_shape=(height, width, channels)."
        )
    return tf.TensorSpec((1, *shape[1:]), tf.float32, name=name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converter's warnings from the terminal; errors are raised anyway."""
    import logging
    import warnings

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(_io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
        logger.setLevel(level)


def _name(content: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """Widen scales, put outputs in the model's order, name tensors and signature.

    The converter orders outputs as it likes and calls them output_0, output_1, ...
    in its own signature, which says which is which.
    """
    model, _ = _flatbuffer.load(content)
    _requantise.widen_scales(model)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    signature.signatureKey = SIGNATURE
    found = {
        int(entry.name.decode().rpartition("_")[2]): entry
        for entry in signature.outputs
    }
    signature.outputs = [found[i] for i in sorted(found)]
    signature.inputs.sort(key=lambda entry: inputs.index(entry.name.decode()))
    for names, entries in ((inputs, signature.inputs), (outputs, signature.outputs)):
        for name, entry in zip(names, entries, strict=True):
            entry.name = name
            graph.tensors[entry.tensorIndex].name = name
    graph.inputs = [entry.tensorIndex for entry in signature.inputs]
    graph.outputs = [entry.tensorIndex for entry in signature.outputs]
    return _flatbuffer.pack(model)


def interpreter(content: bytes, kernels: str = "xnnpack", threads: int = 1) -> Any:
    """Open a file for running.

    Args:
        content: The TFLite file.
        kernels: "xnnpack" (what users run) or "reference" (plain kernels, the
            format's definition).
        threads: Threads of the interpreter.

    Returns:
        An interpreter with tensors allocated.

    Raises:
        MissingExtraError: If the LiteRT package is not installed.
    """
    if kernels not in ("xnnpack", "reference"):
        raise unknown("kernels", kernels, ("xnnpack", "reference"))
    litert = require("ai_edge_litert.interpreter", "litert")
    resolvers = litert.OpResolverType
    kind = resolvers.AUTO if kernels == "xnnpack" else resolvers.BUILTIN_REF
    made = litert.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=kind,
    )
    made.allocate_tensors()
    return made


def run(
    content: bytes | Any,
    inputs: np.ndarray | Mapping[str, np.ndarray],
    kernels: str = "xnnpack",
    dequantise: bool = True,
) -> dict[str, np.ndarray]:
    """Run a file on one batch, picture by picture.

    Args:
        content: The TFLite file, or an interpreter from `interpreter`.
        inputs: (batch, ...) for the only input, or a dict by name. Pictures of
            0-255; what the file reads as int8 is shifted by 128 here.
        kernels: See `interpreter`.
        dequantise: Return real values rather than the file's integers.

    Returns:
        Arrays (batch, ...) by output name; float32 when dequantised.
    """
    made = interpreter(content, kernels) if isinstance(content, bytes) else content
    details = {detail["name"]: detail for detail in made.get_input_details()}
    if not isinstance(inputs, Mapping):
        inputs = {next(iter(details)): inputs}
    count = len(next(iter(inputs.values())))
    rows: dict[str, list[np.ndarray]] = {}
    for i in range(count):
        for name, array in inputs.items():
            detail = details[name]
            made.set_tensor(detail["index"], _as(array[i : i + 1], detail["dtype"]))
        made.invoke()
        for detail in made.get_output_details():
            value = made.get_tensor(detail["index"])
            value = _real(value, detail) if dequantise else value
            rows.setdefault(detail["name"], []).append(value)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _as(array: np.ndarray, dtype: Any) -> np.ndarray:
    if dtype == np.float32:
        return np.asarray(array, "float32")
    levels = np.clip(np.round(np.asarray(array, "float32")), 0, 255)
    return (levels - (128 if dtype == np.int8 else 0)).astype(dtype)


def _real(value: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    if not scale:
        return np.asarray(value, "float32")
    return (value.astype("float32") - np.float32(zero)) * np.float32(scale)
