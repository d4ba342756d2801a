"""Turns each Keras 3 layer or operation into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_lightnets.tools.quantize import _lower_maps
from keras_lightnets.tools.quantize._graph import Graph, Step

CONV_KEYS = ("strides", "padding", "dilation_rate")
POOL_KEYS = ("pool_size", "strides", "padding")


class UnsupportedLayerError(ValueError):
    """A layer has no counterpart; the text holds its path in the graph."""


class Lowering:
    """Collects the steps of one model.

    Attributes:
        graph: What was collected so far.
        tensors: Step name by id of the Keras tensor.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors: dict[int, str] = {}
        self.first_use: dict[tuple[int, str], str] = {}

    def name_of(self, tensor: Any) -> str:
        """Return the step behind a Keras tensor."""
        return self.tensors[id(tensor)]

    def emit(
        self,
        kind: str,
        name: str,
        inputs: Sequence[str],
        config: dict[str, Any] | None = None,
        layer: Any = None,
        roles: Sequence[str] = (),
        shape: tuple[int | None, ...] = (),
    ) -> str:
        """Append a step and return its name.

        Args:
            kind: Kind of step.
            name: Wanted name; made unique.
            inputs: Tensors read.
            config: Configuration of the kind.
            layer: Keras 3 layer that owns the weights.
            roles: Attributes of `layer` that are the weights, in order.
            shape: Shape of the output; the first input's when not given.

        Returns:
            The step's name.
        """
        unique, number = name, 1
        while unique in self.graph.steps or unique in self.graph.inputs:
            unique, number = f"{name}_{number}", number + 1
        weights = {
            role.removeprefix("depthwise_").removeprefix("pointwise_"): _array(
                getattr(layer, role)
            )
            for role in roles
        }
        shared = self.first_use.get((id(layer), kind)) if roles else None
        if roles:
            self.first_use.setdefault((id(layer), kind), unique)
        self.graph.steps[unique] = Step(
            name=unique,
            kind=kind,
            inputs=tuple(inputs),
            config=config or {},
            weights=weights,
            source=layer.name if roles else None,
            roles=tuple(roles),
            shared=shared,
            shape=tuple(shape) or self.shape(inputs[0]),
        )
        return unique

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Return the shape of a tensor, batch first."""
        if name in self.graph.inputs:
            return self.graph.inputs[name]
        return self.graph.steps[name].shape

    def constant(self, kind: str, name: str, x: str, value: Any) -> str:
        """Append "scale" (multiply) or "add_const" by a scalar or per channel."""
        array = np.asarray(value, "float32")
        flat = array.reshape(-1)
        if flat.size not in (1, self.shape(x)[-1]) or (
            array.ndim and array.shape[-1] != flat.size
        ):
            raise UnsupportedLayerError(
                f"The constant of {name!r} must be a scalar or one value per channel. "
                f"Received shape {array.shape} beside a tensor of {self.shape(x)}"
            )
        neutral = 1.0 if kind == "scale" else 0.0
        if np.all(flat == neutral):
            return x
        if np.all(flat == flat[0]):
            flat = flat[:1]
        step = self.emit(kind, name, [x])
        self.graph.steps[step].weights = {"value": flat}
        return step

    def activation(self, x: str, activation: Any, name: str) -> str:
        """Append an activation given as a function or by name."""
        import keras

        kind = activation
        if callable(activation):
            kind = keras.activations.serialize(activation)
        if isinstance(kind, dict):
            kind = kind.get("config", kind)
        rule = ACTIVATIONS.get(kind) if isinstance(kind, str) else None
        if rule is None:
            raise UnsupportedLayerError(
                f"The activation {kind!r} of {name!r} has no counterpart. Supported: "
                f"{', '.join(sorted(ACTIVATIONS))}"
            )
        return rule(self, x, name)


def _array(variable: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable))


def _simple(kind: str, **config: Any) -> Callable[[Lowering, str, str], str]:
    return lambda low, x, name: low.emit(kind, name, [x], dict(config))


def _linear(low: Lowering, x: str, name: str) -> str:
    return x


def hard_sigmoid(low: Lowering, x: str, name: str) -> str:
    """relu6(x + 3) / 6 as three steps; tf_keras's own has another slope."""
    x = low.constant("add_const", f"{name}_shift", x, 3.0)
    x = low.emit("relu", f"{name}_relu6", [x], {"max_value": 6.0})
    return low.constant("scale", name, x, 1.0 / 6.0)


def silu(low: Lowering, x: str, name: str) -> str:
    """X * sigmoid(x) as two steps, so that each has a range."""
    gate = low.emit("act", f"{name}_gate", [x], {"function": "sigmoid"})
    return low.emit("multiply", name, [x, gate])


ACTIVATIONS: dict[str, Callable[[Lowering, str, str], str]] = {
    "linear": _linear,
    "relu": _simple("relu"),
    "relu6": _simple("relu", max_value=6.0),
    "leaky_relu": _simple("relu", negative_slope=0.2),
    "hard_silu": _simple("act", function="hard_swish"),
    "hard_swish": _simple("act", function="hard_swish"),
    "hard_sigmoid": hard_sigmoid,
    "silu": silu,
    "swish": silu,
    **{
        name: _simple("act", function=name)
        for name in ("sigmoid", "tanh", "softmax", "gelu", "elu", "softplus", "selu")
    },
}


def _config(layer: Any, keys: Sequence[str]) -> dict[str, Any]:
    config = layer.get_config()
    form = config.get("data_format", "channels_last")
    # Padding and cropping name their axes by it, and may take the channels.
    if form not in (None, "channels_last") and "data_format" not in keys:
        raise UnsupportedLayerError(
            f"Layer {layer.name!r} has data_format={form!r}; only 'channels_last' "
            "converts. Build the model with channels_last."
        )
    return {key: config[key] for key in keys}


def conv(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Conv2D, DepthwiseConv2D and Conv2DTranspose, their activation apart."""
    kinds = {"DepthwiseConv2D": "depthwise", "Conv2DTranspose": "conv_transpose"}
    kind = kinds.get(type(layer).__name__, "conv")
    keys = [*CONV_KEYS, "kernel_size", "use_bias"]
    keys += {"conv": ["filters", "groups"], "depthwise": ["depth_multiplier"]}.get(
        kind, ["filters", "output_padding"]
    )
    config = _config(layer, keys)
    roles = ("kernel", "bias") if config["use_bias"] else ("kernel",)
    x = low.emit(kind, layer.name, [args[0]], config, layer, roles, shape)
    return low.activation(x, layer.activation, f"{layer.name}_act")


def separable(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """SeparableConv2D as depthwise and pointwise."""
    config = _config(layer, [*CONV_KEYS, "kernel_size", "depth_multiplier"])
    part = {**config, "use_bias": False}
    middle = (*shape[:3], args_channels(low, args) * layer.depth_multiplier)
    x = low.emit(
        "depthwise", f"{layer.name}_dw", [args[0]], part, layer,
        ("depthwise_kernel",), middle,
    )  # fmt: skip
    roles = ("pointwise_kernel", "bias") if layer.use_bias else ("pointwise_kernel",)
    point = {
        "filters": layer.filters,
        "kernel_size": (1, 1),
        "strides": (1, 1),
        "padding": "valid",
        "dilation_rate": (1, 1),
        "groups": 1,
        "use_bias": layer.use_bias,
    }
    x = low.emit("conv", layer.name, [x], point, layer, roles, shape)
    return low.activation(x, layer.activation, f"{layer.name}_act")


def args_channels(low: Lowering, args: Any) -> int:
    """Return the channels of the first argument."""
    return int(low.shape(args[0])[-1] or 0)


def dense(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Dense, its activation apart."""
    config = _config(layer, ["units", "use_bias"])
    roles = ("kernel", "bias") if layer.use_bias else ("kernel",)
    x = low.emit("dense", layer.name, [args[0]], config, layer, roles, shape)
    return low.activation(x, layer.activation, f"{layer.name}_act")


def batch_norm(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """BatchNormalization over the last axis."""
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    if axis not in (-1, len(shape) - 1):
        raise UnsupportedLayerError(
            f"Layer {layer.name!r} normalises axis {axis}; only the last one converts."
        )
    config = {k: getattr(layer, k) for k in ("epsilon", "momentum", "scale", "center")}
    roles = [("gamma", layer.scale), ("beta", layer.center)]
    names = [role for role, there in roles if there]
    names += ["moving_mean", "moving_variance"]
    return low.emit("batch_norm", layer.name, [args[0]], config, layer, names, shape)


def rescaling(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Rescaling as scale, then offset: two steps, so that each has a range."""
    x = low.constant("scale", f"{layer.name}_scale", args[0], layer.scale)
    return low.constant("add_const", layer.name, x, layer.offset)


def normalization(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Normalization as scale, then offset."""
    mean, std = (
        np.asarray(v, "float64").reshape(-1)
        for v in (_array(layer.mean), np.sqrt(_array(layer.variance)))
    )
    std = np.maximum(std, 1e-7)
    scale, offset = (std, mean) if layer.invert else (1.0 / std, -mean / std)
    x = low.constant("scale", f"{layer.name}_scale", args[0], scale)
    return low.constant("add_const", layer.name, x, offset)


def merge(kind: str) -> Callable[..., str]:
    """Return the lowering of an n-ary layer as a chain of two-input steps."""

    def lower(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
        tensors = args[0] if isinstance(args[0], list | tuple) else args
        x = tensors[0]
        for i, other in enumerate(tensors[1:], 1):
            last = i == len(tensors) - 1
            name = layer.name if last else f"{layer.name}_part{i}"
            x = low.emit(kind, name, [x, other], shape=shape)
        return x

    return lower


def average(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Average as sum and scale."""
    tensors = args[0] if isinstance(args[0], list | tuple) else args
    x = tensors[0]
    for i, other in enumerate(tensors[1:], 1):
        x = low.emit("add", f"{layer.name}_part{i}", [x, other], shape=shape)
    return low.constant("scale", layer.name, x, 1.0 / len(tensors))


def weighted_sum(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """WeightedFusion as scales and additions, its shares fixed from here on."""
    shares = _array(layer.shares())
    scaled = [
        low.constant("scale", f"{layer.name}_share{i}", x, share)
        for i, (x, share) in enumerate(zip(args[0], shares, strict=True), 1)
        if share > 0
    ]
    if not scaled:
        raise UnsupportedLayerError(
            f"All shares of {layer.name!r} are 0. Train the network further."
        )
    return merge("add")(low, layer, [scaled], shape)


def concat(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Concatenate along any axis but the batch."""
    tensors = args[0] if isinstance(args[0], list | tuple) else args
    axis = layer.axis % len(shape)
    return low.emit("concat", layer.name, tensors, {"axis": axis}, shape=shape)


def activation_layer(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Activation."""
    return low.activation(args[0], layer.activation, layer.name)


def relu(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """ReLU and LeakyReLU."""
    if getattr(layer, "threshold", 0.0):
        raise UnsupportedLayerError(
            f"Layer {layer.name!r} has threshold={layer.threshold}; only 0 converts."
        )
    config = {"negative_slope": float(layer.negative_slope or 0.0)}
    if getattr(layer, "max_value", None) is not None:
        config["max_value"] = float(layer.max_value)
    return low.emit("relu", layer.name, [args[0]], config)


def softmax(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Softmax over the last axis, or over two rows as sigmoids of their difference."""
    if layer.axis == 1 and len(shape) == 3 and shape[1] == 2:
        return _of_two(low, layer.name, args[0], shape)
    if layer.axis not in (-1, len(shape) - 1):
        raise UnsupportedLayerError(
            f"Layer {layer.name!r} works on axis {layer.axis}; only the last converts."
        )
    return low.activation(args[0], "softmax", layer.name)


def _of_two(low: Lowering, name: str, x: str, shape: Any) -> str:
    row = (shape[0], 1, shape[2])
    rows = [_row(low, f"{name}_row{i}", x, i, row) for i in (0, 1)]
    parts = []
    for i in (0, 1):
        pair = [rows[i], rows[1 - i]]
        apart = low.emit("subtract", f"{name}_apart{i}", pair, shape=row)
        config = {"function": "sigmoid"}
        parts.append(low.emit("act", f"{name}_part{i}", [apart], config, shape=row))
    return low.emit("concat", name, parts, {"axis": 1}, shape=shape)


def _row(low: Lowering, name: str, x: str, start: int, shape: Any) -> str:
    config = {"begin": [start, 0], "size": [int(shape[1]), -1]}
    return low.emit("slice", name, [x], config, shape=shape)


def crop_rows(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Cropping1D."""
    return _row(low, layer.name, args[0], layer.cropping[0], shape)


def prelu(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """PReLU with one slope per channel."""
    config = {"shared_axes": list(layer.shared_axes or [])}
    return low.emit("prelu", layer.name, [args[0]], config, layer, ("alpha",), shape)


def window(kind: str, keys: Sequence[str]) -> Callable[..., str]:
    """Return the lowering of a layer that only has options to pass on."""

    def lower(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
        return low.emit(
            kind, layer.name, [args[0]], _config(layer, keys), shape=shape
        )  # fmt: skip

    return lower


def reshape(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Flatten and Reshape, to the shape that is known from building."""
    target = tuple(-1 if size is None else int(size) for size in shape[1:])
    config = {"target_shape": target}
    return low.emit("reshape", layer.name, [args[0]], config, shape=shape)


def passthrough(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """Layers that do nothing outside training."""
    return str(args[0])


def resize(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """UpSampling2D, Resizing and ops.image.resize as one resize."""
    method = layer.interpolation
    if method not in ("nearest", "bilinear") or getattr(layer, "antialias", False):
        raise UnsupportedLayerError(
            f"{layer.name!r} resizes with {method!r}"
            f"{' and antialias' if getattr(layer, 'antialias', False) else ''}; only "
            "plain 'nearest' and 'bilinear' convert."
        )
    config: dict[str, Any] = {"size": tuple(shape[1:3]), "method": method}
    if None in config["size"]:
        raise UnsupportedLayerError(
            f"{layer.name!r} resizes to a size that is not known. Build the model with "
            "a fixed input_shape."
        )
    return low.emit("resize", layer.name, [args[0]], config, shape=shape)


def select(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """SelectChannels, its indices fixed from here on."""
    index = layer.indices if layer.index is None else _array(layer.index)
    config = {"indices": [int(i) for i in index]}
    return low.emit("gather", layer.name, [args[0]], config, shape=shape)


def adaptive_average(low: Lowering, layer: Any, args: Any, shape: Any) -> str:
    """AdaptiveAveragePooling2D."""
    _config(layer, ())
    return _lower_maps.adaptive_average(low, layer, args, shape)


LAYERS: dict[str, Callable[..., str]] = {
    "Conv2D": conv,
    "DepthwiseConv2D": conv,
    "Conv2DTranspose": conv,
    "SeparableConv2D": separable,
    "Dense": dense,
    "BatchNormalization": batch_norm,
    "Rescaling": rescaling,
    "Normalization": normalization,
    "Add": merge("add"),
    "Multiply": merge("multiply"),
    "Subtract": merge("subtract"),
    "Maximum": merge("maximum"),
    "Minimum": merge("minimum"),
    "Average": average,
    "WeightedFusion": weighted_sum,
    "Concatenate": concat,
    "Activation": activation_layer,
    "ReLU": relu,
    "LeakyReLU": relu,
    "PReLU": prelu,
    "Softmax": softmax,
    "MaxPooling2D": window("max_pool", POOL_KEYS),
    "AveragePooling2D": window("avg_pool", POOL_KEYS),
    "GlobalAveragePooling2D": window("mean", ("keepdims",)),
    "GlobalMaxPooling2D": window("global_max", ("keepdims",)),
    "ZeroPadding2D": window("zero_pad", ("padding", "data_format")),
    "Cropping2D": window("crop", ("cropping", "data_format")),
    "Cropping1D": crop_rows,
    "Permute": window("permute", ("dims",)),
    "Resample2D": _lower_maps.resample,
    "AdaptiveAveragePooling2D": adaptive_average,
    "BlurPool": _lower_maps.blur,
    "SampleConv2D": _lower_maps.sample_conv,
    "Reshape": reshape,
    "SelectChannels": select,
    "Flatten": reshape,
    "UpSampling2D": resize,
    "Resizing": resize,
    **{
        name: passthrough
        for name in (
            "Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise",
            "AlphaDropout", "Identity",
        )
    },
}  # fmt: skip
