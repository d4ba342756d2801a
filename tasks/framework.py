"""What the tasks share: a task is a row of functions, and this trains and shows it."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_lightnets.tasks import run, task_names
from keras_lightnets.tasks.config import (
    ConfigError,
    Options,
    TaskConfig,
    read_json_object,
)


@dataclass(frozen=True)
class Data:
    """The data sets of a run.

    Attributes:
        train: Training images.
        val: Validation images.
        report: Problems of both.
    """

    train: Any
    val: Any
    report: Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as data: what training, evaluating and exporting need from it.

    Attributes:
        name: Name of its module and of the command line's word.
        title: One sentence for the command line.
        monitor: Metric that decides which model is best; larger is better.
        curves: Metrics drawn over the epochs.
        config: Class of the training options.
        eval_options: Class of the evaluation options.
        predict_options: Class of the prediction options.
        open_data: config -> `Data`; raises where a problem is fatal.
        build_model: config -> model from images of 0..255 to named raw outputs.
        losses: config -> loss by output name.
        batches: (config, "train" or "val", data set or None) -> batches.
        evaluate_fn: (config, data set or None) -> (predictor -> metrics); a
            predictor takes uint8 images and returns raw outputs by name.
        describe: config -> description that saved models carry.
        draw: Adds pictures to a finished run: (config, data, record).
        evaluate: The verb `eval`: its options -> metrics.
        measure_file: (config, model file) -> metrics on the validation images.
        predict: The verb `predict`: its options -> result.
        meta: Description -> the runtime's meta, which an export writes.
    """

    name: str
    title: str
    monitor: str
    curves: tuple[str, ...]
    config: type[TaskConfig]
    eval_options: type[Options]
    predict_options: type[Options]
    open_data: Callable[[Any], Data]
    build_model: Callable[[Any], Any]
    losses: Callable[[Any], dict[str, Any]]
    batches: Callable[..., Any]
    evaluate_fn: Callable[..., Callable[..., dict[str, Any]]]
    describe: Callable[[Any], dict[str, Any]]
    draw: Callable[[Any, Data, Any], None]
    evaluate: Callable[[Any], dict[str, Any]]
    measure_file: Callable[[Any, Path], dict[str, Any]]
    predict: Callable[[Any], dict[str, Any]]
    meta: Callable[[Mapping[str, Any]], Any]


def find_task(name: str) -> Task:
    """Return a task of the package.

    Args:
        name: Its name.

    Returns:
        The row of functions.

    Raises:
        ValueError: If there is none; the closest name is suggested.
    """
    from keras_lightnets._errors import unknown

    if name not in task_names():
        raise unknown("task", name, task_names())
    found: Task = importlib.import_module(f"keras_lightnets.tasks.{name}").TASK
    return found


def train(
    task: Task, config: Any, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train a model and leave a run folder with all results.

    Args:
        task: The task.
        config: Its options.
        resume: Continue the run of that name from its last full epoch; the result
            is that of an uninterrupted run. Starts one if there is none.
        overwrite: Replace the run of that name.

    Returns:
        "run": the folder, "best" and "last": metrics, "data": counts of problems.

    Raises:
        ConfigError: If an option is missing or illegal.
        DatasetError: If the data cannot be used; the text lists all problems.
        RunError: If the run exists and neither `resume` nor `overwrite` is given.
        TrainingError: If the loss stops being a number.
    """
    run.check_free(config.folder, resume=resume, overwrite=overwrite)
    data = task.open_data(config)
    config = config.replace(labels=config.labels or data.train.names)
    for part in (data.train, data.val):
        same_classes(config.labels, part.names, part.source)
    if data.report.problems:
        sys.stderr.write(data.report.text() + "\n")
    from keras_lightnets.tasks import loop, plots

    loop.prepare_backend(config)
    job = _make_job(task, config, data)
    run.open_folder(config.folder, config, resume=resume, overwrite=overwrite)
    run.write_json(config.folder / "data.json", data.report.json())
    record = loop.fit(job, config.folder)
    plots.plot_history(record.history, config.folder / "curves.png", task.curves)
    task.draw(config, data, record)
    return {
        "run": str(config.folder),
        "epochs": record.epoch,
        "best": record.metrics["best"],
        "last": record.metrics["last"],
        "data": data.report.counts,
    }


def _make_job(task: Task, config: Any, data: Data) -> Any:
    from keras_lightnets.tasks import loop

    source = task.batches(config, "train", data.train)
    plain = config.replace(freeze=None, freeze_bn=False, precision="float32")
    return loop.Job(
        config=config,
        model=task.build_model(config),
        twin=task.build_model(plain),
        loss=task.losses(config),
        source=source,
        evaluate=_judge(task, config, data, source),
        monitor=task.monitor,
        meta=task.describe(config),
    )


def _judge(
    task: Task, config: Any, data: Data, source: Any
) -> Callable[[Any], dict[str, Any]]:
    from keras_lightnets.tasks import loop

    judge = task.evaluate_fn(config, data.val)
    left_out = len(data.report.left_out)

    def judge_model(model: Any) -> dict[str, Any]:
        result = judge(loop.predict_batches(model))
        skipped = {"skipped_train_images": len(source.skipped)}
        return {**result, **skipped, "left_out_images": left_out}

    return judge_model


def joined_loss(parts: Mapping[str, Any]) -> Callable[..., Any]:
    """Return one loss out of one per output.

    Args:
        parts: Output name -> loss.

    Returns:
        loss(y_true, y_pred) on dicts of tensors; a scalar tensor.
    """

    def loss(y_true: Mapping[str, Any], y_pred: Mapping[str, Any]) -> Any:
        return sum(part(y_true[key], y_pred[key]) for key, part in parts.items())

    return loss


def open_pair(train_set: tuple[Any, Any], val_set: tuple[Any, Any]) -> Data:
    """Join two opened data sets.

    Args:
        train_set: Training images (or None) and their report.
        val_set: The same of the validation images.

    Returns:
        The data sets without their bad images, and one report.

    Raises:
        DatasetError: If a problem is fatal; the text lists all problems.
    """
    from keras_lightnets.tasks.data import checks

    report = checks.merge([train_set[1], val_set[1]])
    report.raise_if_fatal()
    return Data(train_set[0], val_set[0], report)


def usable(dataset: Any, report: Any) -> Any:
    """Return a data set to evaluate on; its problems go to stderr.

    Args:
        dataset: The data set without its bad images, or None.
        report: Its problems.

    Returns:
        The data set.

    Raises:
        DatasetError: If a problem is fatal; the text lists all problems.
    """
    from keras_lightnets.tasks.data import checks

    if report.problems:
        sys.stderr.write(report.text() + "\n")
    if dataset is None or report.fatal:
        raise checks.DatasetError(report)
    return dataset


def pick_split(task: Task, config: Any, split: str, dataset: Any) -> tuple[Any, bool]:
    """Return the data set of a split and whether it is the training one.

    Args:
        task: Opens the data where none is given.
        config: Its options.
        split: "train" or "val".
        dataset: A data set in place of the config's, or None.

    Returns:
        The data set, and True for "train".

    Raises:
        ValueError: If the split is unknown.
    """
    from keras_lightnets._errors import unknown

    if split not in ("train", "val"):
        raise unknown("split", split, ("train", "val"))
    if dataset is None:
        dataset = getattr(task.open_data(config), split)
    return dataset, split == "train"


def same_classes(labels: Sequence[str], names: Sequence[str], source: str) -> list[int]:
    """Return the data set's class of each label of a model.

    Args:
        labels: The model's class names.
        names: The data set's.
        source: What to call the data set.

    Returns:
        One index per label.

    Raises:
        ValueError: If the names differ; those that only one side has are listed.
    """
    lost = [name for name in labels if name not in names]
    extra = [name for name in names if name not in labels]
    if lost or extra:
        raise ValueError(
            f"The model and {source} have different classes. Only the model has: "
            f"{_some(lost)}. Only the data has: {_some(extra)}. Both must name the "
            "same classes, if need be without images (an empty folder, an unused "
            "category), or the model must be trained anew."
        )
    return [names.index(name) for name in labels]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (" ..." if len(names) > 20 else "") or "none"


def known_config(task: Task, path: Path, ask: str) -> Any:
    """Return the training options that a model carries.

    Args:
        task: Its task.
        path: The model file.
        ask: The flags to give where it carries none.

    Returns:
        The options.

    Raises:
        ConfigError: If it carries none.
    """
    config = run.read_meta(path).get("config")
    if config is None:
        raise ConfigError(f"{path} does not say what it was trained on: give {ask}.")
    return task.config.parse(config)


def _stored(task: Task, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the run that `--resume` names, if there is one."""
    default = task.config.model_fields
    runs, name = (given.get(key, default[key].default) for key in ("runs", "name"))
    file = Path(runs) / name / "config.json"
    return read_json_object(file) if given["resume"] and file.is_file() else {}


def make_app(task: Task) -> Any:
    """Return the typer command line with the verbs train, eval and predict."""
    import typer

    from keras_lightnets.tasks.commands import command

    def train_cli(
        config: Any, resume: bool = False, overwrite: bool = False
    ) -> dict[str, Any]:
        return train(task, config, resume=resume, overwrite=overwrite)

    train_cli.__doc__ = f"Train on your data. {task.title}"
    app = typer.Typer(
        help=task.title,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    switches = {
        "resume": "Continue the run of that name.",
        "overwrite": "Replace the run of that name.",
    }
    trainer = command(
        task.config,
        train_cli,
        switches=switches,
        base=lambda given: _stored(task, given),
    )
    app.command("train")(trainer)
    app.command("eval")(command(task.eval_options, task.evaluate))
    app.command("predict")(command(task.predict_options, task.predict))
    return app


def main(task: Task, arguments: Sequence[str] | None = None) -> None:
    """Run a task's command line.

    Args:
        task: The task.
        arguments: Words behind the program's name; None: those of the process.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    make_app(task)(args=None if arguments is None else list(arguments))
