"""Which range each step of an int8 model gets: the one table, and who may differ.

The TFLite converter turns a tensor into int8 exactly where a fake quantiser
stands, so every operation of the later file needs its range from here; one too
many costs an operation, one too few leaves a float island.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_lightnets.tools.quantize._graph import Graph, Step

CALIBRATED = "calibrated"

# What the int8 kernels of LOGISTIC, SOFTMAX and TANH demand.
UNIT = (0.0, 255.0 / 256.0)
SIGNED_UNIT = (-1.0, 127.0 / 128.0)

# Kinds whose int8 kernel can apply a ReLU or ReLU6 itself.
FUSES_RELU = (
    "conv",
    "depthwise",
    "dense",
    "add",
    "subtract",
    "add_const",
    "batch_norm",
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one kind of step is quantised.

    Attributes:
        kernel: None (no kernel), "tensor" (one scale) or the axis of the kernel
            that gets a scale each.
        output: None (the value passes unchanged, or a later step holds the range),
            "calibrated", or a fixed (low, high).
    """

    kernel: str | int | None = None
    output: str | tuple[float, float] | None = CALIBRATED


_KEEPS = Rule(output=None)

RULES: dict[str, Rule] = {
    # One scale per output channel; per tensor leaves a float convolution.
    "conv": Rule(kernel=-1),
    "depthwise": Rule(kernel=-2),
    # The converter accepts these per tensor only.
    "dense": Rule(kernel="tensor"),
    "conv_transpose": Rule(kernel="tensor"),
    "identity": Rule(),
    "batch_norm": Rule(),
    "relu": Rule(),
    "prelu": Rule(),
    "scale": Rule(),
    "add_const": Rule(),
    "add": Rule(),
    "subtract": Rule(),
    "multiply": Rule(),
    "maximum": Rule(),
    "minimum": Rule(),
    "concat": Rule(),
    "mean": Rule(),
    # Same scale in and out.
    "max_pool": _KEEPS,
    "avg_pool": _KEEPS,
    "global_max": _KEEPS,
    "zero_pad": _KEEPS,
    "crop": _KEEPS,
    "permute": _KEEPS,
    "reshape": _KEEPS,
    "resize": _KEEPS,
    "slice": _KEEPS,
    "gather": _KEEPS,
}

FUNCTION_RULES: dict[str, Rule] = {
    "hard_swish": Rule(),
    "sigmoid": Rule(output=UNIT),
    "softmax": Rule(output=UNIT),
    "tanh": Rule(output=SIGNED_UNIT),
    "gelu": Rule(),
}


class NotQuantisableError(ValueError):
    """A step has no int8 counterpart; the text names it."""


def plan(graph: Graph) -> dict[str, Rule]:
    """Choose the ranges of a whole graph.

    Args:
        graph: Steps, normalisations folded.

    Returns:
        The rule of each step by name.

    Raises:
        NotQuantisableError: If a step has no int8 counterpart.
    """
    readers = graph.consumers()
    chosen: dict[str, Rule] = {}
    for step in graph:
        rule = _base(graph, step)
        output = _fixed(graph, step, readers) or rule.output
        if output == CALIBRATED and _held_later(graph, step, readers):
            output = None
        chosen[step.name] = dataclasses.replace(rule, output=output)
    return chosen


def check_kinds(graph: Graph) -> None:
    """Refuse layers that no int8 file has; the converter may not come back from them.

    Args:
        graph: Steps. Activations are left to the converter, which knows more of them
            than training does.

    Raises:
        NotQuantisableError: If a layer has no int8 counterpart.
    """
    for step in graph:
        if step.kind != "act":
            _base(graph, step)


def keeps_range(step: Step) -> bool:
    """Say whether a step's int8 output has its input's scale."""
    return RULES.get(step.kind) is _KEEPS


def _base(graph: Graph, step: Step) -> Rule:
    table: Any = FUNCTION_RULES if step.kind == "act" else RULES
    key = step.config["function"] if step.kind == "act" else step.kind
    if key not in table:
        instead = "Export it in a format of floats."
        if step.kind == "act":
            instead = "Use relu, relu6, hard_swish, gelu, sigmoid or tanh instead."
        raise NotQuantisableError(
            f"{key!r} at {step.name!r} has no int8 operation. Path: "
            f"{' -> '.join(graph.path_to(step.name))}. {instead}"
        )
    return table[key]


def _is_relu6(step: Step | None) -> bool:
    return (
        step is not None and step.kind == "relu" and step.config.get("max_value") == 6.0
    )


def _fixed(
    graph: Graph, step: Step, readers: dict[str, list[str]]
) -> tuple[float, float] | None:
    """Return the known range of the parts of a hard sigmoid, and of raw input."""
    if step.kind == "identity":
        return step.range
    after = graph.sole_consumer(step.name, readers)
    if _is_relu6(step) and after is not None and after.kind == "scale":
        return (0.0, 6.0)
    before = graph.steps.get(step.inputs[0])
    if step.kind == "scale" and _is_relu6(before):
        value = step.weights["value"]
        if value.size == 1 and 0 < value[0]:
            return (0.0, float(6.0 * value[0]))
    return None


def _held_later(graph: Graph, step: Step, readers: dict[str, list[str]]) -> bool:
    """Say whether the next operation absorbs this one, or holds its range."""
    after = graph.sole_consumer(step.name, readers)
    if after is None:
        shared = [graph.steps.get(name) for name in readers[step.name]]
        return step.kind in FUSES_RELU and all(
            s is not None and s.kind == "batch_norm" for s in shared
        )
    if step.kind in FUSES_RELU and after.kind == "relu":
        plain = not after.config.get("negative_slope")
        return plain and after.config.get("max_value") in (None, 6.0)
    if step.kind in ("conv", "depthwise", "dense") and after.kind == "batch_norm":
        return True
    while after is not None and keeps_range(after):
        after = graph.sole_consumer(after.name, readers)
    return after is not None and after.kind == "concat"
