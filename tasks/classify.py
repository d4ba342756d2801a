r"""A class for every image: train, evaluate, predict.

Example:
    python tasks/classify.py train --data flowers/train --val-data flowers/val
    python tasks/classify.py eval --model runs/classify --data flowers/val
    python tasks/classify.py eval --model efficientnet_lite0 --weights imagenet \
        --data images --annotations labels.csv
    python tasks/classify.py predict --model runs/classify photo.jpg folder/
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from keras_lightnets.tasks import framework, run
from keras_lightnets.tasks.classifier import (
    ClassifyConfig,
    build_model,
    class_loader,
    describe,
    list_images,
    losses,
    open_data,
    with_labels,
)
from keras_lightnets.tasks.config import ConfigError, Options

__all__ = [
    "ClassifyConfig",
    "EvalOptions",
    "PredictOptions",
    "batches",
    "build_model",
    "describe",
    "evaluate",
    "evaluate_fn",
    "main",
    "make_loss",
    "open_data",
    "predict",
    "train",
    "with_labels",
]


class ModelOptions(Options):
    """Options that say which model looks at pictures."""

    model: str = Field(
        description="Run folder, .keras or .tflite file, or a network's name."
    )
    weights: str | None = Field(
        None, description="Published tag, with a network's name: imagenet."
    )
    batch_size: int = Field(16, ge=1, description="Images per step.")
    workers: int = Field(2, ge=1, description="Threads that read images.")


class EvalOptions(ModelOptions):
    """Options of an evaluation."""

    data: str | None = Field(
        None, description="Images folder; the run's validation images if absent."
    )
    annotations: str | None = Field(
        None, description="CSV of file and class; absent: one folder per class."
    )
    strict: bool = Field(False, description="Refuse data with any problem.")


class PredictOptions(ModelOptions):
    """Options of a prediction."""

    inputs: list[str] = Field(min_length=1, description="Pictures and folders.")
    output: str = Field("predictions", description="Folder of the results.")
    top: int = Field(5, ge=1, description="Classes shown of each picture.")


def train(
    config: ClassifyConfig, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train a classifier and leave a run folder with all results.

    Args:
        config: The options.
        resume: Continue the run of that name.
        overwrite: Replace the run of that name.

    Returns:
        See `framework.train`.
    """
    return framework.train(TASK, config, resume=resume, overwrite=overwrite)


def batches(config: ClassifyConfig, split: str = "train", dataset: Any = None) -> Any:
    """Return batches of images and class shares.

    Args:
        config: Data, input size, augmentation, seed.
        split: "train" (augmented, shuffled) or "val" (neither).
        dataset: A data set in place of the config's.

    Returns:
        Iterating gives (uint8 (batch, size, size, 3), {"logits": float32 (batch,
        classes)}).

    Raises:
        ValueError: If the split is unknown or the data cannot be used.
    """
    dataset, train_split = framework.pick_split(TASK, config, split, dataset)
    return class_loader(with_labels(config), dataset, train_split)


def make_loss(config: ClassifyConfig) -> Any:
    """Return the task's whole loss, for training loops other than Keras `fit`."""
    return framework.joined_loss(losses(with_labels(config)))


def evaluate_fn(
    config: ClassifyConfig, dataset: Any = None
) -> Callable[[Callable[[np.ndarray], Mapping[str, Any]]], dict[str, Any]]:
    """Return a function that measures any predictor on the validation set.

    Args:
        config: Data and input size.
        dataset: A data set in place of the config's validation set.

    Returns:
        evaluate(predictor) -> metrics; the predictor takes uint8 images (batch,
        size, size, 3) and returns {"logits"}, raw, as the model does.
    """
    config = with_labels(config)
    chosen = dataset or open_data(config).val
    meta = _meta(describe(config))

    def judge(predictor: Callable[[np.ndarray], Mapping[str, Any]]) -> dict[str, Any]:
        size, workers = config.batch_size, max(1, config.workers)
        return _measure(chosen, _answerer(predictor, meta, size), meta, size, workers)

    return judge


def _meta(about: Mapping[str, Any]) -> Any:
    from keras_lightnets.tools.runtime_labels import LabelMeta

    return LabelMeta.from_dict(about)


def _answerer(predict_batch: Any, meta: Any, batch_size: int) -> Any:
    """Return a function from pictures to class probabilities."""
    from keras_lightnets.tools import runtime_labels

    def classify(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for start in range(0, len(pictures), batch_size):
            part = pictures[start : start + batch_size]
            inputs = np.zeros((batch_size, *meta.size, 3), np.uint8)
            for place, picture in enumerate(part):
                inputs[place] = runtime_labels.prepare(picture, meta)[0]
            logits = np.asarray(predict_batch(inputs)["logits"])[: len(part)]
            found += list(runtime_labels.probabilities(logits))
        return found

    return classify


def _measure(
    dataset: Any, classify: Any, meta: Any, batch_size: int, workers: int
) -> dict[str, Any]:
    from keras_lightnets.tasks import label_metrics, pictures

    order = framework.same_classes(meta.labels, dataset.names, dataset.source)
    table = np.argsort(order)
    counts = label_metrics.TopK(len(meta.labels))
    skipped = 0
    stream = pictures.answer_all(
        len(dataset),
        lambda index: dataset.sample(index)[0],
        classify,
        batch_size=batch_size,
        workers=workers,
    )
    for item in stream:
        if isinstance(item, pictures.Answer):
            truth = dataset.records[item.index].label
            counts.update(int(table[truth]), item.result)
        else:
            skipped += 1
    result = counts.result(meta.labels)
    return {**result, "images": len(dataset), "skipped_images": skipped}


def _load(options: ModelOptions) -> tuple[str, Any, Any]:
    """Return a model's name, what classifies pictures, and its meta."""
    from keras_lightnets.tasks import labeller

    if options.weights is not None:
        predict_batch, meta = _published(options.model, options.weights)
        limit, name = 0, f"{options.model} ({options.weights})"
    else:
        path = run.find_model(options.model)
        meta = _meta(run.read_meta(path))
        predict_batch, limit = labeller.file_predictor(path)
        name = str(path)
    return name, _answerer(predict_batch, meta, limit or options.batch_size), meta


def _published(name: str, tag: str) -> tuple[Any, Any]:
    """Return a published classifier and how its publisher prepares images."""
    from keras_lightnets import create_model, get_spec
    from keras_lightnets._inputs import imagenet_classes
    from keras_lightnets.tasks import loop
    from keras_lightnets.tools.runtime_labels import LabelMeta

    spec = get_spec(name)
    entry = spec.find_weights(tag)
    rule = entry.preprocessing if entry is not None else spec.preprocessing
    model = create_model(
        name,
        weights=tag,
        input_shape=(rule.size, rule.size, 3),
        endpoints=("logits",),
    )
    meta = LabelMeta(
        "classify",
        tuple(wnid for wnid, _ in imagenet_classes()),
        (rule.size, rule.size),
        resize="crop",
        crop=rule.crop,
        interpolation=rule.interpolation,
    )
    return loop.predict_batches(model), meta


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Measure a model on images with classes, prepared as its publisher does.

    Args:
        options: Model and data. With a network's name, the classes are ImageNet's:
            folders are named by WordNet ids, tables hold ids or numbers.

    Returns:
        "top1", "top5", "class_accuracy", "correct", "count"; with up to 100 classes
        "per_class" and "confusion"; counts of images, and what was used.

    Raises:
        ValueError: If model, data or classes do not fit; the text says what to do.
    """
    from keras_lightnets.tasks.data import records

    name, classify, meta = _load(options)
    folder, table = _data_of(options)
    listed = list_images(folder, table, meta.labels)
    if options.weights is not None:
        listed = _within(listed, meta.labels)
    opened, report = records.open_checked(listed, strict=options.strict)
    dataset = framework.usable(opened, report)
    result = _measure(dataset, classify, meta, options.batch_size, options.workers)
    used = {"model": name, "data": folder, "annotations": table}
    return {**used, **result, "left_out_images": len(report.left_out)}


def _within(dataset: Any, labels: tuple[str, ...]) -> Any:
    """Give a data set of some of a model's classes all of them.

    Raises:
        ValueError: If it has a class that the model lacks.
    """
    from keras_lightnets.tasks.data import folder

    if set(dataset.names) - set(labels):
        framework.same_classes(labels, dataset.names, dataset.source)
    rows = [
        folder.Record(r.file_name, r.path, labels.index(dataset.names[r.label]))
        for r in dataset.records
    ]
    return folder.ClassDataset(dataset.source, labels, rows, dataset.problems)


def _data_of(options: EvalOptions) -> tuple[str, str | None]:
    """Return images folder and table: those given, else those of the run."""
    if options.data is not None:
        return options.data, options.annotations
    if options.weights is not None or options.annotations is not None:
        raise ConfigError("Give --data FOLDER: the folder of the images.")
    known = framework.known_config(
        TASK, run.find_model(options.model), "--data FOLDER (and --annotations FILE)"
    )
    return str(known.val_data or known.data), known.val_annotations


def measure_file(config: ClassifyConfig, path: Path) -> dict[str, Any]:
    """Measure a model file on a run's validation images."""
    return evaluate(
        EvalOptions(
            model=str(path),
            data=config.val_data or config.data,
            annotations=config.val_annotations,
        )
    )


def predict(options: PredictOptions) -> dict[str, Any]:
    """Name the most probable classes of pictures.

    Args:
        options: Pictures, model and where the result goes.

    Returns:
        "images": per picture its path and "classes" (label and score, best first),
        or the error; "output": the folder with predictions.json.

    Raises:
        ValueError: If the model or a path cannot be used.
    """
    from keras_lightnets.tasks import pictures

    name, classify, meta = _load(options)

    def about(item: pictures.Answer) -> dict[str, Any]:
        best = np.argsort(-item.result, kind="stable")[: options.top]
        rows = [
            {"label": meta.labels[i], "score": round(float(item.result[i]), 5)}
            for i in best
        ]
        return {"classes": rows}

    return pictures.predict(options, Path(name), classify, about, None)


def _draw_results(config: ClassifyConfig, data: framework.Data, record: Any) -> None:
    """Draw the confusion matrix of the best model."""
    from keras_lightnets.tasks import plots

    matrix = record.metrics["best"].get("confusion")
    if matrix is not None:
        path = config.folder / "confusion.png"
        plots.plot_confusion(np.array(matrix), config.labels, path)


TASK = framework.Task(
    name="classify",
    title="A class for every image, from folders or a table.",
    monitor="top1",
    curves=("top1", "top5", "class_accuracy"),
    config=ClassifyConfig,
    eval_options=EvalOptions,
    predict_options=PredictOptions,
    open_data=open_data,
    build_model=build_model,
    losses=losses,
    batches=batches,
    evaluate_fn=evaluate_fn,
    describe=describe,
    draw=_draw_results,
    evaluate=evaluate,
    measure_file=measure_file,
    predict=predict,
    meta=_meta,
)


# The typer command line, and what runs it: see `framework`.
make_app = functools.partial(framework.make_app, TASK)
main = functools.partial(framework.main, TASK)


if __name__ == "__main__":
    # As a script this file has another module name; work with the package's one.
    from keras_lightnets.tasks import classify

    classify.main()
