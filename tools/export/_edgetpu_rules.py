"""What the Edge TPU compiler takes, as a table: one row per operator.

Each row and each limit names where it comes from (`_edgetpu_advice.SOURCES`) and what
to change where it is not kept. Rows were checked against 72 graphs and their compiled
forms; where those and the vendor's table say nothing, the row errs on the side of "not
mapped".
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from keras_lightnets.tools.export._edgetpu_advice import (
    EIGHT_BITS,
    INNER,
    INSTEAD,
    OTHERWISE,
    Advice,
)
from keras_lightnets.tools.export._flatbuffer import Op, Tensor

EIGHT_BIT = ("INT8", "UINT8")
DATA_TYPE = "Operation is working on an unsupported data type"
UNSPECIFIED = (
    "Operation is otherwise supported, but not mapped due to some unspecified "
    "limitation"
)
RANK = "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
IMPRECISE = "Image-interpolation layer won't run precisely enough on Edge TPU"

Check = Callable[[Op], str | None]


@dataclasses.dataclass(frozen=True)
class Limit:
    """A condition on an op.

    Attributes:
        check: Returns the reason why it is not kept, or None.
        advice: What to change then.
    """

    check: Check
    advice: Advice


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why an op is not mapped on its own, and what to change."""

    reason: str
    advice: Advice


def _limit(text: str, source: str) -> Callable[[Check], Limit]:
    return lambda check: Limit(check, Advice(text, source))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One operator the compiler maps.

    Attributes:
        max_version: Highest version known to be mapped.
        source: Keys of `SOURCES` for the row.
        limits: Conditions beyond those of every op.
        sixteen_bit: Whether INT16 state tensors are allowed.
        note: Said with a mapped op when the evidence is thin.
        newer: What to change where the version is higher.
    """

    max_version: int
    source: str
    limits: tuple[Limit, ...] = ()
    sixteen_bit: bool = False
    note: str = ""
    newer: Advice = Advice(
        "write it in an older form: fewer dimensions, plain attributes", "I"
    )


def _activation(op: Op, position: int = 0) -> Tensor:
    """The tensor a check is about; the reader has made sure that it exists."""
    tensor = op.inputs[position] if position < len(op.inputs) else None
    if tensor is None:
        raise ValueError(f"A damaged graph: op {op.index} {op.label} lacks an input.")
    return tensor


def _constant(op: Op, position: int) -> tuple[int, ...] | None:
    """Values of a small constant input, None where they are not known."""
    tensor = op.inputs[position] if position < len(op.inputs) else None
    return tensor.value if tensor is not None and tensor.const else None


def _wide(shape: Sequence[int]) -> int:
    return sum(size > 1 for size in shape)


@_limit(
    "keep the weights constant and inside the file: fold what computes them",
    "T G",
)
def _weights_constant(op: Op) -> str | None:
    for tensor in op.inputs[1:]:
        if tensor is not None and tensor.outside:
            return (
                f"{UNSPECIFIED}: {tensor.name or 'a weight'} is stored behind the "
                "flatbuffer, where the compiler does not look [G]"
            )
        if tensor is not None and not tensor.const:
            return f"{UNSPECIFIED}: weights are not constant [T]"
    return None


@_limit(
    "use the same dilation in x and y",
    "T",
)
def _equal_dilation(op: Op) -> str | None:
    pair = (op.attributes.get("dilationWFactor"), op.attributes.get("dilationHFactor"))
    # A kernel of one row or column, as of a 1-D convolution, was mapped [G].
    if pair[0] == pair[1] or 1 in _activation(op, 1).shape[1:3]:
        return None
    return f"{UNSPECIFIED}: dilation differs in x and y {pair} [T]"


@_limit(
    "SPLIT, a convolution per group, CONCATENATION; or a dense one with zeros",
    "W",
)
def _not_grouped(op: Op) -> str | None:
    taken, given = _activation(op).shape[-1], _activation(op, 1).shape[-1]
    if taken == given:
        return None
    return f"{UNSPECIFIED}: grouped convolution, {taken // given} groups [G]"


@_limit(
    "make the activation an op of its own behind it",
    "T",
)
def _no_activation(op: Op) -> str | None:
    fused = op.attributes.get("fusedActivationFunction", "NONE")
    return None if fused == "NONE" else f"{UNSPECIFIED}: fused {fused} [T]"


@_limit(
    "add the constant part as a PAD, or fold it into the next convolution",
    "T",
)
def _constant_parts(op: Op) -> str | None:
    constants = [tensor for tensor in op.inputs if tensor is not None and tensor.const]
    if not constants or (len(op.inputs) == 2 and all(t.zeros for t in constants)):
        return None
    return f"{UNSPECIFIED}: a constant part that is not zero padding [T]"


@_limit(
    "flatten to (1, features) in front; use the default weight format",
    "T I",
)
def _dense_form(op: Op) -> str | None:
    if op.attributes.get("weightsFormat", 0):
        return f"{UNSPECIFIED}: shuffled weight format [T]"
    if op.attributes.get("keepNumDims"):
        return "Operation version not supported: keep_num_dims [I]"
    if _wide(op.outputs[0].shape) > 1:
        return f"{UNSPECIFIED}: output {op.outputs[0].shape} is not 1-D [T]"
    return None


@_limit(
    "leave the softmax out and take it on the CPU from the logits",
    "O E",
)
def _one_dimension(op: Op) -> str | None:
    shape = _activation(op).shape
    if _wide(shape) > 1:
        return f"{UNSPECIFIED}: input {shape} is not 1-D [O]"
    # The table says 16,000; 16,384 were mapped.
    if math.prod(shape) > 16_384:
        return f"{UNSPECIFIED}: {math.prod(shape)} elements, mapped up to 16,384 [G]"
    return None


def _axes(op: Op) -> tuple[int, ...] | None:
    values = _constant(op, 1)
    rank = len(_activation(op).shape)
    return None if values is None else tuple(value % rank for value in values)


@_limit(
    "reduce over height, width or channels, never over the batch",
    "T",
)
def _reduction(op: Op) -> str | None:
    axes = _axes(op)
    if axes is None:
        return f"{UNSPECIFIED}: the axes are not constant [T]"
    if 0 in axes:
        return f"{UNSPECIFIED}: reduces over the batch [T]"
    return None


@_limit(
    "pool in two steps (AVERAGE_POOL_2D, then MEAN); pad channels to a multiple of 4",
    "T I#461",
)
def _mean(op: Op) -> str | None:
    shape, axes = _activation(op).shape, _axes(op) or ()
    if len(shape) - 1 in axes and shape[-1] % 4:
        return f"{UNSPECIFIED}: mean over {shape[-1]} channels, not 4 n [T]"
    # 64x128 was mapped and 256x128 refused; nothing is known in between.
    area = math.prod(shape[axis] for axis in axes if axis != len(shape) - 1)
    if area > 64 * 128:
        return f"{UNSPECIFIED}: mean over {area} positions, mapped up to 8192 [I#461]"
    return None


@_limit(
    "constant INT32 paddings that leave the batch alone",
    "T I",
)
def _padding(op: Op) -> str | None:
    table = _activation(op, 1)
    if not table.const or table.dtype != "INT32":
        return f"{DATA_TYPE}: paddings must be constant INT32 [I]"
    if table.value is not None and any(table.value[:2]) and len(table.value) > 2:
        return f"{UNSPECIFIED}: pads the batch [T]"
    return None


@_limit(
    "share alpha over x and y: PReLU(shared_axes=[1, 2])",
    "T",
)
def _alpha(op: Op) -> str | None:
    shape = _activation(op, 1).shape
    if _wide(shape[:-1]):
        return f"{UNSPECIFIED}: alpha {shape} is not 1-D, share it over x and y [T]"
    return None


@_limit(
    "grow by 2 at a time; leave a last large step to the CPU",
    "G I#31",
)
def _resize(op: Op) -> str | None:
    if not _activation(op, 1).const:
        return f"{UNSPECIFIED}: the size is not constant [T]"
    small, large = _activation(op).shape[1:3], op.outputs[0].shape[1:3]
    factor = max(large[0] / small[0], large[1] / small[1])
    words = f"{small[0]}x{small[1]} to {large[0]}x{large[1]}"
    # Mapped: equal size and doubling. Refused: 1x1 to 33x33 and 33 to 513.
    if min(small) == 1 and factor > 1:
        return f"{IMPRECISE}: {words} [G]"
    if factor > 4:
        return f"{IMPRECISE}: {words}; mapped ones grow 2 fold at most [G]"
    # 128 was mapped and an input of 512 refused; nothing is known in between.
    if max(small) >= 512:
        return f"{UNSPECIFIED}: {words}, the input is too large [I#31]"
    return None


@_limit(
    "slice with stride 1 and no new axis; a convolution or pooling for strides",
    "O",
)
def _plain_slice(op: Op) -> str | None:
    if op.attributes.get("ellipsisMask") or op.attributes.get("newAxisMask"):
        return f"{UNSPECIFIED}: ellipsis or new axis [O]"
    strides = _constant(op, 3)
    if strides is None or set(strides) != {1}:
        return f"{UNSPECIFIED}: strides {strides}, all must be 1 [O]"
    return None


@_limit(
    "fold the order of the channels into the weights of the 1x1 beside it",
    "W",
)
def _keeps_channels(op: Op) -> str | None:
    order = _constant(op, 1)
    if order is not None and order[-1] == len(order) - 1:
        return None
    return f"{UNSPECIFIED}: order {order} moves the channels [I#433]"


@_limit(
    "split along a constant axis that is not the batch",
    "R",
)
def _split_axis(op: Op) -> str | None:
    axis = _constant(op, 0)
    if len(op.outputs) == 1:  # splits nothing; mapped over the batch too [G]
        return None
    if axis is None or axis[0] % len(_activation(op, 1).shape) == 0:
        return f"{UNSPECIFIED}: splits the batch or an unknown axis [R]"
    return None


@_limit(
    "pack along an axis that is not the batch",
    "T",
)
def _pack_axis(op: Op) -> str | None:
    if op.attributes.get("axis", 0) % len(op.outputs[0].shape):
        return None
    return f"{UNSPECIFIED}: packs the batch [T]"


@_limit(
    "time_major=False",
    "R",
)
def _batch_major(op: Op) -> str | None:
    return f"{UNSPECIFIED}: time first [R]" if op.attributes.get("timeMajor") else None


@_limit(
    "RESIZE_NEAREST_NEIGHBOR for maps; a broadcasting ADD for vectors",
    "G E",
)
def _spread(op: Op) -> str | None:
    if _wide(_activation(op).shape) <= 1:
        return None
    return f"{UNSPECIFIED}: only a 1x1 map was seen tiled [G]"


_CONV = (_weights_constant, _equal_dilation)
_CALM = Rule(2, "T V")
RULES: dict[str, Rule] = {
    "ADD": Rule(2, "T G"),
    "AVERAGE_POOL_2D": Rule(2, "T G", (_no_activation,)),
    "CONCATENATION": Rule(2, "T V", (_no_activation, _constant_parts)),
    "CONV_2D": Rule(3, "T G", (*_CONV, _not_grouped), newer=_not_grouped.advice),
    "DEPTHWISE_CONV_2D": Rule(3, "T G", _CONV),
    "EXPAND_DIMS": Rule(1, "C"),
    "FULLY_CONNECTED": Rule(
        4, "T G", (_weights_constant, _dense_form), newer=_dense_form.advice
    ),
    "L2_NORMALIZATION": _CALM,
    "LOGISTIC": _CALM,
    "MAXIMUM": _CALM,
    "MAX_POOL_2D": Rule(2, "T G", (_no_activation,)),
    "MEAN": Rule(2, "T V", (_reduction, _mean)),
    "MINIMUM": _CALM,
    "MUL": Rule(2, "T G"),
    "PACK": Rule(2, "C T", (_pack_axis,)),
    "PAD": Rule(2, "T V", (_padding,)),
    "PRELU": Rule(1, "T R", (_alpha,)),
    "QUANTIZE": Rule(2, "C G"),
    "REDUCE_MAX": Rule(2, "T R", (_reduction,)),
    "REDUCE_MIN": Rule(2, "T R", (_reduction,)),
    "RELU": _CALM,
    "RELU6": _CALM,
    "RELU_N1_TO_1": Rule(1, "T V"),
    "RESHAPE": Rule(1, "T G"),
    "RESIZE_BILINEAR": Rule(3, "T G", (_resize,)),
    "RESIZE_NEAREST_NEIGHBOR": Rule(
        2,
        "O I#206",
        (_resize,),
        newer=Advice("align_corners and half_pixel_centers off", "I#206"),
    ),
    "RSQRT": Rule(2, "R"),
    "SLICE": Rule(2, "O V"),
    "SOFTMAX": Rule(2, "O G", (_one_dimension,)),
    "SPACE_TO_DEPTH": Rule(2, "O V"),
    "SPLIT": Rule(2, "G R", (_split_axis,)),
    "SQUARED_DIFFERENCE": Rule(2, "R"),
    "SQUEEZE": Rule(1, "O R"),
    "STRIDED_SLICE": Rule(2, "O V", (_plain_slice,)),
    "SUB": Rule(2, "T G"),
    "SUM": Rule(2, "C R", (_reduction,)),
    "TANH": _CALM,
    "TILE": Rule(1, "G", (_spread,), note="not in the vendor's table, seen once [G]"),
    "TRANSPOSE": Rule(2, "R I#433", (_keeps_channels,)),
    "TRANSPOSE_CONV": Rule(
        2,
        "C I#147",
        (_weights_constant,),
        newer=Advice("RESIZE_BILINEAR by 2, then a convolution", "I#147"),
    ),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Rule(1, "T G", (_batch_major,), sixteen_bit=True),
}


def _eight_bit(op: Op, rule: Rule) -> str | None:
    allowed = (*EIGHT_BIT, "INT16") if rule.sixteen_bit else EIGHT_BIT
    for tensor in op.inputs:
        if tensor is None:
            continue
        legal = (*allowed, "INT32") if tensor.const else allowed
        if tensor.dtype not in legal:
            return f"{DATA_TYPE}: {tensor.dtype} input"
    for tensor in op.outputs:
        if tensor.dtype not in EIGHT_BIT:
            return f"{DATA_TYPE}: {tensor.dtype} output"
    return None


def _rank(op: Op) -> str | None:
    for tensor in (*op.inputs, *op.outputs):
        if tensor is not None and not tensor.const and _wide(tensor.shape[:-3]):
            return f"{RANK}: {tensor.shape} [T]"
    return None


def _quantised(op: Op) -> str | None:
    for tensor in (*op.inputs, *op.outputs):
        if tensor is None or tensor.const or tensor.dtype not in EIGHT_BIT:
            continue
        if not tensor.scales:
            return f"Model not quantized: {tensor.name or 'a tensor'} has no scale [I]"
    return None


def refusal(op: Op) -> Refusal | None:
    """Return why the compiler would not map an op on its own, or None.

    The reason starts with the status the compiler itself prints, where it is known,
    and ends with the key of the source.

    Args:
        op: The op.
    """
    rule = RULES.get(op.name)
    if rule is None:
        instead = INSTEAD.get(op.label, OTHERWISE)
        return Refusal(f"Operation not supported: {op.label} [T O]", instead)
    if op.version > rule.max_version:
        return Refusal(
            f"Operation version not supported: version {op.version}, seen mapped up "
            f"to {rule.max_version}: unknown, counted as not mapped [{rule.source}]",
            rule.newer,
        )
    found = (
        (_eight_bit(op, rule) or _quantised(op), EIGHT_BITS),
        (_rank(op), INNER),
    )
    for reason, advice in found:
        if reason:
            return Refusal(reason, advice)
    for limit in rule.limits:
        reason = limit.check(op)
        if reason:
            return Refusal(reason, limit.advice)
    return None
