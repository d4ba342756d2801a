"""Keras callbacks of the training loop: progress, NaN guard, checkpoints."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from keras_lightnets.tasks import run

STATE = "state.npz"


class StopOnNan(keras.callbacks.Callback):
    """Stops with the names of the images whose loss was not a number.

    Args:
        names: Returns the image names of batch `index` in epoch `epoch`.
    """

    def __init__(self, names: Callable[[int, int], Sequence[str]]) -> None:
        super().__init__()
        self._names = names
        self._epoch = 0
        self._before = math.nan

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch
        self._before = math.nan

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Raise when the epoch's mean loss has stopped being a number."""
        loss = float((logs or {}).get("loss", 0.0))
        if math.isfinite(loss):
            self._before = loss
            return
        images = ", ".join(self._names(self._epoch, batch))
        raise run.TrainingError(
            f"The loss became {loss} in epoch {self._epoch + 1}, batch {batch + 1} "
            f"(mean of the epoch before it: {self._before:.4g}). Images of the batch: "
            f"{images}. Check these images and labels; if their loss is normal, lower "
            "--learning-rate or --clip-norm. The checkpoint of the last full epoch is "
            "intact."
        )


class SetRate(keras.callbacks.Callback):
    """Sets the learning rate before each step.

    Args:
        rate: Learning rate of a step, counted over the whole run.
        steps: Steps of an epoch.
    """

    def __init__(self, rate: Callable[[int], float], steps: int) -> None:
        super().__init__()
        self._rate, self._steps = rate, steps
        self._first = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the epoch's first step."""
        self._first = epoch * self._steps

    def on_train_batch_begin(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Set the rate."""
        self.model.optimizer.learning_rate = self._rate(self._first + batch)


class ShowProgress(keras.callbacks.Callback):
    """Shows a bar per epoch on stderr, and one line per finished epoch.

    Args:
        epochs: Epochs of the run.
        steps: Steps of an epoch.
    """

    def __init__(self, epochs: int, steps: int) -> None:
        super().__init__()
        self._epochs, self._steps = epochs, steps
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Open the bar; without a terminal only lines are written."""
        self._start = time.perf_counter()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        label = f"{epoch + 1}/{self._epochs}"
        self._bar.add_task("", total=self._steps, epoch=label, loss=math.nan)
        self._bar.start()

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            loss = float((logs or {}).get("loss", math.nan))
            self._bar.update(self._bar.task_ids[0], completed=batch + 1, loss=loss)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Close the bar and write the epoch's line."""
        self.close()
        seconds = time.perf_counter() - self._start
        figures = " ".join(
            f"{key} {value:.4g}"
            for key, value in (logs or {}).items()
            if isinstance(value, float)
        )
        self._console.print(
            f"epoch {epoch + 1}/{self._epochs} {figures} ({seconds:.1f} s)",
            soft_wrap=True,
        )

    def close(self) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@dataclasses.dataclass
class Record:
    """What a run has reached; saved with the weights.

    Attributes:
        epoch: Finished epochs.
        best: Best value of the monitored metric, or None before the first.
        history: One mapping of figures per finished epoch.
        metrics: Full metrics of the best and the last evaluation.
    """

    epoch: int = 0
    best: float | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a run's results go and how they are judged.

    Attributes:
        folder: The run's folder.
        twin: Float32 copy of the trained model; evaluated and saved.
        evaluate: Returns the metrics of a model.
        monitor: Metric that decides which model is best; larger is better.
        meta: Description that the saved models carry.
        epochs: Epochs of the run.
        eval_every: Epochs between two evaluations.
    """

    folder: Path
    twin: Any
    evaluate: Callable[[Any], dict[str, Any]]
    monitor: str
    meta: Mapping[str, Any]
    epochs: int
    eval_every: int = 1


class Checkpoint(keras.callbacks.Callback):
    """Evaluates and saves the averaged model after each epoch.

    Writes last.keras, best.keras, history.csv, metrics.json and, last of all,
    state.npz: weights, optimiser and record, from which a run resumes exactly.

    Args:
        outcome: Where the results go.
        record: What the run had reached before.
    """

    def __init__(self, outcome: Outcome, record: Record) -> None:
        super().__init__()
        self._outcome = outcome
        self.record = record
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Start the epoch's clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Evaluate and save; adds the metrics to `logs`."""
        outcome, record = self._outcome, self.record
        row = {"epoch": epoch + 1, **{k: float(v) for k, v in (logs or {}).items()}}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        row["train_seconds"] = round(time.perf_counter() - self._start, 2)
        outcome.twin.set_weights(averaged_weights(self.model))
        due = (epoch + 1) % outcome.eval_every == 0 or epoch + 1 == outcome.epochs
        better = self._evaluate(row, logs) if due else False
        run.save_model(outcome.twin, outcome.folder / "last.keras", outcome.meta)
        if better:
            run.save_model(outcome.twin, outcome.folder / "best.keras", outcome.meta)
        record.epoch = epoch + 1
        record.history.append(row)
        run.write_history(outcome.folder / "history.csv", record.history)
        run.write_json(outcome.folder / "metrics.json", record.metrics)
        save_state(outcome.folder / STATE, self.model, record)

    def _evaluate(self, row: dict[str, Any], logs: dict[str, Any] | None) -> bool:
        record = self.record
        metrics = self._outcome.evaluate(self._outcome.twin)
        figures = {k: v for k, v in metrics.items() if isinstance(v, float)}
        row.update(figures)
        if logs is not None:
            logs.update(figures)
        value = metrics.get(self._outcome.monitor)
        value = -1.0 if value is None else float(value)
        record.metrics["last"] = {"epoch": row["epoch"], **metrics}
        better = record.best is None or value > record.best
        if better:
            record.best = value
            record.metrics["best"] = {"epoch": row["epoch"], **metrics}
        return better


def averaged_weights(model: Any) -> list[np.ndarray]:
    """Return the model's weights with the optimiser's average in place of the last.

    Args:
        model: A compiled model; unchanged on return.

    Returns:
        As `model.get_weights()`.
    """
    variables = model.trainable_variables
    live = [keras.ops.convert_to_numpy(v.value).copy() for v in variables]
    model.optimizer.finalize_variable_values(variables)
    values = [np.array(value) for value in model.get_weights()]
    for variable, value in zip(variables, live, strict=True):
        variable.assign(value)
    return values


def save_state(path: Path, model: Any, record: Record) -> None:
    """Write what a run needs to go on exactly: variables, optimiser, record.

    Args:
        path: The file; replaced only when the new content is complete.
        model: The compiled model.
        record: What the run has reached.
    """
    arrays: dict[str, Any] = {
        "record": np.array(json.dumps(dataclasses.asdict(record)))
    }
    for index, variable in enumerate(_variables(model)):
        arrays[f"v{index:05d}"] = keras.ops.convert_to_numpy(variable.value)
    with run.atomic_file(path) as part:
        np.savez(part, **arrays)


def load_state(path: Path, model: Any) -> Record:
    """Restore what `save_state` wrote.

    Args:
        path: The file.
        model: The compiled model; its variables are overwritten.

    Returns:
        What the run had reached.

    Raises:
        RunError: If the file does not fit the model.
    """
    variables = _variables(model)
    with np.load(path, allow_pickle=False) as arrays:
        if len(arrays.files) != len(variables) + 1:
            raise run.RunError(
                f"{path} holds {len(arrays.files) - 1} variables, the model has "
                f"{len(variables)}: it is from another version. Start a new run."
            )
        for index, variable in enumerate(variables):
            variable.assign(arrays[f"v{index:05d}"])
        return Record(**json.loads(str(arrays["record"])))


def _variables(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]
