"""What a network costs: parameters, multiply-adds and activation bytes per layer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Cost of one layer, or of a whole network.

    Attributes:
        name: Layer name.
        kind: Layer class.
        shape: Output shape without the batch axis.
        params: Trainable weights (moving statistics are not counted).
        madds: Multiply-adds of convolutions and dense layers, one image.
        activation_bytes: Bytes of the output as float32, one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    madds: int
    activation_bytes: int


def costs(model: Any, input_shape: Sequence[int] | None = None) -> list[Cost]:
    """Return the cost of every layer, in the order of the graph.

    Multiply-adds count convolutions and dense layers, as papers do; additions,
    normalisation, pooling and activations are not counted. A layer that is used
    twice has two rows; its parameters stand in the first.

    Args:
        model: Functional `keras.Model`.
        input_shape: Height, width and channels to count at, of a model of one input
            that takes any size; None: those that the model was built with.

    Returns:
        One row per layer call.

    Raises:
        ValueError: If the input size is not known or is another one.

    Example:
        >>> rows = costs(keras_lightnets.GhostNet(weights=None))  # doctest: +SKIP
        >>> sum(row.madds for row in rows)  # doctest: +SKIP
        141152880
    """
    seen: set[int] = set()
    rows = []
    for layer, inputs, output in _calls(model, _inputs(model, input_shape)):
        shape = tuple(output.shape[1:])
        if None in shape:
            raise ValueError(
                f"The output of layer {layer.name!r} has the unknown size {shape}, so "
                "its cost is not known. Give an input_shape such as (224, 224, 3)."
            )
        weights = [] if id(layer) in seen else layer.trainable_weights
        frozen = [] if id(layer) in seen else _frozen_weights(layer)
        seen.add(id(layer))
        rows.append(
            Cost(
                name=layer.name,
                kind=type(layer).__name__,
                shape=shape,
                params=sum(math.prod(w.shape) for w in [*weights, *frozen]),
                madds=_madds(layer, inputs, shape),
                activation_bytes=4 * math.prod(shape),
            )
        )
    return rows


def total(model: Any, input_shape: Sequence[int] | None = None) -> Cost:
    """Return the sums over all layers; activation bytes are the largest output's.

    Args:
        model: Functional `keras.Model`.
        input_shape: As in `costs`.

    Returns:
        One row named as the model.

    Raises:
        ValueError: If the input size is not known or is another one.
    """
    rows = costs(model, input_shape)
    return Cost(
        name=model.name,
        kind=type(model).__name__,
        shape=rows[-1].shape,
        params=sum(row.params for row in rows),
        madds=sum(row.madds for row in rows),
        activation_bytes=max(row.activation_bytes for row in rows),
    )


def _inputs(model: Any, input_shape: Sequence[int] | None) -> list[Any]:
    """Return the model's input tensors, of the given shape if there is one."""
    import keras

    if input_shape is None:
        return list(model.inputs)
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    wanted = tuple(input_shape)
    if len(shapes) != 1 or None in wanted or not _fits(wanted, shapes[0]):
        raise ValueError(
            "input_shape must be the known sizes of the model's one input, which takes "
            f"{' and '.join(map(str, shapes))}. Received: {wanted}. Build the model "
            "with the input_shape to count another size."
        )
    return [keras.KerasTensor((None, *wanted), model.inputs[0].dtype)]


def _fits(wanted: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    sizes = zip(wanted, shape, strict=False)
    return len(wanted) == len(shape) and all(n in (a, None) for a, n in sizes)


def _calls(model: Any, inputs: Sequence[Any]) -> Iterator[tuple[Any, list[Any], Any]]:
    """Yield (layer, input tensors, output tensor) of every call, inputs first.

    Keras has no public name for the calls that belong to a model (a layer may be
    called outside it too), so this is the one place that reads the node table. The
    tensors are those that the given inputs give: the graph's own if these are its.
    """
    import keras

    known = {id(own): given for own, given in zip(model.inputs, inputs, strict=True)}
    same = all(own is given for own, given in zip(model.inputs, inputs, strict=True))
    nodes = model._nodes_by_depth
    for depth in sorted(nodes, reverse=True):
        for node in nodes[depth]:
            layer = node.operation
            if isinstance(layer, keras.layers.InputLayer):
                continue
            outputs = node.outputs
            if not same:
                args, kwargs = node.arguments.fill_in(known)
                outputs = keras.tree.flatten(layer.compute_output_spec(*args, **kwargs))
            known.update(zip(map(id, node.outputs), outputs, strict=True))
            taken = [known[id(tensor)] for tensor in node.input_tensors]
            if isinstance(layer, keras.Model):
                yield from _calls(layer, taken)
            elif isinstance(layer, keras.Layer):
                for output in outputs:
                    yield layer, taken, output


def _frozen_weights(layer: Any) -> list[Any]:
    """Return weights that training would change were the layer not frozen."""
    if layer.trainable:
        return []
    return [w for w in layer.weights if not w.path.split("/")[-1].startswith("moving_")]


def _madds(layer: Any, inputs: list[Any], shape: tuple[int, ...]) -> int:
    from keras import layers

    if isinstance(layer, layers.Conv2DTranspose | layers.Conv1DTranspose):
        return math.prod(inputs[0].shape[1:-1]) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.DepthwiseConv2D | layers.DepthwiseConv1D):
        return math.prod(shape[:-1]) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.SeparableConv2D | layers.SeparableConv1D):
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        return math.prod(shape[:-1]) * sum(math.prod(k.shape) for k in kernels)
    if isinstance(layer, layers.Conv1D | layers.Conv2D | layers.Conv3D):
        # A grouped kernel already holds input channels / groups.
        return math.prod(shape[:-1]) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.Dense):
        return math.prod(shape[:-1]) * math.prod(layer.kernel.shape)
    # A layer of ours whose kernel is no weight tells its own.
    own = getattr(layer, "madds", None)
    return 0 if own is None else own(shape, inputs[0].shape[-1])
