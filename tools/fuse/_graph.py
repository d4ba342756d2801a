"""Reads a Keras 3 model into steps that fuse, and makes a model of them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lightnets.tools._functional import functional, history, nodes
from keras_lightnets.tools.fuse import _operator
from keras_lightnets.tools.fuse._operator import Operator, Size
from keras_lightnets.tools.quantize._graph import Graph, Step
from keras_lightnets.tools.quantize._passes import Norm


@dataclasses.dataclass
class Linear:
    """What a step of kind "linear" computes, and what it stands for.

    Attributes:
        operator: The convolution.
        main: Keras layer that gives the name, dtype and trainability.
        layers: Names of the layers it stands for, in order.
        branches: Branches that were added, 1 for none.
        kernels: Values of these layers' kernels: multiplications per output pixel.
        scales: Channels that their normalisations scale.
        activation: Function behind the bias, or None.
    """

    operator: Operator
    main: Any
    layers: tuple[str, ...]
    branches: int = 1
    kernels: int = 0
    scales: int = 0
    activation: Any = None

    @property
    def weighted(self) -> bool:
        """Whether it holds weights, unlike padding and pooling."""
        return self.kernels + self.scales > 0

    @property
    def limit(self) -> int:
        """Multiplications that one layer may need in its place.

        Normalisations count only among themselves: they are free behind a kernel.
        """
        return self.kernels or self.scales


def read(model: Any) -> Graph:
    """Turn a functional model into steps.

    A step is of kind "linear" (config: "linear"), "add", "node" (any other call) or
    "output" (one of several outputs of a call; config: "index"). Each keeps its
    node of the model in config["node"]. Rewrites may add steps of kind "layer"
    (config: "layer", a new one).

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        The graph; outputs are numbered in the order of the flat output structure.

    Raises:
        ValueError: If the model is not functional.
    """
    import keras

    model = functional(model)
    inputs = {history(t).name: tuple(t.shape) for t in model.inputs}
    names = {id(t): history(t).name for t in model.inputs}
    graph = Graph(model.name, inputs, {}, {}, "tensor")
    first: dict[int, str] = {}
    for node in nodes(model):
        if isinstance(node.operation, keras.layers.InputLayer):
            continue
        step = _step(node, [names[id(t)] for t in node.input_tensors], graph)
        step.shared = first.get(id(node.operation))
        first.setdefault(id(node.operation), step.name)
        graph.steps[step.name] = step
        names[id(node.outputs[0])] = step.name
        for i, tensor in enumerate(node.outputs[1:], 1):
            part = Step(f"{step.name}:{i}", "output", (step.name,), {"index": i})
            graph.steps[part.name], names[id(tensor)] = part, part.name
    flat = keras.tree.flatten(model.output)
    graph.outputs = {str(i): names[id(tensor)] for i, tensor in enumerate(flat)}
    return graph


def shape_of(graph: Graph, name: str) -> tuple[int | None, ...]:
    """Return the shape of a tensor, batch first."""
    found = graph.inputs.get(name)
    return graph.steps[name].shape if found is None else found


def image_size(shape: tuple[int | None, ...]) -> Size:
    """Return height and width; 1 and 1 of a vector."""
    return (shape[1], shape[2]) if len(shape) == 4 else (1, 1)


def _step(node: Any, inputs: list[str], graph: Graph) -> Step:
    operation = node.operation
    name, number = operation.name, 1
    while name in graph.steps or name in graph.inputs:
        name, number = f"{operation.name}:call{number}", number + 1
    kind, config = "node", {"node": node}
    shape = tuple(node.outputs[0].shape)
    source = tuple(node.input_tensors[0].shape) if node.input_tensors else ()
    if _is_sum(node, shape):
        kind = "add"
    elif len(inputs) == 1 and node.arguments.kwargs.get("training") is not True:
        linear = as_linear(operation, source)
        if linear is not None:
            kind, config["linear"] = "linear", linear
    return Step(name, kind, tuple(inputs), config, shape=shape)


def _is_sum(node: Any, shape: tuple[int | None, ...]) -> bool:
    """Whether a node adds tensors of one shape: the layer, or `a + b`."""
    tensors = node.input_tensors
    alike = all(tuple(t.shape) == shape for t in tensors)
    return type(node.operation).__name__ == "Add" and len(tensors) > 1 and alike


def as_linear(layer: Any, shape: tuple[int | None, ...]) -> Linear | None:
    """Return what a layer computes as a convolution, or None.

    Args:
        layer: A Keras layer or operation.
        shape: Shape of its input, batch first.

    Returns:
        The linear step; None for what is no linear layer on channels last.
    """
    form = getattr(layer, "data_format", "channels_last")
    rules = _RULES if form == "channels_last" else _CHANNEL_RULES
    rule = rules.get(type(layer).__name__)
    known = len(shape) in (2, 4) and shape[-1] is not None
    integers = getattr(layer, "quantization_mode", None)
    if rule is None or not known or integers:
        return None
    operator = rule(layer, shape)
    if operator is None:
        return None
    learned = hasattr(layer, "kernel")
    kernels = int(operator.kernel.size) if learned else 0
    scales = 0 if learned or not layer.weights else int(operator.kernel.size)
    given = getattr(layer, "activation", None)
    activation = None if given is None or _name(given) == "linear" else given
    return Linear(operator, layer, (layer.name,), 1, kernels, scales, activation)


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", ""))


def _array(variable: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable), "float64")


def _padding(layer: Any, shape: Any, kernel: Any) -> Any:
    if layer.padding == "valid":
        return _operator.NO_PADS
    dilation = getattr(layer, "dilation_rate", (1, 1))
    return _operator.same_pads(
        image_size(shape), kernel, tuple(layer.strides), tuple(dilation)
    )


def _conv(layer: Any, shape: Any) -> Operator | None:
    kernel = _array(layer.kernel)
    groups = getattr(layer, "groups", 1)
    if type(layer).__name__ == "DepthwiseConv2D":
        groups = int(kernel.shape[2])
        kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    bias = _array(layer.bias) if layer.use_bias else np.zeros(kernel.shape[3])
    return Operator(
        kernel,
        bias,
        groups,
        tuple(layer.strides),
        tuple(layer.dilation_rate),
        _padding(layer, shape, kernel.shape[:2]),
    )


def _dense(layer: Any, shape: Any) -> Operator | None:
    if len(shape) != 2:
        return None
    kernel = _array(layer.kernel)[None, None]
    bias = _array(layer.bias) if layer.use_bias else np.zeros(kernel.shape[3])
    return Operator(kernel, bias)


def _norm(layer: Any, shape: Any) -> Operator | None:
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    if axis not in (-1, len(shape) - 1):
        return None
    roles = [("gamma", layer.scale), ("beta", layer.center)]
    names = [role for role, there in roles if there]
    names += ["moving_mean", "moving_variance"]
    weights = {role: _array(getattr(layer, role)) for role in names}
    norm = Norm(layer.name, layer.epsilon, weights)
    return _operator.affine(norm.gain(), norm.shift())


def _zeros(layer: Any, shape: Any) -> Operator | None:
    (top, bottom), (left, right) = layer.padding
    return _operator.identity(int(shape[-1]), ((top, bottom), (left, right)))


def _cut(layer: Any, shape: Any) -> Operator | None:
    """Return cropping that, read as channels first, cuts channels alone."""
    rows, (first, last) = layer.cropping
    channels = int(shape[-1])
    if rows != (0, 0):
        return None
    return _operator.choice(np.eye(channels)[:, first : channels - last])


def _filled_up(layer: Any, shape: Any) -> Operator | None:
    """Return padding that, read as channels first, adds channels of zeros alone."""
    rows, channels = layer.padding
    if rows != (0, 0):
        return None
    return _operator.choice(np.pad(np.eye(int(shape[-1])), ((0, 0), channels)))


def _mean(layer: Any, shape: Any) -> Operator | None:
    """Return average pooling where no window reaches over the border."""
    size = tuple(layer.pool_size)
    if _padding(layer, shape, size) != _operator.NO_PADS:
        return None
    return _operator.mean(size, tuple(layer.strides), int(shape[-1]))


def _thinned(layer: Any, shape: Any) -> Operator | None:
    """Return max pooling of windows of one cell: every so-manieth one is taken."""
    alone = tuple(layer.pool_size) == (1, 1)
    strides, channels = tuple(layer.strides), int(shape[-1])
    return _operator.mean((1, 1), strides, channels) if alone else None


_RULES: dict[str, Callable[[Any, Any], Operator | None]] = {
    "Conv2D": _conv,
    "DepthwiseConv2D": _conv,
    "Dense": _dense,
    "BatchNormalization": _norm,
    "ZeroPadding2D": _zeros,
    "AveragePooling2D": _mean,
    "MaxPooling2D": _thinned,
}
# Plain layers that cut and pad channels, as keras_lightnets.layers uses them.
_CHANNEL_RULES: dict[str, Callable[[Any, Any], Operator | None]] = {
    "Cropping2D": _cut,
    "ZeroPadding2D": _filled_up,
}


def rebuild(graph: Graph, model: Any) -> Any:
    """Make a Keras model of a graph that was read from a model.

    Args:
        graph: The steps, some of them rewritten.
        model: What it was read from; its layers are copied.

    Returns:
        A functional `keras.Model` with inputs and outputs of the same structure.
    """
    import keras

    model = functional(model)
    copies: dict[int, Any] = {}
    tensors: dict[str, Any] = {}
    for tensor in model.inputs:
        layer = history(tensor)
        tensors[layer.name] = type(layer).from_config(layer.get_config()).output
    several: dict[str, Any] = {}
    for step in graph:
        values = [tensors[name] for name in step.inputs]
        if step.kind == "output":
            tensors[step.name] = several[step.inputs[0]][step.config["index"]]
        elif "node" in step.config:
            made = _call(step.config["node"], values, copies)
            several[step.name] = made
            tensors[step.name] = keras.tree.flatten(made)[0]
        elif step.kind == "add":
            tensors[step.name] = keras.layers.Add(name=step.name, **step.config)(values)
        elif step.kind == "layer":
            layer = step.config["layer"]
            tensors[step.name] = layer(values if len(values) > 1 else values[0])
            if step.weights:
                layer.set_weights(list(step.weights.values()))
        else:
            tensors[step.name] = _emit(step, values[0], graph)
    inputs = keras.tree.map_structure(lambda t: tensors[history(t).name], model.input)
    flat = [tensors[name] for name in graph.outputs.values()]
    outputs = keras.tree.pack_sequence_as(model.output, flat)
    return keras.Model(inputs, outputs, name=model.name)


def _call(node: Any, values: list[Any], copies: dict[int, Any]) -> Any:
    """Repeat a call on other tensors, with a copy of its layer."""
    import keras

    operation = node.operation
    new = copies.get(id(operation))
    if new is None:
        new = operation
        if isinstance(operation, keras.Layer):
            new = type(operation).from_config(operation.get_config())
        copies[id(operation)] = new
    given = {id(t): v for t, v in zip(node.input_tensors, values, strict=True)}
    args, kwargs = keras.tree.map_structure(
        lambda value: given.get(id(value), value),
        (node.arguments.args, node.arguments.kwargs),
    )
    made = new(*args, **kwargs)
    if isinstance(operation, keras.Layer) and operation.weights:
        new.set_weights(operation.get_weights())
    return made


def _emit(step: Step, x: Any, graph: Graph) -> Any:
    """Apply a fused operator as one layer, behind explicit padding where needed."""
    from keras import layers

    linear: Linear = step.config["linear"]
    operator, main = linear.operator, linear.main
    options = {
        "use_bias": bool(np.any(operator.bias)),
        "activation": linear.activation,
        "dtype": main.dtype_policy,
        "trainable": main.trainable,
        "name": step.name,
    }
    if len(step.shape) == 2:
        layer = _kind(main, layers.Dense)(operator.outputs, **options)
        return _filled(layer, x, operator.kernel[0, 0], operator.bias)
    x, options["padding"] = _pad(step, x, graph)
    options["strides"], options["dilation_rate"] = operator.strides, operator.dilation
    kernel = operator.kernel
    if operator.groups == operator.inputs > 1:
        many = operator.outputs // operator.inputs
        layer = _kind(main, layers.DepthwiseConv2D)(
            operator.size, depth_multiplier=many, **options
        )
        kernel = kernel.reshape(*operator.size, operator.inputs, many)
    else:
        options["groups"] = operator.groups
        kind = _kind(main, layers.Conv2D)
        layer = kind(operator.outputs, operator.size, **options)
    return _filled(layer, x, kernel, operator.bias)


def _kind(main: Any, plain: Any) -> Any:
    """Return the layer's own class where that is a kind of the plain one."""
    return type(main) if isinstance(main, plain) else plain


def _pad(step: Step, x: Any, graph: Graph) -> tuple[Any, str]:
    from keras import layers

    linear: Linear = step.config["linear"]
    operator, dtype = linear.operator, linear.main.dtype_policy
    same = _operator.same_pads(
        image_size(tuple(x.shape)), operator.size, operator.strides, operator.dilation
    )
    if operator.pads is None or same == operator.pads:
        return x, "same"
    if operator.pads == _operator.NO_PADS:
        return x, "valid"
    name = f"{step.name.removesuffix('_conv')}_pad"
    while name in graph.steps:
        name = f"fused_{name}"
    return layers.ZeroPadding2D(operator.pads, name=name, dtype=dtype)(x), "valid"


def _filled(layer: Any, x: Any, kernel: np.ndarray, bias: np.ndarray) -> Any:
    y = layer(x)
    values = [kernel, bias] if layer.use_bias else [kernel]
    layer.set_weights(values)
    return y
