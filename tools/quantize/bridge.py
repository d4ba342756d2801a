"""Turns a Keras 3 model into an equal tf_keras model, and weights back.

The Model Optimization toolkit and the TFLite converter work on tf_keras. The
bridge reads the graph of a functional Keras 3 model into plain steps
(`_walk`, `_lower`), and makes one tf_keras layer of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lightnets._errors import require
from keras_lightnets.tools.quantize import _layers, _walk
from keras_lightnets.tools.quantize._graph import Graph, Step
from keras_lightnets.tools.quantize._lower import UnsupportedLayerError

__all__ = ["Pair", "Twin", "UnsupportedLayerError", "copy_back", "register"]

_EXTRA: dict[str, Callable[..., Any]] = {}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Which tf_keras layer holds the weights of which Keras 3 layer.

    Attributes:
        layer: The tf_keras layer.
        source: Name of the Keras 3 layer.
        roles: Weight attributes of the Keras 3 layer, in the order of
            `layer.get_weights()`.
    """

    layer: Any
    source: str
    roles: tuple[str, ...]


@dataclasses.dataclass
class Twin:
    """A tf_keras model and where its weights come from.

    Attributes:
        model: The tf_keras model; outputs are named as in the Keras 3 model.
        pairs: Layers with weights. Kept beside the model, as tf_keras would track
            Keras 3 layers set on it and count their weights twice.
        graph: The steps that the model was made from.
    """

    model: Any
    pairs: tuple[Pair, ...]
    graph: Graph


def register(class_name: str, lower: Callable[..., str]) -> None:
    """Teach the bridge a layer class.

    Args:
        class_name: Name of the Keras 3 layer's class.
        lower: Function of (lowering, layer, inputs, output shape) that emits steps
            with `lowering.emit` and returns the last one's name.

    Example:
        >>> register("Shift", lambda low, layer, args, shape: low.constant(
        ...     "add_const", layer.name, args[0], layer.amount))
    """
    _EXTRA[class_name] = lower


def to_graph(model: Any) -> Graph:
    """Read a functional Keras 3 model into steps; see `to_tf_keras`."""
    return _walk.read(model, _EXTRA)


def to_tf_keras(model: Any) -> Twin:
    """Make an equal tf_keras model.

    Args:
        model: A functional or sequential Keras 3 model of supported layers,
            channels last. Models inside it are inlined.

    Returns:
        The twin. Its outputs differ from the model's by rounding only (at most
        1e-5 of the largest value); a dict of outputs keeps its names.

    Raises:
        UnsupportedLayerError: If a layer has no counterpart; the text names it with
            its path in the graph.
        ValueError: If the model is not functional.
        MissingExtraError: If tf_keras is not installed.

    Example:
        >>> twin = to_tf_keras(keras_model)  # doctest: +SKIP
        >>> twin.model(images)["scores"]  # doctest: +SKIP
    """
    graph = to_graph(model)
    tf_model, layers = emit(graph)
    pairs = [
        Pair(layers[step.name], step.source, step.roles)
        for step in graph
        if step.source and not step.shared
    ]
    return Twin(tf_model, tuple(pairs), graph)


def emit(
    graph: Graph,
    make: Callable[[Step], tuple[Any, Any]] | None = None,
    arrays: Callable[[Step], dict[str, np.ndarray]] | None = None,
    batch: int | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Make a tf_keras model of a graph.

    Args:
        graph: The steps.
        make: Returns the layer of a step and what to call in its place, such as a
            wrapper of it; the plain tf_keras layer when not given.
        arrays: Returns the arrays of a step in the order of its layer's weights.
        batch: Fixed batch size, or None.

    Returns:
        The model and the (unwrapped) layer of each step.
    """
    tk = require("tf_keras", "qat")
    tensors: dict[str, Any] = {
        name: tk.Input(shape[1:], batch_size=batch, name=name)
        for name, shape in graph.inputs.items()
    }
    inputs = list(tensors.values())
    layers: dict[str, Any] = {}
    called: dict[str, Any] = {}
    for step in graph:
        name = step.shared or step.name
        if not step.shared:
            layer = _layers.build(step) if make is None else None
            layers[name], called[name] = make(step) if make else (layer, layer)
        layers[step.name] = layers[name]
        values = [tensors[i] for i in step.inputs]
        call = _layers.untransformed(called[name])
        tensors[step.name] = call(values if len(values) > 1 else values[0])
    for step in graph:
        values = list((arrays(step) if arrays else step.weights).values())
        if values and not step.shared:
            layers[step.name].set_weights(values)
    outputs: Any = {key: tensors[name] for key, name in graph.outputs.items()}
    if graph.structure != "dict":
        outputs = list(outputs.values())
        outputs = outputs[0] if graph.structure == "tensor" else outputs
    return tk.Model(inputs, outputs, name=graph.name), layers


def copy_back(trained: Any, model: Any) -> None:
    """Copy the weights of a twin, or of a quantised model, to a Keras 3 model.

    Args:
        trained: A `Twin`, or what `qat.prepare` returned.
        model: The Keras 3 model it was made from, or one of the same architecture.

    Raises:
        ValueError: If the model lacks a layer or a shape differs; nothing is
            changed then.
    """
    arrays = (
        trained.source_weights()
        if hasattr(trained, "source_weights")
        else _twin_weights(trained)
    )
    layers = {layer.name: layer for layer in _flat(model)}
    planned = []
    for name, weights in arrays.items():
        if name not in layers:
            raise ValueError(
                f"The Keras 3 model {model.name!r} has no layer {name!r}. Pass the "
                "model that the twin was made from."
            )
        for role, array in weights.items():
            variable = getattr(layers[name], role)
            if tuple(variable.shape) != array.shape:
                raise ValueError(
                    f"{role} of layer {name!r} has shape {tuple(variable.shape)} in "
                    f"the Keras 3 model and {array.shape} in the twin. Pass the model "
                    "that the twin was made from."
                )
            planned.append((variable, array))
    for variable, array in planned:
        variable.assign(array)


def _twin_weights(twin: Twin) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for pair in twin.pairs:
        arrays = pair.layer.get_weights()
        found.setdefault(pair.source, {}).update(zip(pair.roles, arrays, strict=True))
    return found


def _flat(model: Any) -> list[Any]:
    """Return the layers of a model, those of models inside it too."""
    import keras

    found = []
    for layer in model.layers:
        found += _flat(layer) if isinstance(layer, keras.Model) else [layer]
    return found
