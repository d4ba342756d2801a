"""A fourth task, whole in one file: the number that a picture's folder is named by."""

import functools
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from pydantic import Field

from keras_lightnets.tasks import framework, run
from keras_lightnets.tasks.config import Options, TaskConfig
from keras_lightnets.tasks.data import batches as loading
from keras_lightnets.tasks.data import folder, records


class BrightnessConfig(TaskConfig):
    """Options of a training."""

    task: ClassVar[str] = "brightness"
    name: str = Field("brightness", description="Name of the run's folder.")


class EvalOptions(Options):
    """Options of an evaluation."""

    model: str = Field(description="Run folder.")
    data: str | None = Field(None, description="Images folder; the run's if absent.")


class PredictOptions(Options):
    """Options of a prediction."""

    inputs: list[str] = Field(min_length=1, description="Pictures and folders.")
    model: str = Field(description="Run folder.")
    output: str = Field("predictions", description="Folder of the results.")
    batch_size: int = 4
    workers: int = 1


def fit_image(image, size):
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


class Loader(loading.BatchLoader):
    """Batches of images and numbers."""

    def read(self, index):
        image, label = self.dataset.sample(index)
        return image, np.array([int(self.dataset.names[label]) / 255], np.float32)

    def example(self, sample, seed):
        return fit_image(sample[0], self.size), {"value": sample[1]}


def open_split(path):
    return records.open_checked(folder.list_folders(path))


def open_data(config):
    return framework.open_pair(open_split(config.data), open_split(config.val_data))


def batches(config, split="train", dataset=None):
    dataset, train = framework.pick_split(TASK, config, split, dataset)
    options = loading.LoaderOptions(drop_remainder=train, workers=1)
    return Loader(
        *(dataset, config.size, config.batch_size), shuffle=train, options=options
    )


def build_model(config):
    import keras

    image = keras.Input((*config.size, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, {"value": keras.layers.Dense(1, name="top_value")(x)})


def evaluate_fn(config, dataset=None):
    def judge(predictor):
        errors = []
        for images, targets in batches(config, "val", dataset):
            found = predictor(images)["value"]
            errors += np.abs(found - targets["value"]).ravel().tolist()
        close = float(np.mean(np.less(errors, 0.1)))
        return {"close": close, "error": float(np.mean(errors)), "images": len(errors)}

    return judge


def describe(config):
    about = {"task": "brightness", "labels": list(config.labels)}
    return {**about, "size": list(config.size), "config": config.to_dict()}


def load(model):
    from keras_lightnets import load_model
    from keras_lightnets.tasks import loop

    path = run.find_model(model)
    config = framework.known_config(TASK, path, "the run's folder")
    return path, config, loop.predict_batches(load_model(path))


def evaluate(options):
    _, config, predictor = load(options.model)
    opened = open_split(options.data or config.val_data)
    return evaluate_fn(config, framework.usable(*opened))(predictor)


def measure_file(config, path):
    return evaluate(EvalOptions(model=str(path), data=config.val_data))


def predict(options):
    from keras_lightnets.tasks import pictures

    path, config, predictor = load(options.model)

    def answer(images):
        batch = np.stack([fit_image(image, config.size) for image in images])
        return list(predictor(batch)["value"][:, 0])

    def about(item):
        return {"value": round(255 * float(item.result), 1)}

    return pictures.predict(options, Path(path), answer, about, None)


def meta(about: Any) -> Any:
    return about


TASK = framework.Task(
    name="brightness",
    title="A number for every image.",
    monitor="close",
    curves=("close", "error"),
    config=BrightnessConfig,
    eval_options=EvalOptions,
    predict_options=PredictOptions,
    open_data=open_data,
    build_model=build_model,
    losses=lambda config: {"value": "mse"},
    batches=batches,
    evaluate_fn=evaluate_fn,
    describe=describe,
    draw=lambda config, data, record: None,
    evaluate=evaluate,
    measure_file=measure_file,
    predict=predict,
    meta=meta,
)

main = functools.partial(framework.main, TASK)
