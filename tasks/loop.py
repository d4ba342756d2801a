"""The training loop that all tasks share: Keras `fit` with the run's callbacks."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

import keras_lightnets
from keras_lightnets._errors import unknown
from keras_lightnets.tasks import callbacks
from keras_lightnets.tasks.config import TaskConfig
from keras_lightnets.tasks.schedules import make_optimizer, warmup_cosine


class BatchSource(Protocol):
    """Training batches, the same for the same epoch."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""

    def stream(self, epoch: int, step: int) -> Iterator[tuple[Any, Any]]:
        """Yield (images, targets) without end, from a step of an epoch on."""

    def names(self, epoch: int, step: int) -> Sequence[str]:
        """Return the image names of one batch."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a task hands to the loop.

    Attributes:
        config: The task's options.
        model: The model to train: frozen parts, wanted precision.
        twin: The same in float32 with nothing frozen; evaluated and saved.
        loss: Loss per output name.
        source: Training batches.
        evaluate: Returns the metrics of a model.
        monitor: Metric that decides which model is best.
        meta: Description that saved models carry.
    """

    config: TaskConfig
    model: Any
    twin: Any
    loss: Mapping[str, Any]
    source: BatchSource
    evaluate: Callable[[Any], dict[str, Any]]
    monitor: str
    meta: Mapping[str, Any]


def fit(job: Job, folder: Path) -> callbacks.Record:
    """Train, evaluate and save; continues from the folder's state if there is one.

    Args:
        job: Model, data and options.
        folder: The run's folder.

    Returns:
        History and metrics.

    Raises:
        TrainingError: If the loss stops being a number.
    """
    config, steps = job.config, len(job.source)
    job.model.compile(
        optimizer=make_optimizer(config, job.model, steps),
        loss=dict(job.loss),
        jit_compile=False if on_cpu() else "auto",
    )
    state = folder / callbacks.STATE
    record = callbacks.Record()
    if state.is_file():
        record = callbacks.load_state(state, job.model)
    _build_losses(job, record.epoch)
    outcome = callbacks.Outcome(
        folder=folder,
        twin=job.twin,
        evaluate=job.evaluate,
        monitor=job.monitor,
        meta=job.meta,
        epochs=config.epochs,
        eval_every=config.eval_every,
    )
    feed = Feed(job.source, record.epoch)
    bar = callbacks.ShowProgress(config.epochs, steps)
    try:
        job.model.fit(
            feed,
            epochs=config.epochs,
            initial_epoch=record.epoch,
            shuffle=False,  # The source draws the order; Keras' depends on the process.
            verbose=0,
            callbacks=[
                SetEpoch(feed),
                callbacks.SetRate(
                    functools.partial(warmup_cosine, config, steps), steps
                ),
                callbacks.StopOnNan(job.source.names),
                callbacks.Checkpoint(outcome, record),
                bar,
            ],
        )
    finally:
        bar.close()
    return record


def _build_losses(job: Job, epoch: int) -> None:
    """Create the losses' variables now: created by the first step they cost a trace.

    TensorFlow traces a function a second time if the first pass made variables.
    """
    _, targets = next(job.source.stream(epoch, 0))
    batch = job.config.batch_size
    outputs = {
        key: np.zeros((batch, *tensor.shape[1:]), np.float32)
        for key, tensor in job.model.output.items()
    }
    job.model.compute_loss(y=targets, y_pred=outputs)
    job.model.reset_metrics()


class Feed(keras.utils.PyDataset):
    """Hands a `BatchSource` to Keras, batch by batch in order.

    The source reads ahead with threads of its own, so Keras uses none.

    Args:
        source: The batches.
        epoch: The epoch that comes first.
    """

    def __init__(self, source: BatchSource, epoch: int) -> None:
        super().__init__(workers=1)
        self._source = source
        self._at = (-1, 0)
        self._stream: Iterator[tuple[Any, Any]] = iter(())
        self.epoch = epoch

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return a batch of the current epoch; in order, one stream serves all."""
        if self._at != (self.epoch, index):
            self._stream = self._source.stream(self.epoch, index)
        last = index + 1 == len(self._source)
        self._at = (self.epoch + 1, 0) if last else (self.epoch, index + 1)
        return next(self._stream)


class SetEpoch(keras.callbacks.Callback):
    """Tells the feed which epoch begins: order and augmentation depend on it.

    Args:
        feed: The feed of `fit`.
    """

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Called before the epoch's first batch is asked for."""
        self._feed.epoch = epoch


def prepare_backend(config: TaskConfig) -> None:
    """Seed all generators and, if wanted, make TensorFlow repeat bit for bit.

    On the CPU the process also keeps the memory it frees from here on.

    Args:
        config: Gives seed and determinism.
    """
    keras.utils.set_random_seed(config.seed)
    if on_cpu():
        keras_lightnets.keep_memory()
    if config.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Build layers in another precision, then restore the previous one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def on_cpu() -> bool:
    """Return whether the backend has no accelerator.

    XLA on a CPU runs depthwise convolutions some 25 times slower than the plain
    graph, so `fit` never compiles there.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.config.list_logical_devices("GPU")
    return False


def freeze(backbone: Any, level: str | None, norms: bool) -> None:
    """Freeze the backbone's early part, its statistics, or both.

    Args:
        backbone: Model whose dict output holds the levels; shares its layers with
            the whole model.
        level: Freeze all layers up to this level's tensor; "all" for the whole
            backbone; None for nothing.
        norms: Freeze every batch normalisation of the backbone.

    Raises:
        ValueError: If the backbone has no such level.
    """
    if level is not None:
        for layer in layers_up_to(backbone, level):
            layer.trainable = False
    if norms:
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False


def layers_up_to(backbone: Any, level: str) -> list[Any]:
    """Return the layers that a level's tensor depends on.

    Args:
        backbone: Model with a dict output.
        level: A key of the output, or "all".

    Returns:
        Layers.
    """
    if level == "all":
        return list(backbone.layers)
    outputs = backbone.output
    if level not in outputs:
        raise unknown("level to freeze", level, [*outputs, "all"])
    return list(keras.Model(backbone.inputs, outputs[level]).layers)


def set_norm_momentum(model: Any, momentum: float | None) -> None:
    """Set the momentum of every batch normalisation; None changes nothing."""
    if momentum is None:
        return
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def predict_batches(model: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function from uint8 images to the model's raw outputs.

    Args:
        model: Keras model with a dict output.

    Returns:
        Takes (batch, height, width, 3), returns name -> array.
    """

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model.predict_on_batch(images)
        return {key: np.asarray(value) for key, value in outputs.items()}

    return predict
