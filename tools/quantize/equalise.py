"""Cross-layer equalisation: channels of like range, outputs unchanged.

In int8 the channels of a tensor share one scale, so a channel whose values are a
hundredth of its neighbours' keeps two bits. Convolutions and batch normalisations on
both sides of what is linear for positive factors (PReLU, ReLU, pooling, sums,
concatenation) let each channel take any factor: the layer in front multiplies by it,
the layers behind divide.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_lightnets._errors import require
from keras_lightnets.tools.quantize import bridge, ptq
from keras_lightnets.tools.quantize._graph import Graph, Step

# Enough pictures for the largest value of a channel.
PICTURES = 16
# Factors stay within these bounds; a channel that is always 0 keeps its own.
LARGEST = 2.0**12

# Kinds whose output channel c is input channel c for any positive factor.
SAME: tuple[str, ...] = (
    *("prelu", "max_pool", "avg_pool", "mean", "global_max", "zero_pad", "crop"),
    *("resize", "add", "subtract", "maximum", "minimum", "add_const"),
)
# Kinds that take factors off their input and put others on their output.
FREE = ("conv", "depthwise", "conv_transpose", "dense", "batch_norm")


def equalise(model: Any, pictures: Iterable[Any]) -> Any:
    """Return an equal model whose channels have like ranges.

    Worth it before quantisation for the Edge TPU where tensors of unlike range are
    concatenated, as in ESPNet; measure both, since kernels get less alike by it: in the
    form that files for CPUs have, ESPNet is better without. Networks of ReLU6 have no
    free channels and stay as they are.

    Args:
        model: A functional Keras 3 model with one input.
        pictures: Representative pictures as for calibration, (height, width,
            channels) of 0-255; the first 16 count.

    Returns:
        A new Keras 3 model of the same layers; its outputs differ by rounding only.

    Raises:
        ValueError: If the pictures do not fit the model, or it has several inputs.
        UnsupportedLayerError: If a layer has no counterpart in the bridge.

    Example:
        >>> even = equalise(model, pictures)  # doctest: +SKIP
        >>> tflite.convert(even, "int8", "uint8", pictures)  # doctest: +SKIP

    Reference:
        Nagel et al. 2019, section 4.1, https://arxiv.org/abs/1906.04721.
    """
    graph = bridge.to_graph(model)
    if len(graph.inputs) != 1:
        raise ValueError(
            "Equalisation takes models with one input. Received inputs: "
            f"{', '.join(graph.inputs)}"
        )
    (shape,) = graph.inputs.values()
    ranges = _ranges(graph, ptq.check_samples(pictures, shape[1:])[:PICTURES])
    for step in graph:  # a ReLU is part of the operation in front of it
        if step.kind == "relu" and not step.config.get("negative_slope"):
            if len(graph.consumers()[step.inputs[0]]) == 1:
                ranges.pop(step.inputs[0], None)
    arrays, fronts = _scaled(graph, _Ties(graph).factors(ranges))
    return _rebuilt(model, arrays, fronts)


class _Ties:
    """Which channels of which tensors must have one factor.

    A node is a channel of a tensor; nodes are joined to groups.

    Args:
        graph: The network, normalisations not folded.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.counts = {name: _channels(s) for name, s in graph.inputs.items()}
        self.counts |= {step.name: _channels(step.shape) for step in graph}
        starts = np.cumsum([0, *self.counts.values()])
        self.start = dict(zip(self.counts, starts[:-1].tolist(), strict=True))
        self.group = list(range(int(starts[-1])))
        self.fixed: set[int] = set()
        shared = graph.shared_steps()
        for name in (*graph.inputs, *graph.outputs.values()):
            self._fix(name)
        for step in graph:
            self._join(step, step.name in shared)

    def factors(self, ranges: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the factor of each channel of each tensor.

        Args:
            ranges: Largest absolute value of each channel.

        Returns:
            Factors that bring the largest value of each free group to 1.
        """
        largest: dict[int, float] = collections.defaultdict(float)
        for name, values in ranges.items():
            for i, value in enumerate(values):
                root = self._root(self.start[name] + i)
                largest[root] = max(largest[root], float(value))
        fixed = {self._root(node) for node in self.fixed}
        found = {}
        for name, count in self.counts.items():
            roots = [self._root(self.start[name] + i) for i in range(count)]
            found[name] = np.array(
                [1.0 if root in fixed else _factor(largest[root]) for root in roots]
            )
        return found

    def _root(self, node: int) -> int:
        while self.group[node] != node:
            self.group[node] = node = self.group[self.group[node]]
        return node

    def _tie(self, one: Iterable[int], other: Iterable[int]) -> None:
        for a, b in zip(one, other, strict=True):
            self.group[self._root(a)] = self._root(b)

    def _nodes(self, name: str) -> range:
        return range(self.start[name], self.start[name] + self.counts[name])

    def _fix(self, *names: str) -> None:
        for name in names:
            self.fixed.update(self._nodes(name))

    def _join(self, step: Step, shared: bool) -> None:
        own, kind = self._nodes(step.name), step.kind
        if shared or not _known(step):
            self._fix(step.name, *step.inputs)
        elif kind == "concat":
            parts = [i for name in step.inputs for i in self._nodes(name)]
            self._tie(own, parts)
        elif kind == "scale":  # of the front: one factor for all channels
            self._tie(own, [own[0]] * len(own))
        elif kind in SAME or kind == "relu":
            if any(self.counts[name] != len(own) for name in step.inputs):
                self._fix(step.name, *step.inputs)  # one is repeated over channels
                return
            for name in step.inputs:
                self._tie(own, self._nodes(name))


def _known(step: Step) -> bool:
    """Whether a step works for other factors; what does not keeps all its factors."""
    if step.kind == "concat":
        return bool(step.config["axis"] == len(step.shape) - 1)
    if step.kind == "relu":
        return "max_value" not in step.config
    if step.kind == "batch_norm":
        return {"gamma", "beta"} <= set(step.weights)
    if step.kind in ("zero_pad", "crop"):
        return step.config.get("data_format") != "channels_first"
    if step.kind in FREE:
        return step.source is not None
    return step.kind in SAME or (step.kind == "scale" and step.source is None)


def _channels(shape: Sequence[int | None]) -> int:
    return int(shape[-1] or 1)


def _factor(largest: float) -> float:
    if largest <= 0:
        return 1.0
    return float(np.clip(1.0 / largest, 1.0 / LARGEST, LARGEST))


def _ranges(graph: Graph, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the largest absolute value of every channel of every step."""
    import tensorflow as tf

    tk = require("tf_keras", "qat")
    model, layers = bridge.emit(graph)
    tensors = {
        step.name: layers[step.name].get_output_at(0)
        for step in graph
        if not step.shared
    }
    probe = tk.Model(model.inputs, tensors)

    found: dict[str, np.ndarray] = {}
    for picture in pictures:  # eagerly: for a few pictures a trace takes longer
        for name, x in probe(picture[None].astype("float32"), training=False).items():
            top = tf.reduce_max(tf.abs(x), axis=list(range(x.shape.rank - 1))).numpy()
            found[name] = np.maximum(found.get(name, top), top)
    return found


def _scaled(
    graph: Graph, factors: dict[str, np.ndarray]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, float]]:
    """Return new arrays by layer and role, and the factors of constant layers."""
    arrays: dict[tuple[str, str], np.ndarray] = {}
    fronts: dict[str, float] = {}
    shared = graph.shared_steps()
    for step in graph:
        gain = factors[step.name]
        if step.kind == "scale" and np.any(gain != 1):
            fronts[step.name.removesuffix("_scale")] = float(gain[0])
        if step.kind not in FREE or step.source is None or step.name in shared:
            continue
        before = factors[step.inputs[0]]
        for (name, array), role in zip(step.weights.items(), step.roles, strict=True):
            arrays[step.source, role] = _changed(step, name, array, before, gain)
    return arrays, fronts


def _changed(
    step: Step, name: str, array: np.ndarray, before: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    wide = array.astype("float64")
    if name == "moving_variance":
        return array
    if name == "moving_mean":
        wide = wide * before
    elif name in ("beta", "bias"):
        wide = wide * gain
    elif name == "gamma":
        wide = wide * gain / before
    elif step.kind == "depthwise":
        wide = wide / before[:, None] * gain.reshape(wide.shape[2:])
    elif step.kind == "conv_transpose":
        wide = wide / before * gain[:, None]
    elif step.kind == "conv" and step.config["groups"] > 1:
        depth, filters = wide.shape[2:]
        groups = step.config["groups"]
        inner = before.reshape(groups, depth).repeat(filters // groups, axis=0).T
        wide = wide / inner * gain
    else:  # (..., in, out)
        wide = wide / before[:, None] * gain
    return wide.astype(array.dtype)


def _rebuilt(
    model: Any,
    arrays: dict[tuple[str, str], np.ndarray],
    fronts: dict[str, float],
) -> Any:
    import keras

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in fronts:
            for key in ("scale", "offset"):
                config[key] = (np.asarray(config[key]) * fronts[layer.name]).tolist()
        return type(layer).from_config(config)

    made = keras.models.clone_model(model, clone_function=clone)
    made.set_weights(model.get_weights())
    layers = {layer.name: layer for layer in made.layers}
    for (name, role), array in arrays.items():
        getattr(layers[name], role).assign(array)
    return made
