"""Into how many parts LiteRT's fast kernels (XNNPACK) split a file, and where.

Operations between two parts run on plain kernels, one element at a time: a single
one of them often takes longer than the rest of the network.
"""

from collections.abc import Mapping
from typing import Any

from keras_lightnets.tools.export._flatbuffer import Graph, Op


def split(graph: Graph, interpreter: Any) -> tuple[int, tuple[Op, ...]] | None:
    """Read from an interpreter what XNNPACK runs of a file.

    Args:
        graph: The file, as `_flatbuffer.read` returned it.
        interpreter: Interpreter of the file, tensors allocated.

    Returns:
        The number of parts and the ops outside them, in order; None where the
        interpreter does not tell, as it lists its nodes in a private method only.
    """
    try:
        rows = interpreter._get_ops_details()
    except AttributeError:
        return None
    parts = [row for row in rows if row["op_name"] == "DELEGATE"]
    inside = {index for row in parts for index in _inside(graph, row)}
    return len(parts), tuple(op for op in graph.ops if op.index not in inside)


def _inside(graph: Graph, part: Mapping[str, Any]) -> set[int]:
    """Return the ops between the inputs and the outputs of a part."""
    makers = {tensor.index: op for op in graph.ops for tensor in op.outputs}
    ends = {int(index) for index in part["inputs"]}
    found: set[int] = set()
    tensors = [int(index) for index in part["outputs"]]
    while tensors:
        index = tensors.pop()
        op = makers.get(index)
        if op is None or index in ends or op.index in found:
            continue
        found.add(op.index)
        tensors += [tensor.index for tensor in op.inputs if tensor is not None]
    return found
