"""Output scales that XNNPACK refuses, made wide enough."""

from typing import Any

import numpy as np

# XNNPACK refuses a step below 1/256 of the accumulator's or a summand's: the file of a
# convolution, whose values may all be 0 in the calibration set, is not opened at all,
# and a sum that a ReLU6 cuts far below its summands splits the file.
MOST_RATIO = 255.0
_KERNEL_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_SUM_OPS = ("ADD", "SUB")
# What reads a tensor of any scale and has no constant that depends on the scale.
_FREE_OPS = (*_SUM_OPS, "MUL", "LOGISTIC", "TANH", "QUANTIZE", "MEAN")


def widen_scales(model: Any) -> None:
    """Widen the too fine output scales of convolutions and sums, in place.

    Biases of convolutions behind them, which are in units of the input's scale, are
    rounded anew. A tensor with another reader, which needs the scale that it has, is
    left alone.

    Args:
        model: The file as objects of TensorFlow's schema, `ModelT`.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    graph = model.subgraphs[0]
    names = {value: key for key, value in vars(schema.BuiltinOperator).items()}
    codes = [model.operatorCodes[op.opcodeIndex] for op in graph.operators]
    kinds = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes]
    ops = list(zip(graph.operators, kinds, strict=True))
    for op, kind in ops:
        least = _least_step(graph, op, kind)
        index = op.outputs[0]
        readers = [(reader, of) for reader, of in ops if index in reader.inputs]
        if least is None or any(of not in _KERNEL_OPS + _FREE_OPS for _, of in readers):
            continue
        rule = graph.tensors[index].quantization
        factor = least / float(rule.scale[0])
        rule.scale = np.asarray([least], "float32")
        for reader, of in readers:
            if of in _KERNEL_OPS:
                _rescale_bias(schema, model, reader, factor)


def _least_step(graph: Any, op: Any, kind: str) -> float | None:
    """Return the least step that XNNPACK takes, None if the output's is no less."""
    if kind not in _KERNEL_OPS + _SUM_OPS:
        return None
    rules = [graph.tensors[i].quantization for i in (*op.inputs[:2], *op.outputs)]
    if any(rule is None or rule.scale is None for rule in rules):
        return None
    first, second, output = (float(np.max(rule.scale)) for rule in rules)
    whole = first * second if kind in _KERNEL_OPS else max(first, second)
    return whole / MOST_RATIO if whole > MOST_RATIO * output else None


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
