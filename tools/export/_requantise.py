"""Output scales of convolutions that XNNPACK refuses, made wide enough."""

from typing import Any

import numpy as np

# A convolution whose values are all 0 in the calibration set gets a scale near 0.
# XNNPACK refuses files with a step below 1/256 of the accumulator's; a step as wide
# as the accumulator's loses nothing.
MOST_RATIO = 256.0
_KERNEL_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# What reads a tensor of any scale and has no constant that depends on the scale.
_FREE_OPS = ("ADD", "SUB", "MUL", "LOGISTIC", "TANH", "QUANTIZE")


def widen_scales(model: Any) -> None:
    """Widen the too fine output scales of a file's convolutions, in place.

    Biases of convolutions behind them, which are in units of the input's scale, are
    rounded anew. A tensor with another reader, which needs the scale that it has, is
    left alone.

    Args:
        model: The file as objects of TensorFlow's schema, `ModelT`.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    graph = model.subgraphs[0]
    names = {value: key for key, value in vars(schema.BuiltinOperator).items()}
    kinds = [
        _kind(names, model.operatorCodes[op.opcodeIndex]) for op in graph.operators
    ]
    for op, kind in zip(graph.operators, kinds, strict=True):
        if kind not in _KERNEL_OPS:
            continue
        step, index = _accumulator_step(graph, op), op.outputs[0]
        range_ = graph.tensors[index].quantization
        if step is None or step < MOST_RATIO * range_.scale[0]:
            continue
        readers = [
            (reader, of)
            for reader, of in zip(graph.operators, kinds, strict=True)
            if index in reader.inputs
        ]
        if all(of in _KERNEL_OPS + _FREE_OPS for _, of in readers):
            factor = step / range_.scale[0]
            range_.scale = np.asarray([step], "float32")
            for reader, of in readers:
                if of in _KERNEL_OPS:
                    _rescale_bias(schema, model, reader, factor)


def _kind(names: dict[int, str], code: Any) -> str:
    return names[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _accumulator_step(graph: Any, op: Any) -> float | None:
    """Return the largest step of the sums of products, or None for floats."""
    steps = [graph.tensors[i].quantization for i in op.inputs[:2]]
    if any(found is None or found.scale is None for found in steps):
        return None
    return float(steps[0].scale[0] * np.max(steps[1].scale))


def _rescale_bias(schema: Any, model: Any, op: Any, factor: float) -> None:
    """Give an operation a bias of its own in units of the new input scale."""
    graph = model.subgraphs[0]
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return
    old = graph.tensors[op.inputs[2]]
    values = np.frombuffer(bytes(model.buffers[old.buffer].data), "<i4") / factor
    made, rule = schema.TensorT(), schema.QuantizationParametersT()
    vars(made).update(vars(old))
    vars(rule).update(vars(old.quantization))
    rule.scale = (np.asarray(rule.scale, "float64") * factor).astype("float32")
    buffer = schema.BufferT()
    rounded = np.round(values).astype("<i4")
    buffer.data = np.frombuffer(rounded.tobytes(), "uint8")
    made.quantization, made.buffer = rule, len(model.buffers)
    model.buffers.append(buffer)
    op.inputs = [*op.inputs[:2], len(graph.tensors), *op.inputs[3:]]
    graph.tensors.append(made)
