"""Reads the node table of functional Keras 3 models, which has no public name."""

from __future__ import annotations

from typing import Any


def functional(model: Any) -> Any:
    """Return a functional model; a sequential one is turned into one.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        The functional model.

    Raises:
        ValueError: If it is neither, or has no shapes yet.
    """
    import keras

    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                f"The sequential model {model.name!r} has no shapes yet. Call "
                "model.build(input_shape) first."
            )
        return keras.Model(model.inputs, model.outputs[0], name=model.name)
    if not isinstance(model, keras.Model) or not hasattr(model, "_nodes_by_depth"):
        raise ValueError(
            "Only functional Keras 3 models are read: keras.Model(inputs, outputs). "
            f"Received: {type(model).__module__}.{type(model).__name__}"
        )
    return model


def history(tensor: Any) -> Any:
    """Return the operation that made a Keras tensor."""
    return tensor._keras_history.operation


def nodes(model: Any) -> list[Any]:
    """Return the nodes of a functional model, inputs first."""
    depths = model._nodes_by_depth
    return [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
