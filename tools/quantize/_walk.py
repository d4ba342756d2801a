"""Reads the graph of a Keras 3 functional model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras_lightnets.tools._functional import functional, history, nodes
from keras_lightnets.tools.quantize._graph import Graph
from keras_lightnets.tools.quantize._lower import (
    LAYERS,
    Lowering,
    UnsupportedLayerError,
)
from keras_lightnets.tools.quantize._lower_ops import OPS


def read(model: Any, extra: dict[str, Callable[..., Any]]) -> Graph:
    """Turn a functional model into steps.

    Args:
        model: A functional or sequential `keras.Model`; models inside it are
            inlined.
        extra: Lowerings by class name, beside the built-in ones.

    Returns:
        The graph.

    Raises:
        UnsupportedLayerError: If a layer has no counterpart; the text names it with
            its path.
        ValueError: If the model is not functional.
    """
    model = functional(model)
    names = [tensor.name for tensor in model.inputs]
    layer_names = [layer.name for layer in map(history, model.inputs)]
    inputs = dict(
        zip(layer_names or names, (tuple(t.shape) for t in model.inputs), strict=True)
    )
    graph = Graph(model.name, inputs, {}, {}, "tensor")
    low = Lowering(graph)
    for tensor, name in zip(model.inputs, inputs, strict=True):
        low.tensors[id(tensor)] = name
    _walk(model, low, {**LAYERS, **extra})
    found = model.output
    if isinstance(found, dict):
        graph.structure = "dict"
        pairs = list(found.items())
    elif isinstance(found, list | tuple):
        graph.structure = "list"
        pairs = [(f"output_{i}", tensor) for i, tensor in enumerate(found)]
    else:
        pairs = [("output", found)]
    graph.outputs = {key: low.name_of(tensor) for key, tensor in pairs}
    return graph


def _walk(model: Any, low: Lowering, table: dict[str, Callable[..., Any]]) -> None:
    import keras

    for node in nodes(model):
        operation = node.operation
        if isinstance(operation, keras.layers.InputLayer):
            continue
        if isinstance(operation, keras.Model):
            _inline(operation, node, low, table)
            continue
        is_layer = isinstance(operation, keras.layers.Layer)
        lower = _lookup(operation, table if is_layer else OPS)
        args = keras.tree.map_structure(
            lambda value: low.tensors.get(id(value), value), list(node.arguments.args)
        )
        if not is_layer:
            args += [low.tensors.get(id(v), v) for v in node.arguments.kwargs.values()]
        shapes = [tuple(tensor.shape) for tensor in node.outputs]
        try:
            if lower is None:
                raise UnsupportedLayerError(_unsupported(operation, table, is_layer))
            several = type(operation).__name__ == "Split"
            made = lower(low, operation, args, shapes if several else shapes[0])
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(_located(error, node, low)) from None
        made = made if isinstance(made, list) else [made]
        for tensor, name in zip(node.outputs, made, strict=True):
            low.tensors[id(tensor)] = name


def _lookup(operation: Any, table: dict[str, Callable[..., Any]]) -> Any:
    """Find a lowering by class name; a subclass counts only where that is sure."""
    import keras

    kind = type(operation)
    if kind.__name__ in table and not issubclass(kind, keras.layers.Wrapper):
        return table[kind.__name__]
    return None


def _inline(model: Any, node: Any, low: Lowering, table: dict[str, Any]) -> None:
    import keras

    inner = functional(model)
    given = keras.tree.flatten(list(node.arguments.args))
    for tensor, outer in zip(inner.inputs, given, strict=True):
        low.tensors[id(tensor)] = low.name_of(outer)
    _walk(inner, low, table)
    for tensor, made in zip(node.outputs, inner.outputs, strict=True):
        low.tensors[id(tensor)] = low.name_of(made)


def _unsupported(operation: Any, table: dict[str, Any], is_layer: bool) -> str:
    kind = type(operation).__name__
    what = "Layer" if is_layer else "Operation"
    legal = ", ".join(sorted(table if is_layer else OPS))
    return (
        f"{what} {operation.name!r} of class {kind} has no counterpart. Supported "
        f"{what.lower()}s: {legal}. Replace it, or register a lowering with "
        f"bridge.register({kind!r}, function)."
    )


def _located(error: Exception, node: Any, low: Lowering) -> str:
    import keras

    tensors = [
        low.tensors[id(value)]
        for value in keras.tree.flatten(list(node.arguments.args))
        if id(value) in low.tensors
    ]
    path = low.graph.path_to(tensors[0]) if tensors else []
    return f"{error}\nPath: {' -> '.join([*path, node.operation.name])}"
