"""The tf_keras layer of each kind of step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras_lightnets._errors import require
from keras_lightnets.tools.quantize._graph import Step


def untransformed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Spare the layers called inside a function the rewriting by AutoGraph."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


@functools.cache
def custom() -> dict[str, Any]:
    """Define the layers that tf_keras lacks.

    Returns:
        Classes by name, for `custom_object_scope`.
    """
    made = (_function_layer(), _constant_layer(), _grouped_layer())
    return {c.__name__: c for c in made}


def _function_layer() -> Any:
    import tensorflow as tf

    base = require("tf_keras", "qat").layers.Layer

    class Function(base):  # type: ignore[misc, valid-type]
        """A function of one or two tensors, chosen by name."""

        def __init__(self, function: str, options: Any = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.function, self.options = function, options or {}

        def call(self, inputs: Any) -> Any:
            return FUNCTIONS[self.function](tf, inputs, **self.options)

        def get_config(self) -> dict[str, Any]:
            own = {"function": self.function, "options": self.options}
            return {**super().get_config(), **own}

    return Function


def _constant_layer() -> Any:
    base = require("tf_keras", "qat").layers.Layer

    class Constant(base):  # type: ignore[misc, valid-type]
        """Multiplies with a constant or adds it; the constant is a weight."""

        def __init__(self, add: bool, size: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.add, self.size = add, size

        def build(self, shape: Any) -> None:
            self.value = self.add_weight("value", (self.size,), trainable=False)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return inputs + self.value if self.add else inputs * self.value

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "add": self.add, "size": self.size}

    return Constant


def _grouped_layer() -> Any:
    import tensorflow as tf

    base = require("tf_keras", "qat").layers.Layer

    class GroupedConv(base):  # type: ignore[misc, valid-type]
        """Grouped convolution without the compiled wrapper that tf_keras puts on."""

        def __init__(self, options: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.options = options

        def build(self, shape: Any) -> None:
            o = self.options
            depth = shape[-1] // o["groups"]
            kernel = (*o["kernel_size"], depth, o["filters"])
            self.kernel = self.add_weight("kernel", kernel)
            if o["use_bias"]:
                self.bias = self.add_weight("bias", (o["filters"],))
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            o = self.options
            padding, rate = o["padding"].upper(), o["dilation_rate"]
            y = tf.nn.conv2d(inputs, self.kernel, o["strides"], padding, dilations=rate)
            return tf.nn.bias_add(y, self.bias) if o["use_bias"] else y

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "options": self.options}

    return GroupedConv


def _resize(tf: Any, x: Any, size: Any, method: str) -> Any:
    whole = all(new % old == 0 for new, old in zip(size, x.shape[1:3], strict=True))
    if method == "nearest" and whole:
        # Whole factors give the same with and without half-pixel centres; the
        # version of the operation without them is older, and the Edge TPU takes it.
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=tuple(size))
    return tf.image.resize(x, tuple(size), method=method)


def _slice(tf: Any, x: Any, begin: Any, size: Any) -> Any:
    rank = len(begin) + 1
    ends = [None if s < 0 else b + s for b, s in zip(begin, size, strict=True)]
    keys = [slice(None), *(slice(b, e) for b, e in zip(begin, ends, strict=True))]
    return x[tuple(keys[:rank])]


def _join_zeros(tf: Any, x: Any, axis: int, first: int, last: int) -> Any:
    def zeros(count: int) -> list[Any]:
        sides = [count if i == axis else size for i, size in enumerate(x.shape)]
        sides[0] = tf.shape(x)[0] if sides[0] is None else sides[0]
        return [tf.zeros(sides)] if count else []

    return tf.concat([*zeros(first), x, *zeros(last)], axis)


def _sample_conv(
    tf: Any, xs: Any, filters: Any, kernel_size: int, strides: int, dilation_rate: int
) -> Any:
    """Convolve each sample with its own kernel: a product per tap, or of matrices."""
    x, kernels = xs
    pad, channels = kernel_size // 2 * dilation_rate, x.shape[-1]
    height, width = (-(-side // strides) for side in x.shape[1:3])
    x = tf.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # A full kernel is a matrix per tap, a depthwise one a factor per channel.
    shape = (filters, channels) if filters else (1, 1, channels)
    kernels = tf.reshape(kernels, (-1, *shape, kernel_size**2))
    total = None
    for tap in range(kernel_size**2):
        row, column = (i * dilation_rate for i in divmod(tap, kernel_size))
        ends = (row + (height - 1) * strides + 1, column + (width - 1) * strides + 1)
        part = x[:, row : ends[0] : strides, column : ends[1] : strides]
        if filters:
            rows = tf.reshape(part, (-1, height * width, channels))
            part = tf.matmul(rows, kernels[..., tap], transpose_b=True)
            part = tf.reshape(part, (-1, height, width, filters))
        else:
            part = part * kernels[..., tap]
        total = part if total is None else total + part
    return total


FUNCTIONS: dict[str, Callable[..., Any]] = {
    # With constants of one dimension, which tf2onnx needs; the TFLite converter
    # makes its one operation of the form with scalars only.
    "hard_swish": lambda tf, x: x * tf.nn.relu6(x + [3.0]) * [1.0 / 6.0],
    "hard_swish_scalar": lambda tf, x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    "sigmoid": lambda tf, x: tf.nn.sigmoid(x),
    "tanh": lambda tf, x: tf.nn.tanh(x),
    "softmax": lambda tf, x: tf.nn.softmax(x),
    "gelu": lambda tf, x: tf.nn.gelu(x),
    # tf.nn.gelu is written with erfc, which ONNX lacks.
    "gelu_erf": lambda tf, x: x * (tf.math.erf(x * [0.5**0.5]) + [1.0]) * [0.5],
    "elu": lambda tf, x: tf.nn.elu(x),
    "selu": lambda tf, x: tf.nn.selu(x),
    "softplus": lambda tf, x: tf.nn.softplus(x),
    "add": lambda tf, xs: xs[0] + xs[1],
    "subtract": lambda tf, xs: xs[0] - xs[1],
    "multiply": lambda tf, xs: xs[0] * xs[1],
    "maximum": lambda tf, xs: tf.maximum(xs[0], xs[1]),
    "minimum": lambda tf, xs: tf.minimum(xs[0], xs[1]),
    "resize": _resize,
    "slice": _slice,
    "gather": lambda tf, x, indices, axis=-1: tf.gather(x, indices, axis=axis),
    "join_zeros": _join_zeros,
    "sample_conv": _sample_conv,
    "reshape": lambda tf, x, target_shape: tf.reshape(x, (-1, *target_shape)),
}


def _function(name: str, **options: Any) -> Callable[[Any, Step], Any]:
    return lambda tk, step: custom()["Function"](
        name, {**options, **step.config}, name=step.name
    )


def _plain(cls: str) -> Callable[[Any, Step], Any]:
    return lambda tk, step: getattr(tk.layers, cls)(**step.config, name=step.name)


def _constant(tk: Any, step: Step) -> Any:
    size = step.weights["value"].size
    return custom()["Constant"](step.kind == "add_const", size, name=step.name)


def _conv(tk: Any, step: Step) -> Any:
    if step.config["groups"] > 1:
        return custom()["GroupedConv"](step.config, name=step.name)
    return tk.layers.Conv2D(**step.config, name=step.name)


BUILDERS: dict[str, Callable[[Any, Step], Any]] = {
    "conv": _conv,
    "depthwise": _plain("DepthwiseConv2D"),
    "conv_transpose": _plain("Conv2DTranspose"),
    "dense": _plain("Dense"),
    "batch_norm": _plain("BatchNormalization"),
    "relu": _plain("ReLU"),
    "prelu": _plain("PReLU"),
    "act": lambda tk, step: custom()["Function"](
        step.config["function"], name=step.name
    ),
    "scale": _constant,
    "add_const": _constant,
    "concat": _plain("Concatenate"),
    "max_pool": _plain("MaxPooling2D"),
    "avg_pool": _plain("AveragePooling2D"),
    "mean": _plain("GlobalAveragePooling2D"),
    "global_max": _plain("GlobalMaxPooling2D"),
    "zero_pad": _plain("ZeroPadding2D"),
    "crop": _plain("Cropping2D"),
    "permute": _plain("Permute"),
    "reshape": _plain("Reshape"),
    "resize": _function("resize"),
    "slice": _function("slice"),
    "gather": _function("gather"),
    "join_zeros": _function("join_zeros"),
    "sample_conv": _function("sample_conv"),
    **{
        kind: _function(kind)
        for kind in ("add", "subtract", "multiply", "maximum", "minimum")
    },
}


def build(step: Step) -> Any:
    """Make the tf_keras layer of a step, without its weights."""
    return BUILDERS[step.kind](require("tf_keras", "qat"), step)
