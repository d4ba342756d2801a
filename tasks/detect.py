r"""Object detection on COCO-format data: train, evaluate, predict.

Example:
    python tasks/detect.py train --data images --annotations train.json \
        --val-annotations val.json --name birds
    python tasks/detect.py eval --model runs/birds --data images --annotations val.json
    python tasks/detect.py predict --model runs/birds photo.jpg folder/
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from keras_lightnets.tasks import framework, run
from keras_lightnets.tasks.config import ConfigError, Options
from keras_lightnets.tasks.detector import (
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

SAMPLES = 8
SHOWN_SCORE = 0.3


SUPPRESSION: Any = Field(
    "hard", description="Remove overlapping boxes, or only lower their scores (soft)."
)
CLASS_AGNOSTIC: Any = Field(False, description="Suppress boxes of other classes too.")


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
    suppression: Literal["hard", "soft"] = SUPPRESSION
    class_agnostic: bool = CLASS_AGNOSTIC


class PredictOptions(Options):
    """Options of a prediction."""

    inputs: list[str] = Field(min_length=1, description="Pictures and folders.")
    model: str = Field(description="Run folder, .keras or .tflite file.")
    output: str = Field("predictions", description="Folder of the results.")
    score: float = Field(SHOWN_SCORE, ge=0, lt=1, description="Least score.")
    nms_iou: float = Field(0.5, gt=0, le=1, description="Overlap limit of a class.")
    max_detections: int = Field(100, ge=1, description="Detections per image.")
    suppression: Literal["hard", "soft"] = SUPPRESSION
    class_agnostic: bool = CLASS_AGNOSTIC
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
    return framework.train(TASK, config, resume=resume, overwrite=overwrite)


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
    from keras_lightnets.tasks import finder
    from keras_lightnets.tasks.data import augment, loader

    dataset, train_split = framework.pick_split(TASK, config, split, dataset)
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


def _draw_results(config: DetectConfig, data: framework.Data, record: Any) -> None:
    """Draw precision and the first validation images with what is found in them."""
    from keras_lightnets.tasks import finder, metrics, pictures, plots

    folder = config.folder
    curve = record.metrics["best"]["pr_curve"]
    plots.plot_precision(curve, metrics.RECALLS, folder / "precision_recall.png")
    limits = finder.Limits(score=SHOWN_SCORE, iou=config.nms_iou)
    find, meta = _load_finder(folder / "best.keras", limits, SAMPLES)
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    count = min(SAMPLES, len(data.val))
    for item in pictures.answer_all(count, lambda i: data.val.sample(i)[0], find):
        if isinstance(item, pictures.Answer):
            name = Path(data.val.records[item.index].file_name).stem
            _draw(samples / f"{item.index:02d}_{name}.jpg", item, meta)


def _limits(options: EvalOptions | PredictOptions, score: float = 0.001) -> Any:
    from keras_lightnets.tasks import finder

    return finder.Limits(
        score=score,
        iou=options.nms_iou,
        count=options.max_detections,
        suppression=options.suppression,
        class_agnostic=options.class_agnostic,
    )


def _load_finder(path: Path, limits: Any, batch_size: int) -> tuple[Any, Any]:
    """Return the finder of a model file and its description."""
    from keras_lightnets.tasks import finder
    from keras_lightnets.tools import runtime

    meta = runtime.Meta.from_dict(run.read_meta(path))
    if path.suffix == ".tflite":
        if not limits.plain:
            raise ConfigError(
                "A .tflite file suppresses boxes class by class, as on the device: "
                "suppression='soft' and class_agnostic need the run or .keras file."
            )
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
    from keras_lightnets.tasks.data import coco

    path = run.find_model(options.model)
    limits = _limits(options)
    images, annotations = _data_of(options, path)
    opened, report = coco.open_coco(images, annotations, strict=options.strict)
    dataset = framework.usable(opened, report)
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
    ask = "--data FOLDER and --annotations FILE.json"
    known = framework.known_config(TASK, path, ask)
    return str(known.val_data or known.data), str(known.val_annotations)


def measure_file(config: DetectConfig, path: Path) -> dict[str, Any]:
    """Measure a model file on a run's validation images."""
    return evaluate(
        EvalOptions(
            model=str(path),
            data=config.val_data or config.data,
            annotations=config.val_annotations,
        )
    )


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
    from keras_lightnets.tasks import pictures

    path = run.find_model(options.model)
    limits = _limits(options, options.score)
    find, meta = _load_finder(path, limits, options.batch_size)

    def draw(file: Path, item: pictures.Answer) -> None:
        _draw(file, item, meta)

    return pictures.predict(
        options,
        path,
        find,
        lambda item: {"objects": _objects(item, meta)},
        draw if options.draw else None,
    )


def _objects(found: Any, meta: Any) -> list[dict[str, Any]]:
    objects = found.result
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

    objects = found.result
    picture = plots.draw_boxes(
        found.image, objects.boxes, objects.labels, meta.labels, objects.scores
    )
    plots.save_picture(path, picture)


def _meta(about: Mapping[str, Any]) -> Any:
    from keras_lightnets.tools import runtime

    return runtime.Meta.from_dict(about)


TASK = framework.Task(
    name="detect",
    title="Object detection on COCO-format data.",
    monitor="mAP",
    curves=("mAP", "mAP50", "mAP75"),
    config=DetectConfig,
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
    from keras_lightnets.tasks import detect

    detect.main()
