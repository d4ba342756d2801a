"""Rewrites of a graph before it is quantised."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_lightnets.tools.quantize._graph import Graph, Step

FOLDABLE = ("conv", "depthwise", "dense", "conv_transpose")

# Largest distance, in grey levels, between a channel's mean and the one integer
# zero point for which the mean may move into the bias of the first convolution.
# Inside the picture that is exact; a padded border then reads the zero point
# instead of the mean, which is wrong by this distance at most.
MAX_MEAN_SHIFT = 1.0


@dataclasses.dataclass
class Norm:
    """A batch normalisation that was folded into the step before it.

    Attributes:
        source: Name of the Keras 3 layer.
        epsilon: Added to the variance.
        weights: gamma and beta (where they exist), moving_mean, moving_variance.
    """

    source: str | None
    epsilon: float
    weights: dict[str, np.ndarray]

    def gain(self) -> np.ndarray:
        """Return the factor of each channel."""
        gamma = self.weights.get("gamma", np.float32(1.0))
        return gamma / np.sqrt(self.weights["moving_variance"] + self.epsilon)

    def shift(self) -> np.ndarray:
        """Return the addend of each channel."""
        beta = self.weights.get("beta", np.float32(0.0))
        return beta - self.weights["moving_mean"] * self.gain()


def fold_norms(graph: Graph) -> None:
    """Fold each batch normalisation into the convolution that alone feeds it.

    The step's config gets "norm"; what stands alone becomes a 1x1 depthwise
    convolution, or a scale and an offset on rank 2. Where a convolution is used
    several times with a normalisation behind it, each use gets weights of its own; a
    normalisation that is used several times stays.
    """
    _untie(graph)
    readers, shared = graph.consumers(), graph.shared_steps()
    for step in list(graph):
        if step.kind != "batch_norm" or step.name in shared:
            continue
        norm = Norm(step.source, step.config["epsilon"], dict(step.weights))
        before = graph.steps.get(step.inputs[0])
        if before is not None and before.kind in FOLDABLE:
            if before.name not in shared and len(readers[before.name]) == 1:
                before.config["norm"] = norm
                graph.remove(step.name)
            continue
        _alone(graph, step, norm)


def _untie(graph: Graph) -> None:
    """Give the uses of a convolution that are normalised one by one steps of their own.

    A normalisation that cannot be folded costs an operation, and the values in front
    of it, whose channels differ in scale, would share one range of int8.
    """
    readers, shared = graph.consumers(), graph.shared_steps()
    uses: dict[str, list[Step]] = {}
    for step in graph:
        uses.setdefault(step.shared or step.name, []).append(step)
    for first, steps in uses.items():
        after = [graph.sole_consumer(step.name, readers) for step in steps]
        if steps[0].kind in FOLDABLE and any(
            a is not None and a.kind == "batch_norm" and a.name not in shared
            for a in after
        ):
            for step in steps[1:]:
                step.weights, step.shared = dict(graph.steps[first].weights), None


def expand_hard_swish(graph: Graph) -> None:
    """Write (x / 6) * relu6(x + 3) out.

    The int8 HARD_SWISH operation is refused by the Edge TPU and by XNNPACK, which
    then splits the file into partitions; these four steps become MUL, ADD and MUL.
    In this order the converter does not join them again.
    """
    steps: dict[str, Step] = {}
    for step in graph:
        if step.kind == "act" and step.config["function"] == "hard_swish":
            for part in _hard_swish(step):
                steps[part.name] = part
        else:
            steps[step.name] = step
    graph.steps = steps


def _hard_swish(step: Step) -> list[Step]:
    def part(end: str, kind: str, inputs: tuple[str, ...], value: Any = None) -> Step:
        config: dict[str, Any] = {"max_value": 6.0} if kind == "relu" else {}
        weights = {"value": np.asarray([value], "float32")} if value else {}
        return Step(
            f"{step.name}{end}", kind, inputs, config, weights, shape=step.shape
        )

    sixth = part("_sixth", "scale", step.inputs, 1.0 / 6.0)
    shift = part("_shift", "add_const", step.inputs, 3.0)
    gate = part("_gate", "relu", (shift.name,))
    return [sixth, shift, gate, part("", "multiply", (sixth.name, gate.name))]


def fold_shifts(graph: Graph) -> None:
    """Move a constant addend, such as a hard sigmoid's 3, into the bias before it."""
    readers, shared = graph.consumers(), graph.shared_steps()
    for step in list(graph):
        before = graph.steps.get(step.inputs[0])
        if step.kind != "add_const" or before is None or before.name in shared:
            continue
        if before.kind in FOLDABLE and len(readers[before.name]) == 1:
            shift = np.asarray(before.config.get("shift", [0.0]))
            before.config["shift"] = [float(v) for v in shift + step.weights["value"]]
            graph.remove(step.name)


def _alone(graph: Graph, step: Step, norm: Norm) -> None:
    gain, shift = norm.gain().astype("float32"), norm.shift().astype("float32")
    if len(step.shape) == 4:
        to_depthwise(step, gain, shift)
        return
    offset = Step(
        step.name, "add_const", (f"{step.name}_scale",), weights={"value": shift},
        shape=step.shape,
    )  # fmt: skip
    scale = Step(
        f"{step.name}_scale", "scale", step.inputs, weights={"value": gain},
        shape=step.shape,
    )  # fmt: skip
    pairs = []
    for name, old in graph.steps.items():
        added = [scale, offset] if name == step.name else [old]
        pairs += [(s.name, s) for s in added]
    graph.steps = dict(pairs)


def to_depthwise(step: Step, gain: np.ndarray, shift: np.ndarray) -> None:
    """Make a step a 1x1 depthwise convolution: one operation, an exact offset."""
    channels = int(step.shape[-1] or 0)
    gain, shift = (np.broadcast_to(v, (channels,)) for v in (gain, shift))
    step.kind, step.source = "depthwise", None
    step.config = {
        "kernel_size": (1, 1),
        "strides": (1, 1),
        "padding": "same",
        "dilation_rate": (1, 1),
        "depth_multiplier": 1,
        "use_bias": True,
        "constant": True,
    }
    step.weights = {
        "kernel": gain.reshape(1, 1, channels, 1).astype("float32"),
        "bias": shift.astype("float32"),
    }


def fold_input(graph: Graph, raw: bool) -> None:
    """Let the quantised file read grey levels.

    With one mean for all channels the normalisation costs nothing: the input is
    quantised with the mean as its zero point and 1 / deviation as its scale, so
    that the bytes of the picture are the quantised normalised picture, and padding
    with the zero point is padding with zeros, as in the float model. A mean that
    is not an integer leaves less than half a grey level, which goes into the bias
    of the first convolution. Other normalisations become one 1x1 depthwise
    convolution behind an input of scale 1 and zero point 0.

    Args:
        graph: Changed in place; `raw_zero_point` and `raw_scale` say what the input
            now means. A graph without normalisation, or with several inputs, stays.
        raw: False keeps the input in grey levels for a float interface: always the
            depthwise convolution.
    """
    if len(graph.inputs) != 1:
        return
    (name, shape), readers = next(iter(graph.inputs.items())), graph.consumers()
    scale, offset = np.ones(1), np.zeros(1)
    chain: list[Step] = []
    at = name
    while (step := graph.sole_consumer(at, readers)) is not None:
        if step.kind not in ("scale", "add_const"):
            break
        value = step.weights["value"].astype("float64")
        if step.kind == "scale":
            scale, offset = scale * value, offset * value
        else:
            offset = offset + value
        chain.append(step)
        at = step.name
    if not chain or np.any(scale == 0) or len(shape) != 4:
        return
    channels = int(shape[-1] or 1)
    scale, offset = (np.broadcast_to(v, (channels,)) for v in (scale, offset))
    if not (raw and _absorb(graph, chain, scale, -offset / scale)):
        for step in chain[:-1]:
            graph.remove(step.name)
        to_depthwise(chain[-1], scale, offset)
        graph.raw_zero_point, graph.raw_scale = 0, 1.0


def _absorb(graph: Graph, chain: list[Step], scale: Any, mean: Any) -> bool:
    """Move the normalisation into the input's range and the first convolution."""
    zero = int(np.clip(np.round(np.mean(mean)), 0, 255))
    shift = mean - zero
    if np.any(np.abs(shift) > MAX_MEAN_SHIFT) or np.any(scale <= 0):
        return False
    if np.allclose(shift, 0, atol=1e-4) and np.allclose(scale, scale[0], rtol=1e-6):
        first = None
    else:
        first = _first_conv(graph, chain[-1].name)
        if first is None:
            return False
    for step in chain:
        graph.remove(step.name)
    uniform = np.allclose(scale, scale[0], rtol=1e-6)
    graph.raw_zero_point = zero
    graph.raw_scale = float(scale[0]) if uniform else 1.0
    if first is not None:
        first.config["input_gain"] = [float(v) for v in scale / graph.raw_scale]
        first.config["input_offset"] = [float(v) for v in -scale * shift]
    return True


def _first_conv(graph: Graph, name: str) -> Step | None:
    """Return the convolution that alone reads a tensor, through zero padding."""
    readers = graph.consumers()
    step = graph.sole_consumer(name, readers)
    if (
        step is not None
        and step.kind == "zero_pad"
        and step.config.get("data_format") != "channels_first"
    ):
        step = graph.sole_consumer(step.name, readers)
    plain = step is not None and step.kind == "conv" and step.config["groups"] == 1
    return step if plain else None


def bake(graph: Graph) -> None:
    """Compute what the passes above left as annotations: plain kernels and biases."""
    for step in graph:
        norm, gain, offset, shift = (
            step.config.get(key)
            for key in ("norm", "input_gain", "input_offset", "shift")
        )
        unmark(step)
        if norm is None and gain is None and shift is None:
            continue
        kernel = step.weights["kernel"].astype("float64")
        bias = np.zeros(1)
        if gain is not None:
            columns = np.asarray(offset)[:, None]
            bias = np.sum(kernel * columns, axis=(0, 1, 2))
            kernel = kernel * np.asarray(gain)[:, None]
        bias = bias + step.weights.get("bias", np.zeros(1))
        if norm is not None:
            kernel = kernel * norm.gain().reshape(on_outputs(step.kind, kernel.shape))
            bias = bias * norm.gain() + norm.shift()
        if shift is not None:
            bias = bias + np.asarray(shift)
        bias = np.broadcast_to(bias, (int(step.shape[-1] or 0),))
        step.config["use_bias"] = True
        step.weights = {
            "kernel": kernel.astype("float32"),
            "bias": bias.astype("float32"),
        }


def unmark(step: Step) -> None:
    """Take a step's annotations away, once its weights hold what they say."""
    for key in ("norm", "input_gain", "input_offset", "shift", "constant"):
        step.config.pop(key, None)


def on_outputs(kind: str, kernel_shape: Any) -> tuple[int, ...]:
    """Return the shape in which a value per output channel multiplies a kernel."""
    if kind == "depthwise":
        return (1, 1, int(kernel_shape[2]), int(kernel_shape[3]))
    if kind == "conv_transpose":
        return (1, 1, int(kernel_shape[2]), 1)
    return (int(kernel_shape[-1]),)
