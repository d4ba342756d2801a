"""What the Model Optimization toolkit needs from us: layers, quantisers, configs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lightnets import layers as keras_layers
from keras_lightnets._errors import require
from keras_lightnets.tools.quantize import _passes
from keras_lightnets.tools.quantize._graph import Step
from keras_lightnets.tools.quantize.rules import CALIBRATED, Rule

KERNEL_KINDS = _passes.FOLDABLE

# Weight of the newest batch in a calibrated range never falls below this.
MIN_SHARE = 0.01
# Keeps the scale of an all-zero channel positive.
SMALLEST_RANGE = 1e-8


@functools.cache
def toolkit() -> Any:
    """Import the toolkit; what it does to TensorFlow's own keras is undone here."""
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        return require("tensorflow_model_optimization", "qat").quantization.keras
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before


def _convolve(
    tf: Any, kind: str, x: Any, kernel: Any, options: Any, final: bool
) -> Any:
    if kind == "dense":
        return tf.matmul(x, kernel)
    strides, padding = list(options["strides"]), options["padding"].upper()
    rates = list(options["dilation_rate"])
    if kind == "conv":
        if final:
            return tf.nn.conv2d(x, kernel, strides, padding, dilations=rates)
        return keras_layers.convolve_groups(
            x, kernel, options["groups"], strides, padding, rates
        )
    if kind == "depthwise":
        return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding, None, rates)
    shape = (tf.shape(x)[0], *options["output_shape"])
    if x.shape[0] is not None:
        shape = (x.shape[0], *options["output_shape"])
    return tf.nn.conv2d_transpose(x, kernel, shape, strides, padding, "NHWC", rates)


def fake_quantise_kernel(tf: Any, kernel: Any, axis: str | int, top: Any) -> Any:
    """Round a kernel to 255 levels of [-top, top], per tensor or per channel."""
    fake = tf.quantization
    if axis == "tensor":
        return fake.fake_quant_with_min_max_vars(kernel, -top, top, 8, True)
    per_channel = fake.fake_quant_with_min_max_vars_per_channel
    if axis == -1:
        return per_channel(kernel, -top, top, 8, True)
    swapped = tf.transpose(kernel, (0, 1, 3, 2))
    return tf.transpose(per_channel(swapped, -top, top, 8, True), (0, 1, 3, 2))


def kernel_top(tf: Any, kernel: Any, axis: str | int) -> Any:
    """Return the largest absolute value of a kernel, per tensor or per channel."""
    keep = {"tensor": None, -1: len(kernel.shape) - 1, -2: len(kernel.shape) - 2}[axis]
    axes = [i for i in range(len(kernel.shape)) if i != keep]
    return tf.maximum(tf.reduce_max(tf.abs(kernel), axes), SMALLEST_RANGE)


@functools.cache
def custom() -> dict[str, Any]:
    """Define the layers, quantisers and configs on the toolkit's base classes.

    Returns:
        Classes by name, for `custom_object_scope`.
    """
    quantizers = toolkit().quantizers
    layers = (_folded_layer(), _identity_layer())
    made = (*layers, *_quantisers(quantizers.Quantizer), _config())
    return {c.__name__: c for c in made}


def _identity_layer() -> Any:
    base = require("tf_keras", "qat").layers.Layer

    class Identity(base):  # type: ignore[misc, valid-type]
        """Carries the range of an input."""

        def call(self, inputs: Any) -> Any:
            return inputs

    return Identity


def fold_kernel(tf: Any, layer: Any) -> Any:
    """Return a layer's kernel with input and batch normalisation multiplied in."""
    kernel = layer.kernel
    if layer.options.get("input_gain"):
        kernel = kernel * tf.constant(layer.options["input_gain"])[:, None]
    if layer.options["norm"]:
        shape = _passes.on_outputs(layer.kind, kernel.shape)
        kernel = kernel * tf.reshape(_gain(tf, layer), shape)
    return kernel


def fold_bias(tf: Any, layer: Any) -> Any:
    """Return a layer's bias with input and batch normalisation added in, or None."""
    bias = getattr(layer, "bias", None)
    if layer.options.get("input_offset"):
        columns = tf.constant(layer.options["input_offset"])[:, None]
        moved = tf.reduce_sum(layer.kernel * columns, (0, 1, 2))
        bias = moved if bias is None else bias + moved
    if layer.options["norm"]:
        mean = layer.moving_mean
        centred = -mean if bias is None else bias - mean
        bias = getattr(layer, "beta", 0.0) + centred * _gain(tf, layer)
    if layer.options.get("shift"):
        shift = tf.constant(layer.options["shift"])
        if bias is None:
            shape = (layer.options["output_shape"][-1],)
            return tf.broadcast_to(shift, shape)
        return bias + shift
    return bias


def _gain(tf: Any, layer: Any) -> Any:
    scale = tf.math.rsqrt(layer.moving_variance + layer.options["epsilon"])
    return getattr(layer, "gamma", 1.0) * scale


def _add_weights(layer: Any) -> None:
    options = layer.options
    constant = options.get("constant", False)
    fixed = ["moving_mean", "moving_variance", *(["bias"] if options["norm"] else [])]
    for role, size in options["weights"].items():
        trainable = not constant and role not in fixed
        variable = layer.add_weight(role, tuple(size), trainable=trainable)
        setattr(layer, role, variable)


def _folded_call(tf: Any, layer: Any, inputs: Any) -> Any:
    if layer.constants is not None:
        kernel, top, bias = layer.constants
        kernel, top = tf.constant(kernel), tf.constant(top)
        kernel = fake_quantise_kernel(tf, kernel, layer.axis, top)
    elif layer.quantised is not None:
        kernel, bias = layer.quantised, fold_bias(tf, layer)
    else:
        # While the model is built without wrappers, only the output's shape counts.
        kernel, bias = layer.kernel, None
    final = layer.constants is not None
    y = _convolve(tf, layer.kind, inputs, kernel, layer.options, final)
    return y if bias is None else tf.nn.bias_add(y, bias)


def _folded_layer() -> Any:
    import tensorflow as tf

    base = require("tf_keras", "qat").layers.Layer

    class Folded(base):  # type: ignore[misc, valid-type]
        """A convolution or dense layer with its batch normalisation inside.

        The statistics are frozen; gamma and beta train on. `quantised` is the
        folded kernel after rounding, set by the wrapper before each call;
        `constants` is (kernel, top, bias) while the model is being converted.
        """

        def __init__(self, kind: str, options: Any, axis: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.kind, self.options, self.axis = kind, options, axis
            self.quantised: Any = None
            self.constants: Any = None

        def build(self, shape: Any) -> None:
            _add_weights(self)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return _folded_call(tf, self, inputs)

        def compute_output_shape(self, shape: Any) -> Any:
            return (shape[0], *self.options["output_shape"])

        def get_config(self) -> dict[str, Any]:
            own = {"kind": self.kind, "options": self.options, "axis": self.axis}
            return {**super().get_config(), **own}

    return Folded


def freeze(layer: Any) -> None:
    """Compute the constants of a layer whose weights no longer change."""
    import tensorflow as tf

    kernel, bias = fold_kernel(tf, layer), fold_bias(tf, layer)
    top = kernel_top(tf, kernel, layer.axis).numpy()
    kernel = kernel.numpy() if hasattr(kernel, "numpy") else kernel
    layer.constants = (kernel, top, None if bias is None else _uneven(bias))


def _uneven(bias: Any) -> np.ndarray:
    """Return a bias that is not one value over and over.

    The converter of TensorFlow 2.21 quantises such a bias with the first channel's
    scale for all channels. The last bit of one value is enough to prevent it.
    """
    values = np.array(bias.numpy())
    if values.size > 1 and np.all(values == values[0]):
        values[0] = np.nextafter(values[0], np.float32(np.inf))
    return values


def _quantisers(base: Any) -> tuple[Any, ...]:
    import tensorflow as tf

    class Kernel(base):
        """Rounds the folded kernel; its range follows the weights."""

        def build(self, shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return {"layer": layer.layer}

        def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
            layer = weights["layer"]
            kernel = fold_kernel(tf, layer)
            top = tf.stop_gradient(kernel_top(tf, kernel, layer.axis))
            return fake_quantise_kernel(tf, kernel, layer.axis, top)

        def get_config(self) -> dict[str, Any]:
            return {}

    class Fixed(base):
        """A range that is known."""

        def __init__(self, low: float, high: float) -> None:
            self.low, self.high = low, high

        def build(self, shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return {}

        def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
            return tf.quantization.fake_quant_with_min_max_args(
                inputs, self.low, self.high
            )

        def get_config(self) -> dict[str, Any]:
            return {"low": self.low, "high": self.high}

    return Kernel, Fixed, _calibrated(base)


def _calibrated(base: Any) -> Any:
    import tensorflow as tf

    class Calibrated(base):
        """A range averaged over the batches seen with training=True."""

        def build(self, shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return {
                part: layer.add_weight(f"{name}_{part}", (), trainable=False,
                                       initializer="zeros")
                for part in ("low", "high", "count")
            }  # fmt: skip

        def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
            low, high, count = (weights[k] for k in ("low", "high", "count"))
            if training:
                share = tf.maximum(1.0 / (count + 1.0), MIN_SHARE)
                least = tf.minimum(tf.reduce_min(inputs), 0.0)
                most = tf.maximum(tf.reduce_max(inputs), 0.0)
                low = low.assign_add((least - low) * share)
                high = high.assign_add((most - high) * share)
                count.assign_add(1.0)
            # The kernel of a range without width would divide by zero.
            top = tf.maximum(high, low + SMALLEST_RANGE)
            return tf.quantization.fake_quant_with_min_max_vars(inputs, low, top)

        def get_config(self) -> dict[str, Any]:
            return {}

    return Calibrated


def _output_quantisers(output: Any) -> list[Any]:
    if output is None:
        return []
    if output == CALIBRATED:
        return [custom()["Calibrated"]()]
    return [custom()["Fixed"](*output)]


def _config() -> Any:
    class Explicit(toolkit().QuantizeConfig):  # type: ignore[misc]
        """The choice of `rules.plan` for one layer."""

        def __init__(self, kernel: bool, output: Any) -> None:
            self.kernel, self.output = kernel, output

        def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
            return [(layer.kernel, custom()["Kernel"]())] if self.kernel else []

        def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
            return []

        def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
            if self.kernel:
                layer.quantised = quantize_weights[0]

        def set_quantize_activations(self, layer: Any, activations: Any) -> None:
            """No layer of a plan has activations inside."""

        def get_output_quantizers(self, layer: Any) -> list[Any]:
            return _output_quantisers(self.output)

        def get_config(self) -> dict[str, Any]:
            return {"kernel": self.kernel, "output": self.output}

    return Explicit


def layer_of(step: Step, rule: Rule, default: Callable[[Step], Any]) -> Any:
    """Make the trainable layer of a step, without its weights."""
    if step.kind == "identity":
        return custom()["Identity"](name=step.name)
    if step.kind not in KERNEL_KINDS:
        layer = default(step)
        # Statistics of what could not be folded stay as they are.
        layer.trainable = step.kind != "batch_norm"
        return layer
    norm = step.config.get("norm")
    arrays = weights_of(step)
    options = {
        **{k: v for k, v in step.config.items() if k != "norm"},
        "weights": {role: list(array.shape) for role, array in arrays.items()},
        "norm": norm is not None,
        "epsilon": norm.epsilon if norm else 0.0,
        "output_shape": list(step.shape[1:]),
    }
    return custom()["Folded"](step.kind, options, rule.kernel, name=step.name)


def weights_of(step: Step) -> dict[str, np.ndarray]:
    """Return a step's arrays by role in the order of tf_keras: trained ones first."""
    norm = step.config.get("norm")
    arrays = {**step.weights, **(norm.weights if norm else {})}
    last = ["moving_mean", "moving_variance", *(["bias"] if norm else [])]
    if step.config.get("constant"):
        last = []
    first = {k: v for k, v in arrays.items() if k not in last}
    return {**first, **{k: v for k, v in arrays.items() if k in last}}


def wrap(layer: Any, rule: Rule) -> Any:
    """Put a rule on a layer: the toolkit's wrapper, or the layer where nothing rounds.

    The toolkit's own `quantize_apply` ends in the same, after building the model three
    times more.
    """
    if rule.kernel is None and rule.output is None:
        return layer
    config = custom()["Explicit"](rule.kernel is not None, rule.output)
    return toolkit().QuantizeWrapperV2(layer, config)
