"""Forms for ONNX files: channel moves, and GELU.

Channel moves go into kernels, or become one Gather of an axis each.

ONNX keeps channels in front of rows. A shuffle written on channels that come last
costs three transpositions there, as its reshapes stop those that turn the layout; a
Gather of the axis in front is one copy of whole maps.
"""

from __future__ import annotations

import math

from keras_lightnets.tools.export.lower import channels, steps
from keras_lightnets.tools.quantize._graph import Graph, Step

# Of float32 on one core: products per nanosecond of a convolution
# at about 40 % of the peak, nanoseconds to copy a value and to start an operation.
PRODUCTS = 20.0
COPIED = 0.5
STARTED = 3000.0
COPIES = ("gather", "slice", "concat")


def fold_gathers(graph: Graph) -> None:
    """Let kernels take gathers where that costs less than copying the maps."""
    channels.fold(graph, nanoseconds, lambda whole, name: whole)


def write_gelus(graph: Graph) -> None:
    """Write GELU with the error function, which ONNX has."""
    for step in graph:
        if step.kind == "act" and step.config["function"] == "gelu":
            step.config["function"] = "gelu_erf"


def nanoseconds(graph: Graph) -> float:
    """Return about what convolutions and copies of a graph take."""
    total = 0.0
    for step in graph:
        places = math.prod(int(size or 1) for size in step.shape[1:-1])
        if step.kind in COPIES:
            total += places * int(step.shape[-1] or 1) * COPIED + STARTED
        elif step.kind in steps.AXES:
            total += places * step.weights["kernel"].size / PRODUCTS
    return total


def gather_in_front(graph: Graph) -> None:
    """Take channels where ONNX has them; the layouts around cancel in tf2onnx."""
    for step in list(graph):
        if step.kind != "gather" or len(step.shape) != 4:
            continue
        batch, height, width, made = step.shape
        taken = steps.channels(graph, step.inputs[0])
        first = steps.add(graph, Step(
            f"{step.name}_first", "permute", step.inputs, {"dims": (3, 1, 2)},
            shape=(batch, taken, height, width),
        ))  # fmt: skip
        only = steps.add(graph, Step(
            f"{step.name}_taken", "gather", (first.name,),
            {**step.config, "axis": 1}, shape=(batch, made, height, width),
        ))  # fmt: skip
        step.kind, step.inputs, step.config = (
            "permute",
            (only.name,),
            {"dims": (2, 3, 1)},
        )
    steps.settle(graph)
