r"""A class for every pixel: train, evaluate, predict.

Example:
    python tasks/segment.py train --data camvid --image-size 480 --image-height 360
    python tasks/segment.py eval --model runs/segment --data camvid --split val
    python tasks/segment.py eval --model lraspp_mobilenet_v3_large --weights coco_voc \
        --data VOCdevkit/VOC2012 --layout voc --split val
    python tasks/segment.py predict --model runs/segment photo.jpg folder/
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from keras_lightnets.tasks import framework, run
from keras_lightnets.tasks.config import ConfigError, Options
from keras_lightnets.tasks.segmenter import (
    Layout,
    MaskBatches,
    SegmentConfig,
    build_model,
    describe,
    head_config,
    label_table,
    losses,
    make_loss,
    mask_loader,
    open_data,
    open_split,
    with_labels,
)

__all__ = [
    "EvalOptions",
    "PredictOptions",
    "SegmentConfig",
    "batches",
    "build_model",
    "describe",
    "evaluate",
    "evaluate_fn",
    "head_config",
    "main",
    "make_loss",
    "open_data",
    "predict",
    "train",
    "with_labels",
]

SAMPLES = 8


class ModelOptions(Options):
    """Options that say which model looks at pictures, and how."""

    model: str = Field(
        description="Run folder, .keras or .tflite file, or name of a published net."
    )
    weights: str | None = Field(
        None, description="Tag or file, with the name of a published net."
    )
    batch_size: int = Field(4, ge=1, description="Images per step.")
    workers: int = Field(2, ge=1, description="Threads that read images.")
    flip: bool = Field(False, description="Look at the mirrored image too.")
    slide: bool = Field(
        False, description="Look at windows of the image's own resolution."
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="Share that windows share.")


class EvalOptions(ModelOptions):
    """Options of an evaluation."""

    data: str | None = Field(
        None, description="The data set's folder; that of the run if absent."
    )
    layout: Layout = Field("folders", description="How its folders lie.")
    split: str = Field("val", description="Its part.")
    void: str | None = Field(
        None, description="Mask numbers without a class, comma-separated."
    )
    strict: bool = Field(False, description="Refuse data with any problem.")


class PredictOptions(ModelOptions):
    """Options of a prediction."""

    inputs: list[str] = Field(min_length=1, description="Pictures and folders.")
    output: str = Field("predictions", description="Folder of the results.")
    draw: bool = Field(True, description="Write pictures with the classes' colours.")


def train(
    config: SegmentConfig, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train a segmenter and leave a run folder with all results.

    Args:
        config: The options.
        resume: Continue the run of that name.
        overwrite: Replace the run of that name.

    Returns:
        See `framework.train`.
    """
    return framework.train(TASK, config, resume=resume, overwrite=overwrite)


def batches(config: SegmentConfig, split: str = "train", dataset: Any = None) -> Any:
    """Return batches of images and masks.

    Args:
        config: Data, input size, augmentation, seed.
        split: "train" (augmented, shuffled) or "val" (neither).
        dataset: A data set in place of the config's.

    Returns:
        Iterating gives (uint8 (batch, height, width, 3), {"logits": uint8 (batch,
        height, width)}).

    Raises:
        ValueError: If the split is unknown or the data cannot be used.
    """
    dataset, train_split = framework.pick_split(TASK, config, split, dataset)
    config = with_labels(config)
    table = label_table(config.labels, dataset)
    return mask_loader(config, dataset, MaskBatches(train=train_split, table=table))


def evaluate_fn(
    config: SegmentConfig, dataset: Any = None
) -> Callable[[Callable[[np.ndarray], Mapping[str, Any]]], dict[str, Any]]:
    """Return a function that measures any predictor on the validation set.

    Args:
        config: Data, input size and head.
        dataset: A data set in place of the config's validation set.

    Returns:
        evaluate(predictor) -> metrics; the predictor takes uint8 images (batch,
        height, width, 3) and returns {"logits"}, raw, as the model does.
    """
    from keras_lightnets.tasks import labeller

    config = with_labels(config)
    chosen = dataset or open_data(config).val
    table = label_table(config.labels, chosen)
    meta = _meta(describe(config))

    def judge(predictor: Callable[[np.ndarray], Mapping[str, Any]]) -> dict[str, Any]:
        size = config.batch_size
        label = labeller.batch_labeller(predictor, meta, labeller.Views(), size)
        return labeller.evaluate(
            chosen,
            label,
            config.labels,
            table,
            batch_size=size,
            workers=max(1, config.workers),
        )

    return judge


def _meta(about: Mapping[str, Any]) -> Any:
    from keras_lightnets.tools.runtime_labels import LabelMeta

    return LabelMeta.from_dict(about)


def _load(options: ModelOptions) -> tuple[str, Any, Sequence[str]]:
    """Return a model's name, its labeller and its class names."""
    from keras_lightnets.tasks import labeller

    views = labeller.Views(
        flip=options.flip, slide=options.slide, overlap=options.overlap
    )
    published = _published(options)
    if published is not None:
        predict_batch, meta = published
        limit, name = 0, f"{options.model} ({options.weights})"
    else:
        path = run.find_model(options.model)
        meta = _meta(run.read_meta(path))
        predict_batch, limit = labeller.file_predictor(path)
        name = str(path)
    size = limit or options.batch_size
    label = labeller.batch_labeller(predict_batch, meta, views, size)
    return name, label, meta.labels


def _published(options: ModelOptions) -> tuple[Any, Any] | None:
    """Return predictor and meta of a published net, or None for a file."""
    from keras_lightnets import heads
    from keras_lightnets._errors import unknown

    if options.weights is None and options.model not in heads.SEGMENTERS:
        return None
    if options.model not in heads.SEGMENTERS:
        text = unknown("published net", options.model, heads.SEGMENTERS)
        raise ConfigError(
            f"{text} --weights goes with the name of a published net; a run, .keras or "
            ".tflite file holds its own."
        )
    if options.weights is None:
        tags = list(heads.SEGMENTERS[options.model].labels)
        raise ConfigError(
            f"{options.model} needs --weights: a tag ({', '.join(tags)}) or a file."
        )
    from keras_lightnets.tasks import loop
    from keras_lightnets.tools.runtime_labels import LabelMeta

    model, labels = heads.create_segmenter(options.model, options.weights)
    height, width = model.input_shape[1:3]
    meta = LabelMeta("segment", labels, (height, width))
    return loop.predict_batches(model), meta


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Measure a model on images with masks.

    Args:
        options: Model and data.

    Returns:
        "miou", "class_accuracy", "pixel_accuracy", "boundary_f1", "per_class_iou",
        "per_class_accuracy", "confusion", counts of images, and what was used.

    Raises:
        ValueError: If model, data or classes do not fit; the text says what to do.
    """
    from keras_lightnets.tasks import labeller

    name, label, labels = _load(options)
    root, layout, split, void = _data_of(options)
    opened, report = open_split(root, layout, split, void, options.strict)
    dataset = framework.usable(opened, report)
    result = labeller.evaluate(
        dataset,
        label,
        labels,
        label_table(labels, dataset),
        batch_size=options.batch_size,
        workers=options.workers,
    )
    used = {"model": name, "data": root, "split": split}
    return {**used, **result, "left_out_images": len(report.left_out)}


def _data_of(options: EvalOptions) -> tuple[str, str, str, str | None]:
    """Return folder, layout, split and void: as given, else those of the run."""
    if options.data is not None:
        return options.data, options.layout, options.split, options.void
    path = run.find_model(options.model)
    known = framework.known_config(TASK, path, "--data FOLDER")
    root = str(known.val_data or known.data)
    return root, known.layout, known.val_split, known.void


def measure_file(config: SegmentConfig, path: Path) -> dict[str, Any]:
    """Measure a model file on a run's validation images."""
    return evaluate(
        EvalOptions(
            model=str(path),
            data=config.val_data or config.data,
            layout=config.layout,
            split=config.val_split,
            void=config.void,
        )
    )


def predict(options: PredictOptions) -> dict[str, Any]:
    """Label the pixels of pictures, colour them and write the masks.

    Args:
        options: Pictures, model and where the results go.

    Returns:
        "images": per picture its path, "mask" (a PNG of class numbers with a
        palette) and "shares" (class -> share of the pixels), or the error; "output":
        the folder with predictions.json, masks and, with `draw`, the pictures.

    Raises:
        ValueError: If the model or a path cannot be used.
    """
    from keras_lightnets.tasks import pictures, plots

    name, label, labels = _load(options)
    output = Path(options.output)
    files = pictures.list_pictures(options.inputs)
    names = pictures.picture_names(files)

    def about(item: pictures.Answer) -> dict[str, Any]:
        mask = (output / names[item.index]).with_suffix(".labels.png")
        plots.save_mask(mask, item.result)
        counts = np.bincount(item.result.ravel(), minlength=len(labels))
        shares = {
            labels[i]: round(float(counts[i] / item.result.size), 5)
            for i in np.argsort(-counts, kind="stable")
            if counts[i]
        }
        return {"mask": str(mask), "shares": shares}

    def draw(file: Path, item: pictures.Answer) -> None:
        plots.save_picture(file, plots.draw_mask(item.image, item.result, labels))

    drawing = draw if options.draw else None
    return pictures.predict(options, Path(name), label, about, drawing)


def _draw_results(config: SegmentConfig, data: framework.Data, record: Any) -> None:
    """Draw the first validation images with the best model's masks."""
    from keras_lightnets.tasks import pictures, plots

    folder = config.folder
    options = ModelOptions(model=str(folder), batch_size=SAMPLES)
    _, label, labels = _load(options)
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    count = min(SAMPLES, len(data.val))
    for item in pictures.answer_all(count, lambda i: data.val.sample(i)[0], label):
        if isinstance(item, pictures.Answer):
            name = Path(data.val.records[item.index].file_name).stem
            picture = plots.draw_mask(item.image, item.result, labels)
            plots.save_picture(samples / f"{item.index:02d}_{name}.jpg", picture)


TASK = framework.Task(
    name="segment",
    title="A class for every pixel, on images with masks.",
    monitor="miou",
    curves=("miou", "class_accuracy", "pixel_accuracy", "boundary_f1"),
    config=SegmentConfig,
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
    from keras_lightnets.tasks import segment

    segment.main()
