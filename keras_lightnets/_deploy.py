"""From a run folder to verified files: where tasks and tools meet.

`keras_lightnets.__main__` is the command line of this; nothing else imports it.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from keras_lightnets._errors import unknown
from keras_lightnets.tasks import detect, run
from keras_lightnets.tasks.config import Options
from keras_lightnets.tools.export.formats import FORMATS

EXPORTS = "export"
QAT_STATE = "qat.h5"


class DeployOptions(Options):
    """What to make of a trained run."""

    run: str = Field(description="Run folder.")
    formats: tuple[str, ...] = Field(("edgetpu",), description="Names in FORMATS.")
    qat_epochs: int = Field(
        0, ge=0, description="Epochs of quantisation-aware training; 0: after training."
    )
    qat_learning_rate: float = Field(2e-4, gt=0, description="Its peak rate.")
    qat_batch_size: int = Field(8, ge=1, description="Its images per step.")
    calibration: int = Field(100, ge=1, description="Training pictures for ranges.")
    io: str | None = Field(None, description="Type of the int8 files' ends.")
    postprocess: bool = Field(False, description="Append the detection op.")
    evaluate: bool = Field(True, description="Measure every file on the val images.")


def deploy(options: DeployOptions) -> dict[str, Any]:
    """Quantise, export, run and measure.

    Args:
        options: The run and what to make of it.

    Returns:
        "float", "qat" (or None) and per format the measured figures; also written
        to RUN/export/export.json.

    Raises:
        ValueError: If the run, a format or an option is not legal.
    """
    for name in options.formats:
        if name not in FORMATS:
            raise unknown("export format", name, FORMATS)
    source = _Source(options)
    result: dict[str, Any] = {"run": str(source.folder), "qat": None}
    if options.evaluate:
        result["float"] = source.judge(source.predictor())
    quantised = None
    if options.qat_epochs:
        quantised, history = _train_quantised(source, options)
        result["qat"] = {"history": history}
        if options.evaluate:
            result["qat"] |= source.judge(_predictor(quantised))
    result["files"] = {
        name: _export(source, name, quantised, options) for name in options.formats
    }
    run.write_json(source.folder / EXPORTS / "export.json", result)
    return result


class _Source:
    """A trained run: model, options, data, and the task's own callables."""

    def __init__(self, options: DeployOptions) -> None:
        import keras_lightnets

        path = run.find_model(options.run)
        self.folder = path.parent
        self.about = run.read_meta(path)
        if "config" not in self.about:
            raise ValueError(
                f"{path} does not say what it was trained on. Give the folder of a run "
                "that `train` has written."
            )
        self.config = detect.DetectConfig.parse(self.about["config"])
        self.data = detect.open_data(self.config)
        self.model = keras_lightnets.load_model(path)
        self.judge = detect.evaluate_fn(self.config, self.data.val)

    def predictor(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        from keras_lightnets.tasks.loop import predict_batches

        return predict_batches(self.model)

    def pictures(self, part: str, count: int) -> list[np.ndarray]:
        """Return the first pictures of "train" or "val" as the network sees them."""
        dataset = getattr(self.data, part)
        source = detect.batches(self.config, "val", dataset)
        found: list[np.ndarray] = []
        for images, _ in source:
            found.extend(images)
            if len(found) >= count:
                break
        source.close()
        return found[:count]

    def frozen(self) -> tuple[str, ...]:
        """Return the names of the layers that the run kept as they were."""
        if self.config.freeze is None:
            return ()
        twin = detect.build_model(self.config.replace(weights=None))
        return tuple(la.name for la in twin.layers if la.weights and not la.trainable)


def _predictor(model: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in model(images).items()}

    return predict


def _batched(pictures: list[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(pictures), size):
        yield np.stack(pictures[start : start + size])


def _train_quantised(source: _Source, options: DeployOptions) -> tuple[Any, list[Any]]:
    from keras_lightnets.tools.quantize import qat

    size = options.qat_batch_size
    pictures = source.pictures("train", options.calibration)
    model = qat.prepare(source.model, _batched(pictures, size))
    config = source.config.replace(batch_size=size)
    batches = detect.batches(config, "train", source.data.train)

    def epoch(number: int) -> Any:
        batches.set_epoch(source.config.epochs + number)
        return batches

    def after(trained: Any, logs: dict[str, float]) -> None:
        folder = source.folder / EXPORTS
        folder.mkdir(parents=True, exist_ok=True)
        qat.save(trained, folder / QAT_STATE)
        sys.stderr.write(f"qat epoch {logs['epoch']} loss {logs['loss']:.4f}\n")

    settings = qat.Settings(
        epochs=options.qat_epochs,
        learning_rate=options.qat_learning_rate,
        frozen=source.frozen(),
    )
    history = qat.train(model, epoch, detect.make_loss(config), settings, after)
    batches.close()
    return model, history


def _export(
    source: _Source, name: str, quantised: Any, options: DeployOptions
) -> dict[str, Any]:
    from keras_lightnets.tools import runtime
    from keras_lightnets.tools.export import formats
    from keras_lightnets.tools.export.postprocess import Postprocess

    row = FORMATS[name]
    int8 = row.kind == "int8"
    model = quantised if int8 and quantised is not None else source.model
    pictures = None
    if int8 and quantised is None:
        pictures = source.pictures("train", options.calibration)
    path = source.folder / EXPORTS / name / "model.tflite"
    artifact = formats.export(
        model,
        name,
        path,
        calibration=pictures,
        samples=source.pictures("val", formats.SAMPLES),
        io=options.io if int8 else None,
        detector=formats.Detector(
            runtime.Meta.from_dict(source.about),
            Postprocess() if options.postprocess else None,
        ),
    )
    found = artifact.json()
    if options.evaluate:
        config = source.config
        found["metrics"] = detect.evaluate(
            detect.EvalOptions(
                model=str(path),
                data=config.val_data or config.data,
                annotations=config.val_annotations,
            )
        )
    return found
