"""Quantisation-aware training: calibrate, train with the task's loss, save, resume."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets._errors import require
from keras_lightnets.tools.quantize import (
    _fake,
    _frozen,
    _layers,
    _passes,
    bridge,
    ptq,
    rules,
)
from keras_lightnets.tools.quantize._graph import Graph, Step

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train.

    Attributes:
        epochs: Passes over the batches.
        learning_rate: Peak; falls to a hundredth along a cosine.
        warmup_steps: Steps over which the rate rises.
        clip_norm: Largest global norm of the gradients; None for no limit.
        frozen: Layers whose names start with one of these keep their weights. No
            gradient is computed before the first that trains, which saves most of
            the backward time when the high-resolution stages are frozen.
        recalibrate: Batches that renew the activation ranges after each epoch.
        steps_per_epoch: Steps of an epoch; None takes the length of the batches.
    """

    epochs: int = 5
    learning_rate: float = 2e-4
    warmup_steps: int = 20
    clip_norm: float | None = 10.0
    frozen: tuple[str, ...] = ()
    recalibrate: int = 8
    steps_per_epoch: int | None = None


@dataclasses.dataclass
class QatModel:
    """A model that emulates its int8 file.

    Calling it takes grey levels, as the Keras 3 model does, and returns outputs of
    the same structure.

    Attributes:
        model: The tf_keras model behind the input's normalisation.
        graph: Steps it was made from, normalisations folded.
        layers: Layer of each step, inside its wrapper.
        plan: Rule of each step.
        epoch: Epochs trained.
        step: Steps trained.
        optimizer: Made by the first `train`.
    """

    model: Any
    graph: Graph
    layers: dict[str, Any]
    plan: dict[str, rules.Rule]
    epoch: int = 0
    step: int = 0
    optimizer: Any = None
    _forward: Any = None
    _pending: list[np.ndarray] | None = None

    def __call__(self, images: Any, training: bool = False) -> Any:
        """Run the emulation.

        Args:
            images: (batch, height, width, channels), 0-255.
            training: True renews the activation ranges from this batch.

        Returns:
            Outputs, float32, rounded as the int8 file rounds them.
        """
        if self._forward is None:
            import tensorflow as tf

            self._forward = tf.function(
                lambda x, t: self.model(self.real(x), training=t),
                autograph=False,
                reduce_retracing=True,
            )
        return self._forward(images, training)

    def real(self, images: Any) -> Any:
        """Return grey levels as what `model` reads."""
        import tensorflow as tf

        pixels = tf.cast(images, tf.float32)
        if self.graph.raw_zero_point is None:
            return pixels
        return (pixels - float(self.graph.raw_zero_point)) * self.graph.raw_scale

    def source_weights(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the trained weights by Keras 3 layer and attribute.

        A convolution whose uses trained apart (see `_passes.fold_norms`) gets their
        mean.
        """
        found: dict[str, dict[str, list[np.ndarray]]] = {}
        for step in self.graph:
            layer = self.layers[step.name]
            if step.source and not step.shared:
                names = zip(step.weights, step.roles, strict=True)
                if step.kind in _fake.KERNEL_KINDS:
                    own = {role: getattr(layer, key).numpy() for key, role in names}
                else:
                    own = dict(zip(step.roles, layer.get_weights(), strict=True))
                for role, array in own.items():
                    found.setdefault(step.source, {}).setdefault(role, []).append(array)
            norm = step.config.get("norm")
            if norm is not None and norm.source:
                found[norm.source] = {
                    role: [getattr(layer, role).numpy()] for role in norm.weights
                }
        return {
            name: {role: np.mean(arrays, axis=0) for role, arrays in roles.items()}
            for name, roles in found.items()
        }

    def deployed(
        self, raw: bool = True, lower: Callable[[Graph], Any] | None = None
    ) -> tuple[Callable[..., Any], Graph]:
        """Return what the TFLite converter traces.

        The model trains as it is written and is lowered here: what a lowering does
        to kernels and channels keeps every value, so that ranges and rounding stay
        those of training, and zeros that it writes into kernels stay zeros.

        Args:
            raw: Whether the file shall read the bytes of a picture; False for float
                grey levels, normalised by one more operation.
            lower: Changes the graph for the target; every tensor that it leaves
                keeps its range.

        Returns:
            A function on the input tensor and the graph that names its ends.
        """
        wrappers = {
            getattr(layer, "layer", layer).name: layer for layer in self.model.layers
        }
        outer = {name: wrappers[layer.name] for name, layer in self.layers.items()}
        graph = _frozen.graph_of(self.graph, outer, self.plan)
        if lower is not None:
            lower(graph)
        function = _frozen.function_of(graph)
        if raw or graph.raw_zero_point is None:
            return function, graph
        front = _float_front(graph)
        return lambda x: function(front(x)), graph


def _float_front(graph: Graph) -> Callable[[Any], Any]:
    """Return grey levels to real values as one depthwise convolution."""
    import tensorflow as tf

    (shape,) = graph.inputs.values()
    channels, zero = int(shape[-1] or 1), float(graph.raw_zero_point or 0)
    scale = graph.raw_scale
    top = np.full(channels, scale, "float32")
    kernel = tf.constant(np.full((1, 1, channels, 1), scale, "float32"))
    bias = tf.constant(np.full(channels, -zero * scale, "float32"))
    fake = tf.quantization.fake_quant_with_min_max_args

    def front(x: Any) -> Any:
        x = fake(x, 0.0, 255.0)
        rounded = _fake.fake_quantise_kernel(tf, kernel, -2, tf.constant(top))
        y = tf.nn.depthwise_conv2d(x, rounded, [1, 1, 1, 1], "SAME")
        return fake(y + bias, -zero * scale, (255.0 - zero) * scale)

    return front


def prepare(source: Any, calibration: Iterable[Any] | None) -> QatModel:
    """Make a model that emulates int8 and find its ranges.

    Batch normalisation is folded with its statistics frozen (gamma and beta train),
    and every tensor that becomes int8 gets an explicit quantiser by `rules.plan`.

    Args:
        source: A Keras 3 model, or its `bridge.Twin`.
        calibration: Batches of pictures, (batch, height, width, channels) of 0-255,
            about ten of them; or None when `restore` follows.

    Returns:
        The model.

    Raises:
        NotQuantisableError: If a layer has no int8 operation.
        UnsupportedLayerError: If a layer has no tf_keras counterpart.
        ValueError: If the calibration set does not fit.
    """
    graph = _graph_of(source).copy()
    _passes.expand_hard_swish(graph)
    _passes.fold_norms(graph)
    _passes.fold_shifts(graph)
    _passes.fold_input(graph, raw=True)
    _range_inputs(graph)
    chosen = rules.plan(graph)

    def make(step: Step) -> tuple[Any, Any]:
        layer = _fake.layer_of(step, chosen[step.name], _layers.build)
        return layer, _fake.wrap(layer, chosen[step.name])

    model, layers = bridge.emit(graph, make, _fake.weights_of)
    made = QatModel(model, graph, layers, chosen)
    if calibration is not None:
        calibrate(made, calibration)
    return made


def _graph_of(source: Any) -> Graph:
    if not isinstance(source, bridge.Twin):
        return bridge.to_graph(source)
    graph = source.graph.copy()
    for step in graph:
        if step.weights and not step.shared:
            layer = next(x for x in source.model.layers if x.name == step.name)
            names = list(step.weights)
            step.weights = dict(zip(names, layer.get_weights(), strict=True))
    return graph


def _range_inputs(graph: Graph) -> None:
    """Put a step behind each input that holds its range."""
    added: dict[str, Step] = {}
    for name, shape in graph.inputs.items():
        step = Step(f"{name}_range", "identity", (name,), shape=shape)
        if graph.raw_zero_point is not None:
            zero, scale = graph.raw_zero_point, graph.raw_scale
            step.range = (-zero * scale, (255 - zero) * scale)
        for other in graph:
            other.inputs = tuple(step.name if i == name else i for i in other.inputs)
        added[step.name] = step
    graph.steps = {**added, **graph.steps}


def calibrate(qat: QatModel, batches: Iterable[Any], limit: int = 32) -> None:
    """Renew the activation ranges; weights stay.

    Args:
        qat: The model.
        batches: Batches of pictures, 0-255; of (pictures, targets) the first counts.
        limit: Batches to use at most.

    Raises:
        ValueError: If there are none, or they do not fit the model.
    """
    (shape,) = list(qat.graph.inputs.values())[:1]
    grey = qat.graph.raw_zero_point is not None
    for variable in qat.model.weights:
        if variable.name.split(":")[0].endswith("output_count"):
            variable.assign(0.0)
    seen = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        ptq.check_samples([np.asarray(images)], shape[1:], grey)
        qat(images, training=True)
        seen += 1
        if seen >= limit:
            break
    if not seen:
        ptq.check_samples([], shape[1:], grey)


def train(
    qat: QatModel,
    batches: Any,
    loss: Callable[[Any, Any], Any],
    settings: Settings | None = None,
    on_epoch_end: Callable[[QatModel, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train; goes on where a restored model stopped.

    Args:
        qat: What `prepare` returned.
        batches: Iterable, gone through once per epoch, or a function
            of the epoch number that returns one. Items: (pictures of 0-255, targets).
        loss: Function of (targets, outputs) that returns a scalar tensor.
        settings: How to train.
        on_epoch_end: Called with the model and {"epoch", "loss"} after each epoch,
            ranges renewed; the place to save and evaluate.

    Returns:
        The dict of each epoch.

    Raises:
        FloatingPointError: If the loss is NaN or infinite; weights stay as they were.
        ValueError: If no layer trains or an epoch is empty.
    """
    settings = settings or Settings()
    variables = _trainable(qat, settings.frozen)
    run = _train_step(qat, variables, loss, settings.clip_norm)
    history = []
    while qat.epoch < settings.epochs:
        source = batches(qat.epoch) if callable(batches) else batches
        steps = _steps(source, settings)
        losses: list[float] = []
        kept: list[np.ndarray] = []
        for images, targets in itertools.islice(source, steps):
            qat.optimizer.learning_rate.assign(
                _rate(qat.step, steps * settings.epochs, settings)
            )
            value = float(run(images, targets))
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"The loss is {value} at step {qat.step} of quantisation-aware "
                    "training. Lower learning_rate or check the targets."
                )
            losses.append(value)
            qat.step += 1
            if len(kept) < settings.recalibrate:
                kept.append(np.asarray(images))
        if not losses:
            raise ValueError(
                "An epoch without batches: `batches` is empty or was used up. Pass a "
                "list, a loader, or a function of the epoch number."
            )
        if kept:
            calibrate(qat, kept)
        qat.epoch += 1
        history.append({"epoch": qat.epoch, "loss": float(np.mean(losses))})
        if on_epoch_end is not None:
            on_epoch_end(qat, history[-1])
    return history


def _steps(source: Any, settings: Settings) -> int:
    if settings.steps_per_epoch is not None:
        return settings.steps_per_epoch
    if not hasattr(source, "__len__"):
        raise ValueError(
            "The learning rate's schedule needs the number of steps: `batches` has no "
            f"length ({type(source).__name__}). Set steps_per_epoch."
        )
    return len(source)


def _rate(step: int, total: int, settings: Settings) -> float:
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total))))
    return settings.learning_rate * warm * (0.01 + 0.99 * wave)


def _trainable(qat: QatModel, frozen: tuple[str, ...]) -> list[Any]:
    found: dict[int, Any] = {}
    for name, layer in qat.layers.items():
        if not name.startswith(frozen or ("\0",)):
            found.update({id(v): v for v in layer.trainable_weights})
    if not found:
        raise ValueError(
            f"No layer trains: frozen={frozen!r} matches all of "
            f"{', '.join(list(qat.layers)[:5])}, ... Shorten it."
        )
    if qat.optimizer is None:
        tk = require("tf_keras", "qat")
        qat.optimizer = tk.optimizers.Adam(1e-4, jit_compile=False)
    qat.optimizer.build(list(found.values()))
    _restore_optimizer(qat)
    return list(found.values())


def _restore_optimizer(qat: QatModel) -> None:
    if qat._pending is None:
        return
    own = qat.optimizer.variables
    if [tuple(v.shape) for v in own] != [v.shape for v in qat._pending]:
        raise ValueError(
            "The saved optimizer state does not fit the layers that train now. Use the "
            "same `frozen` as before."
        )
    for variable, value in zip(own, qat._pending, strict=True):
        variable.assign(value)
    qat._pending = None


def _train_step(
    qat: QatModel, variables: list[Any], loss: Any, clip_norm: float | None
) -> Callable[[Any, Any], Any]:
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def run(images: Any, targets: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            # training=False: ranges hold during a step, which spares two passes
            # over every activation; calibrate() renews them.
            value = loss(targets, qat.model(qat.real(images), training=False))
        gradients = tape.gradient(value, variables)
        if clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_norm)
        pairs = [
            pair
            for pair in zip(gradients, variables, strict=True)
            if pair[0] is not None
        ]

        def apply() -> Any:
            qat.optimizer.apply_gradients(pairs)
            return True

        # A loss that is not finite leaves the weights as they were.
        tf.cond(tf.math.is_finite(value), apply, lambda: False)
        return value

    return run


def save(qat: QatModel, path: str | os.PathLike[str]) -> Path:
    """Write weights, ranges, optimizer state and position to an HDF5 file.

    Args:
        qat: The model.
        path: File to write; replaced whole or not at all.

    Returns:
        The path.
    """
    import h5py

    target = Path(path)
    part = target.with_name(target.name + ".part")
    with h5py.File(part, "w") as file:
        head = {"format": FORMAT, "epoch": qat.epoch, "step": qat.step}
        file.attrs["head"] = json.dumps(head)
        for i, variable in enumerate(qat.model.weights):
            data = file.create_dataset(f"weights/{i:05}", data=variable.numpy())
            data.attrs["name"] = variable.name
        slots = qat.optimizer.variables if qat.optimizer is not None else []
        for i, variable in enumerate(slots):
            file.create_dataset(f"optimizer/{i:05}", data=variable.numpy())
    os.replace(part, target)
    return target


def restore(qat: QatModel, path: str | os.PathLike[str]) -> QatModel:
    """Read what `save` wrote into a model prepared from the same network.

    Args:
        qat: `prepare(model, None)` of the same architecture.
        path: The file.

    Returns:
        `qat`; `train` goes on from the saved epoch.

    Raises:
        ValueError: If the file belongs to another network; nothing is changed then.
    """
    import h5py

    with h5py.File(path, "r") as file:
        head = json.loads(file.attrs["head"])
        saved = [np.asarray(item) for item in file["weights"].values()]
        slots = [np.asarray(item) for item in file.get("optimizer", {}).values()]
    own = qat.model.weights
    if head["format"] != FORMAT or [v.shape for v in saved] != [
        tuple(v.shape) for v in own
    ]:
        raise ValueError(
            f"{os.fspath(path)} does not fit the model {qat.graph.name!r}: it holds "
            f"{len(saved)} arrays, the model has {len(own)}, or shapes differ. Prepare "
            "the same network, classes and input shape first."
        )
    for variable, value in zip(own, saved, strict=True):
        variable.assign(value)
    qat.epoch, qat.step = head["epoch"], head["step"]
    qat._pending = slots or None
    return qat
