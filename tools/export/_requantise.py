"""Output scales that XNNPACK refuses, made wide enough."""

import copy
from typing import Any

import numpy as np

from keras_lightnets.tools.export import _flatbuffer

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
        model: The `ModelT` object of `_flatbuffer.load`.
    """
    graph = model.subgraphs[0]
    names = [_flatbuffer.builtin_name(code) for code in model.operatorCodes]
    ops = [(op, names[op.opcodeIndex]) for op in graph.operators]
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
                _rescale_bias(model, reader, factor)


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


def _rescale_bias(model: Any, op: Any, factor: float) -> None:
    """Give an operation a bias of its own in units of the new input scale."""
    graph = model.subgraphs[0]
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return
    old = graph.tensors[op.inputs[2]]
    values = np.frombuffer(bytes(model.buffers[old.buffer].data), "<i4") / factor
    made = copy.copy(old)
    made.quantization = copy.copy(old.quantization)
    scale = np.asarray(old.quantization.scale, "float64") * factor
    made.quantization.scale = scale.astype("float32")
    made.buffer = _flatbuffer.add_buffer(
        model, np.round(values).astype("<i4").tobytes()
    )
    op.inputs = [*op.inputs[:2], len(graph.tensors), *op.inputs[3:]]
    graph.tensors.append(made)
