r"""Object detection on COCO-format data: train, evaluate, predict.

Example:
    python tasks/detect.py train --data images --annotations train.json \
        --val-annotations val.json --name birds
    python tasks/detect.py eval --model runs/birds --data images --annotations val.json
    python tasks/detect.py predict --model runs/birds photo.jpg folder/
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from keras_lightnets.tasks import run
from keras_lightnets.tasks.config import ConfigError, Options, read_json_object
from keras_lightnets.tasks.detector import (
    Data,
    DetectConfig,
    build_model,
    describe,
    encoder,
    find_head,
    head_config,
    losses,
    make_loss,
    open_data,
    with_labels,
)

__all__ = [
    "DetectConfig",
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

MONITOR = "mAP"
CURVES = ("mAP", "mAP50", "mAP75")
SAMPLES = 8
SHOWN_SCORE = 0.3


class EvalOptions(Options):
    """Options of an evaluation."""

    model: str = Field(description="Run folder, .keras or .tflite file.")
    data: str | None = Field(
        None, description="Images folder; the run's validation images if absent."
    )
    annotations: str | None = Field(None, description="Annotations (JSON).")
    batch_size: int = Field(16, ge=1, description="Images per step.")
    workers: int = Field(2, ge=1, description="Threads that read images.")
    strict: bool = Field(False, description="Refuse data with any problem.")
    fast: bool = Field(False, description="Count metrics with hotcoco (extra fast).")
    nms_iou: float = Field(0.55, gt=0, le=1, description="Overlap limit of a class.")
    max_detections: int = Field(100, ge=1, description="Detections per image.")


class PredictOptions(Options):
    """Options of a prediction."""

    inputs: list[str] = Field(min_length=1, description="Pictures and folders.")
    model: str = Field(description="Run folder, .keras or .tflite file.")
    output: str = Field("predictions", description="Folder of the results.")
    score: float = Field(SHOWN_SCORE, ge=0, lt=1, description="Least score.")
    nms_iou: float = Field(0.5, gt=0, le=1, description="Overlap limit of a class.")
    max_detections: int = Field(100, ge=1, description="Detections per image.")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    workers: int = Field(2, ge=1, description="Threads that read images.")
    draw: bool = Field(True, description="Write pictures with boxes.")


def train(
    config: DetectConfig, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train a detector and leave a run folder with all results.

    Args:
        config: The options.
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
    data = open_data(config)
    config = config.replace(labels=config.labels or data.train.names)
    _same_classes(config, data)
    if data.report.problems:
        sys.stderr.write(data.report.text() + "\n")
    from keras_lightnets.tasks import loop

    loop.prepare_backend(config)
    job = _make_job(config, data)
    run.open_folder(config.folder, config, resume=resume, overwrite=overwrite)
    run.write_json(config.folder / "data.json", data.report.json())
    record = loop.fit(job, config.folder)
    _draw_results(config, data, record)
    return {
        "run": str(config.folder),
        "epochs": record.epoch,
        "best": record.metrics["best"],
        "last": record.metrics["last"],
        "data": data.report.counts,
    }


def _make_job(config: DetectConfig, data: Data) -> Any:
    from keras_lightnets.tasks import loop

    source = batches(config, "train", data.train)
    plain = config.replace(freeze=None, freeze_bn=False, precision="float32")
    return loop.Job(
        config=config,
        model=build_model(config),
        twin=build_model(plain),
        loss=losses(config),
        source=source,
        evaluate=_judge(config, data, source),
        monitor=MONITOR,
        meta=describe(config),
    )


def _same_classes(config: DetectConfig, data: Data) -> None:
    from keras_lightnets.tasks import finder

    for part in (data.train, data.val):
        finder.category_order(config.labels, part)


def batches(config: DetectConfig, split: str = "train", dataset: Any = None) -> Any:
    """Return batches of images and training targets.

    Args:
        config: Data, input size, head, augmentation, seed.
        split: "train" (augmented, shuffled) or "val" (neither).
        dataset: A data set in place of the config's.

    Returns:
        A `Loader`: iterating gives (uint8 (batch, size, size, 3), {"boxes": (batch,
        N, 5), "scores": (batch, N)}), what `make_loss` and the model's losses read.

    Raises:
        ValueError: If the split is unknown or the data cannot be used.
    """
    from keras_lightnets._errors import unknown
    from keras_lightnets.tasks import finder
    from keras_lightnets.tasks.data import augment, loader

    if split not in ("train", "val"):
        raise unknown("split", split, ("train", "val"))
    if dataset is None:
        dataset = getattr(open_data(config), split)
    train_split = split == "train"
    config = with_labels(config)
    head = head_config(config)
    anchors = find_head(config).anchors(head)
    finder.category_order(config.labels, dataset)
    classes = [config.labels.index(name) for name in dataset.names]
    side = config.image_size
    options = loader.LoaderOptions(
        drop_remainder=train_split,
        balance=train_split and config.balance == "images",
        workers=config.workers,
        cache_bytes=config.cache_mb * 2**20,
    )
    preset = config.augment if train_split else "none"
    return loader.Loader(
        dataset,
        augment.Augment(preset, (side, side), config.resize),
        config.batch_size,
        seed=config.seed,
        shuffle=train_split,
        encode=encoder(anchors, classes, tuple(head.box_weights)),
        options=options,
    )


def _judge(
    config: DetectConfig, data: Data, source: Any
) -> Callable[[Any], dict[str, Any]]:
    from keras_lightnets.tasks import loop

    judge = evaluate_fn(config, data.val)
    left_out = len(data.report.left_out)

    def judge_model(model: Any) -> dict[str, Any]:
        result = judge(loop.predict_batches(model))
        skipped = {"skipped_train_images": len(source.skipped)}
        return {**result, **skipped, "left_out_images": left_out}

    return judge_model


def evaluate_fn(
    config: DetectConfig, dataset: Any = None
) -> Callable[[Callable[[np.ndarray], Mapping[str, Any]]], dict[str, Any]]:
    """Return a function that measures any predictor on the validation set.

    Args:
        config: Data, input size and head.
        dataset: A data set in place of the config's validation set.

    Returns:
        evaluate(predictor) -> metrics; the predictor takes uint8 images (batch,
        size, size, 3) and returns {"boxes", "scores"}, raw, as the model does.
    """
    from keras_lightnets.tasks import finder
    from keras_lightnets.tools import runtime

    config = with_labels(config)
    chosen = dataset or open_data(config).val
    meta = runtime.Meta.from_dict(describe(config))
    limits = finder.Limits(iou=config.nms_iou, count=config.max_detections)
    size = config.batch_size

    def judge(predictor: Callable[[np.ndarray], Mapping[str, Any]]) -> dict[str, Any]:
        return finder.evaluate(
            chosen,
            finder.batch_finder(predictor, meta, limits, size),
            meta,
            batch_size=size,
            workers=max(1, config.workers),
            fast=config.fast,
        )

    return judge


def _draw_results(config: DetectConfig, data: Data, record: Any) -> None:
    """Draw curves and the first validation images with what is found in them."""
    from keras_lightnets.tasks import finder, metrics, plots

    folder = config.folder
    plots.plot_history(record.history, folder / "curves.png", CURVES)
    curve = record.metrics["best"]["pr_curve"]
    plots.plot_precision(curve, metrics.RECALLS, folder / "precision_recall.png")
    limits = finder.Limits(score=SHOWN_SCORE, iou=config.nms_iou)
    find, meta = _load_finder(folder / "best.keras", limits, SAMPLES)
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    count = min(SAMPLES, len(data.val))
    for item in finder.find_in(count, lambda i: data.val.sample(i)[0], find):
        if isinstance(item, finder.Found):
            name = Path(data.val.records[item.index].file_name).stem
            _draw(samples / f"{item.index:02d}_{name}.jpg", item, meta)


def _load_finder(path: Path, limits: Any, batch_size: int) -> tuple[Any, Any]:
    """Return the finder of a model file and its description."""
    from keras_lightnets.tasks import finder
    from keras_lightnets.tools import runtime

    meta = runtime.Meta.from_dict(run.read_meta(path))
    if path.suffix == ".tflite":
        detector = runtime.Detector(path, meta)

        def find(pictures: Sequence[np.ndarray]) -> list[Any]:
            return [
                detector.detect(picture, limits.score, limits.iou, limits.count)
                for picture in pictures
            ]

        return find, meta
    import keras_lightnets
    from keras_lightnets.tasks import loop

    model = keras_lightnets.load_model(path)
    predict_batch = loop.predict_batches(model)
    return finder.batch_finder(predict_batch, meta, limits, batch_size), meta


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Measure a trained model with COCO metrics.

    Args:
        options: Model and data.

    Returns:
        The twelve COCO figures, per-class AP, counts of images, and what was used.

    Raises:
        ValueError: If model, data or classes do not fit; the text says what to do.
    """
    from keras_lightnets.tasks import finder
    from keras_lightnets.tasks.data import checks, coco

    path = run.find_model(options.model)
    limits = finder.Limits(iou=options.nms_iou, count=options.max_detections)
    images, annotations = _data_of(options, path)
    dataset, report = coco.open_coco(images, annotations, strict=options.strict)
    if report.problems:
        sys.stderr.write(report.text() + "\n")
    if dataset is None or report.fatal:
        raise checks.DatasetError(report)
    find, meta = _load_finder(path, limits, options.batch_size)
    result = finder.evaluate(
        dataset,
        find,
        meta,
        batch_size=options.batch_size,
        workers=options.workers,
        fast=options.fast,
    )
    used = {"model": str(path), "data": images, "annotations": annotations}
    return {**used, **result, "left_out_images": len(report.left_out)}


def _data_of(options: EvalOptions, path: Path) -> tuple[str, str]:
    """Return images folder and annotations: those given, else those of the run."""
    if (options.data is None) != (options.annotations is None):
        raise ConfigError("--data and --annotations go together; give both or none.")
    if options.data is not None and options.annotations is not None:
        return options.data, options.annotations
    config = run.read_meta(path).get("config")
    if config is None:
        raise ConfigError(
            f"{path} does not say what it was trained on: give --data FOLDER and "
            "--annotations FILE.json."
        )
    known = DetectConfig.parse(config)
    return str(known.val_data or known.data), str(known.val_annotations)


def predict(options: PredictOptions) -> dict[str, Any]:
    """Find objects in pictures, draw them and write them as JSON.

    Args:
        options: Pictures, model and where the results go.

    Returns:
        "images": per picture its path and objects (label, score, box as x1, y1, x2,
        y2 in pixels), or the error; "output": the folder with predictions.json and,
        with `draw`, the pictures.

    Raises:
        ValueError: If the model or a path cannot be used.
    """
    from keras_lightnets.tasks import finder
    from keras_lightnets.tasks.data import images

    path = run.find_model(options.model)
    limits = finder.Limits(
        score=options.score, iou=options.nms_iou, count=options.max_detections
    )
    files = finder.list_pictures(options.inputs)
    find, meta = _load_finder(path, limits, options.batch_size)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)

    def read(index: int) -> np.ndarray:
        return images.read_image(files[index])

    stream = finder.find_in(
        len(files), read, find, batch_size=options.batch_size, workers=options.workers
    )
    rows: list[dict[str, Any]] = []
    names = _picture_names(files)
    for index, item in enumerate(stream):
        if not isinstance(item, finder.Found):
            rows.append({"file": str(files[index]), "error": item.detail})
            continue
        rows.append({"file": str(files[index]), "objects": _objects(item, meta)})
        if options.draw:
            _draw(output / names[index], item, meta)
            rows[-1]["picture"] = str(output / names[index])
    result = {"model": str(path), "output": str(output), "images": rows}
    run.write_json(output / "predictions.json", result)
    return result


def _picture_names(files: Sequence[Path]) -> list[str]:
    """Name the drawn pictures; equal file names get a number."""
    names: list[str] = []
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in names:
            number += 1
            name = f"{file.stem}_{number}.jpg"
        names.append(name)
    return names


def _objects(found: Any, meta: Any) -> list[dict[str, Any]]:
    objects = found.objects
    return [
        {
            "label": meta.labels[int(label)],
            "score": round(float(score), 5),
            "box": [round(float(value), 2) for value in box],
        }
        for box, score, label in zip(
            objects.boxes, objects.scores, objects.labels, strict=True
        )
    ]


def _draw(path: Path, found: Any, meta: Any) -> None:
    from keras_lightnets.tasks import plots

    objects = found.objects
    picture = plots.draw_boxes(
        found.image, objects.boxes, objects.labels, meta.labels, objects.scores
    )
    plots.save_picture(path, picture)


def _train_cli(
    config: DetectConfig, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train a detector on COCO-format data."""
    return train(config, resume=resume, overwrite=overwrite)


def _stored(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the run that `--resume` names, if there is one."""
    default = DetectConfig.model_fields
    runs, name = (given.get(key, default[key].default) for key in ("runs", "name"))
    file = Path(runs) / name / "config.json"
    return read_json_object(file) if given["resume"] and file.is_file() else {}


def make_app() -> Any:
    """Return the typer command line with the verbs train, eval and predict."""
    import typer

    from keras_lightnets.tasks.commands import command

    app = typer.Typer(
        help="Object detection on COCO-format data.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    switches = {
        "resume": "Continue the run of that name.",
        "overwrite": "Replace the run of that name.",
    }
    trainer = command(DetectConfig, _train_cli, switches=switches, base=_stored)
    app.command("train")(trainer)
    app.command("eval")(command(EvalOptions, evaluate))
    app.command("predict")(command(PredictOptions, predict))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words behind the program's name; None: those of the process.
    """
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    make_app()(args=None if arguments is None else list(arguments))


if __name__ == "__main__":
    # As a script this file has another module name; work with the package's one.
    from keras_lightnets.tasks import detect

    detect.main()
