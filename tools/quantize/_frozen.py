"""A trained emulation of int8 as plain kernels with fixed ranges.

This is what becomes the file: passes may still change its operations, as long as
every tensor keeps its values, and with them its range.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_lightnets._errors import require
from keras_lightnets.tools.quantize import _fake, _layers, _passes, bridge, rules
from keras_lightnets.tools.quantize._graph import Graph, Step


def graph_of(
    graph: Graph, layers: Mapping[str, Any], plan: Mapping[str, rules.Rule]
) -> Graph:
    """Return a graph with the weights and ranges that training has found.

    Args:
        graph: Steps the emulation was made from, normalisations folded.
        layers: The emulation's layer of each step, in its wrapper where it has one.
        plan: The rule of each step.

    Returns:
        A graph of plain kernels and biases; each step has its range.
    """
    import tensorflow as tf

    made = graph.copy()
    for step in made:
        layer = layers[step.name]
        inner = getattr(layer, "layer", layer)
        step.range = _range(layer, plan[step.name])
        if step.kind in _fake.KERNEL_KINDS:
            with tf.init_scope():
                kernel = _fake.fold_kernel(tf, inner)
                bias = _fake.fold_bias(tf, inner)
            _passes.unmark(step)
            step.weights = {"kernel": kernel.numpy()}
            step.config["use_bias"] = bias is not None
            if bias is not None:
                step.weights["bias"] = bias.numpy()
        else:
            arrays = inner.get_weights()
            step.weights = dict(zip(step.weights, arrays, strict=True))
    return made


def _range(wrapper: Any, rule: rules.Rule) -> tuple[float, float] | None:
    if rule.output is None or isinstance(rule.output, tuple):
        return rule.output
    found = {
        variable.name.split(":")[0].rpartition("output_")[2]: variable.numpy()
        for variable in wrapper.weights
    }
    low = found["low"]
    top = np.maximum(found["high"], low + np.float32(_fake.SMALLEST_RANGE))
    return float(low), float(top)


def function_of(graph: Graph) -> Callable[[Any], Any]:
    """Return a function that computes a graph with its ranges, for the converter.

    Args:
        graph: What `graph_of` returned, or a pass has made of it.
    """
    wrapper = ranged()

    def make(step: Step) -> tuple[Any, Any]:
        rule = rules.RULES.get(step.kind, rules.Rule())
        layer = _fake.layer_of(step, rule, _layers.build)
        if step.range is None:
            return layer, layer
        return layer, wrapper(layer, *step.range, name=f"quant_{step.name}")

    model, layers = bridge.emit(graph, make, _fake.weights_of, batch=1)
    for layer in layers.values():
        if hasattr(layer, "constants"):
            _fake.freeze(layer)
    return lambda x: model(x, training=False)


@functools.cache
def ranged() -> Any:
    """Define the layer that rounds another's output to a fixed range."""
    import tensorflow as tf

    base = require("tf_keras", "qat").layers.Layer

    class Ranged(base):  # type: ignore[misc, valid-type]
        """A layer, its output rounded to 256 levels."""

        def __init__(self, layer: Any, low: float, high: float, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.layer, self.low, self.high = layer, low, high

        def call(self, inputs: Any) -> Any:
            made = _layers.untransformed(self.layer)(inputs)
            return tf.quantization.fake_quant_with_min_max_args(
                made, self.low, self.high
            )

    return Ranged
