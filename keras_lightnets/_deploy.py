"""From a run folder to verified files: where tasks and tools meet.

`keras_lightnets.__main__` is the command line of this.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

import keras_lightnets
from keras_lightnets._errors import unknown
from keras_lightnets.tasks import framework, run
from keras_lightnets.tasks.config import Options
from keras_lightnets.tools.export.formats import FORMATS
from keras_lightnets.tools.fuse import merge_branches

EXPORTS = "export"
QAT_STATE = "qat.h5"


class DeployOptions(Options):
    """What to make of a trained run."""

    run: str = Field(description="Run folder.")
    formats: tuple[str, ...] = Field(
        ("edgetpu",), description=f"Several in one go: {', '.join(FORMATS)}."
    )
    qat_epochs: int = Field(
        0, ge=0, description="Epochs of quantisation-aware training; 0: after training."
    )
    qat_learning_rate: float = Field(2e-4, gt=0, description="Its peak rate.")
    qat_batch_size: int = Field(8, ge=1, description="Its images per step.")
    reuse_qat: bool = Field(
        False, description="Take the quantisation-aware model of the last export."
    )
    calibration: int = Field(100, ge=1, description="Training pictures for ranges.")
    equalise: bool = Field(
        False,
        description="Give channels like ranges first; for ESPNet on the Edge TPU.",
    )
    io: str | None = Field(None, description="uint8, int8 or float: int8 files' ends.")
    postprocess: bool = Field(
        False, description="Append TFLite_Detection_PostProcess to detectors."
    )
    opset: int | None = Field(None, description="ONNX operator set, 13 to 18.")
    threads: tuple[int, ...] = Field((1, 2), description="Threads to time files at.")
    timed_runs: int = Field(20, ge=0, description="Timed runs of each; 0: none.")


def main(arguments: Sequence[str]) -> None:
    """Run the command line of `deploy`: RUN, and a flag for each option.

    Args:
        arguments: Words behind `keras-lightnets export`.
    """
    import typer

    from keras_lightnets.tasks.commands import command, print_table
    from keras_lightnets.tools import card

    def show(result: Mapping[str, Any]) -> None:
        print_table(card.table(result))
        typer.echo(f"{result['run']}/{EXPORTS}: export.json, card.md")

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    verb = command(
        DeployOptions,
        deploy,
        words=("run", "formats"),
        flags={"formats": "--format"},
        shown=show,
    )
    app.command()(verb)
    app(args=list(arguments), prog_name="keras-lightnets export")


def deploy(options: DeployOptions) -> dict[str, Any]:
    """Quantise and export a run; every file is run, compared, timed and measured.

    Args:
        options: The run and what to make of it.

    Returns:
        What the model is and comes from, "float", "qat" (None without) and per format
        the measured figures; also written to RUN/export/export.json and, as a model
        card, card.md. Both are renewed after every file.

    Raises:
        ValueError: If the run, a format or an option is not legal.
    """
    from keras_lightnets.tools import card
    from keras_lightnets.tools.export.latency import machine

    _check(options)
    work = Deployment(options)
    (work.folder / EXPORTS).mkdir(exist_ok=True)
    result: dict[str, Any] = {
        "run": str(work.folder),
        "model": work.describe(),
        "monitor": work.task.monitor,
        "machine": machine(),
        "float": work.measure_float(),
        "qat": None,
        "files": {},
    }
    if options.qat_epochs or options.reuse_qat:
        result["qat"] = work.quantise()
    for name in options.formats:
        result["files"][name] = work.export(name, options.postprocess)
        run.write_json(work.folder / EXPORTS / "export.json", result)
        run.write_text(work.folder / EXPORTS / "card.md", card.card(result))
    return result


def _check(options: DeployOptions) -> None:
    """Check all formats before the first is made."""
    for name in options.formats:
        if name not in FORMATS:
            raise unknown("export format", name, FORMATS)
    rows = {name: FORMATS[name] for name in options.formats}
    legal = {kind: None for row in rows.values() for kind in row.io}
    if options.io is not None and options.io not in legal:
        raise unknown(f"io of {', '.join(rows)}", options.io, legal)
    if options.postprocess and not any(row.postprocess for row in rows.values()):
        names = [name for name, row in FORMATS.items() if row.postprocess]
        raise unknown("format with the detection op", ", ".join(rows), names)
    if options.opset is not None:
        from keras_lightnets.tools.export.onnx_model import OPSETS

        if options.opset not in OPSETS:
            raise unknown("ONNX operator set", options.opset, OPSETS)
        if not any("opset" in row.options for row in rows.values()):
            names = [name for name, row in FORMATS.items() if "opset" in row.options]
            raise unknown("format with an operator set", ", ".join(rows), names)


class Deployment:
    """A trained run and what becomes of it: model, data, the task's own callables.

    Args:
        options: The run and how to quantise it.

    Raises:
        ValueError: If there is no such run or its data is not usable.
    """

    def __init__(self, options: DeployOptions) -> None:
        path = run.find_model(options.run)
        self.options = options
        self.folder = path.parent
        self.about = run.read_meta(path)
        if "config" not in self.about:
            raise ValueError(
                f"{path} does not say what it was trained on. Give the folder of a run "
                "that `train` has written."
            )
        self.task = framework.find_task(str(self.about["task"]))
        self.config = self.task.config.parse(self.about["config"])
        self.data = self.task.open_data(self.config)
        self.model = merge_branches(keras_lightnets.load_model(path))
        if options.equalise:
            from keras_lightnets.tools.quantize.equalise import PICTURES, equalise

            self.model = equalise(self.model, self._pictures("train", PICTURES))
        self.quantised: Any = None
        self._judge = self.task.evaluate_fn(self.config, self.data.val)

    def describe(self) -> dict[str, Any]:
        """Return what the model is and where it comes from, as JSON values."""
        config, given = self.config, self.config.to_dict()
        sidecar = self.task.meta(self.about).to_dict()
        pictures = min(self.options.calibration, len(self.data.train))
        return {
            "name": config.name,
            "task": self.task.name,
            "backbone": config.backbone,
            "head": given.get("head"),
            "params": int(self.model.count_params()),
            "input": list(sidecar["input"]["size"]),
            "range": sidecar["input"]["range"],
            "labels": list(sidecar["labels"]),
            "data": given.get("data"),
            "val_data": given.get("val_data") or given.get("data"),
            "val_images": len(self.data.val),
            "epochs": config.epochs,
            **_published(config.backbone, config.weights),
            "calibration": None if self._trains_aware() else pictures,
            "versions": run.versions(),
        }

    def _trains_aware(self) -> bool:
        return bool(self.options.qat_epochs or self.options.reuse_qat)

    def measure_float(self) -> dict[str, Any]:
        """Return the validation metrics of the Keras model."""
        from keras_lightnets.tasks.loop import predict_batches

        return self._judge(predict_batches(self.model))

    def quantise(self) -> dict[str, Any]:
        """Train aware of quantisation, or read what the last export has trained.

        Returns:
            Validation metrics, and "history": the loss of each epoch.

        Raises:
            ValueError: If there is nothing to reuse.
        """
        from keras_lightnets.tools.quantize import qat

        state = self.folder / EXPORTS / QAT_STATE
        history: list[dict[str, float]] = []
        if self.options.reuse_qat:
            if not state.is_file():
                raise ValueError(
                    f"{self.folder} holds no quantisation-aware model ({state}). "
                    "Export with --qat-epochs 2 first."
                )
            self.quantised = qat.restore(qat.prepare(self.model, None), state)
        else:
            calibration = _batched(self._calibration(), self.options.qat_batch_size)
            self.quantised = qat.prepare(self.model, calibration)
            history = self._train_quantised(state)
        return {"history": history, **self._judge(_predictor(self.quantised))}

    def _train_quantised(self, state: Path) -> list[dict[str, float]]:
        from keras_lightnets.tools.quantize import qat

        keras_lightnets.keep_memory()
        config = self.config.replace(batch_size=self.options.qat_batch_size)
        batches = self.task.batches(config, "train", self.data.train)

        def epoch(number: int) -> Any:
            batches.set_epoch(config.epochs + number)
            return batches

        def after(trained: Any, logs: dict[str, float]) -> None:
            state.parent.mkdir(parents=True, exist_ok=True)
            qat.save(trained, state)
            sys.stderr.write(f"qat epoch {logs['epoch']} loss {logs['loss']:.4f}\n")

        settings = qat.Settings(
            epochs=self.options.qat_epochs,
            learning_rate=self.options.qat_learning_rate,
            frozen=self._frozen(),
        )
        loss = framework.joined_loss(self.task.losses(config))
        try:
            return qat.train(self.quantised, epoch, loss, settings, after)
        finally:
            batches.close()

    def export(self, name: str, postprocess: bool = False) -> dict[str, Any]:
        """Write one file, run it, compare it and measure it.

        Args:
            name: Name in FORMATS.
            postprocess: Append the detection op.

        Returns:
            `Artifact.json()` and "metrics", those of the file on the validation
            images.

        Raises:
            ValueError: If the op is asked for another task's file.
        """
        from keras_lightnets.tools.export import formats
        from keras_lightnets.tools.export.postprocess import Postprocess

        if postprocess and self.task.name != "detect":
            raise ValueError(
                "--postprocess appends an op for boxes; this run is of the task "
                f"{self.task.name!r}. Leave it out."
            )
        from keras_lightnets.tools.export import latency

        row = FORMATS[name]
        int8 = row.calibration
        opset, io = self.options.opset, self.options.io
        postprocess = postprocess and row.postprocess
        aware = int8 and self.quantised is not None
        folder = f"{name}-postprocess" if postprocess else name
        path = self.folder / EXPORTS / folder / f"model{row.suffix}"
        artifact = formats.export(
            self.quantised if aware else self.model,
            name,
            path,
            calibration=self._calibration() if int8 and not aware else None,
            samples=self._pictures("val", formats.SAMPLES),
            io=io if io in row.io else None,
            detector=formats.Detector(
                self.task.meta(self.about),
                Postprocess() if postprocess else None,
            ),
            options={"opset": opset} if opset and "opset" in row.options else None,
        )
        content = path.read_bytes()
        if row.runtime:
            measured = self.task.measure_file(self.config, path)
        else:
            measured = self._judge(_file_predictor(row.open(content)))
        times: tuple[latency.Latency, ...] = ()
        if self.options.timed_runs:
            threads, runs = self.options.threads, self.options.timed_runs
            times = latency.measure(row.open, content, threads, runs)
        return {
            **artifact.json(),
            "metrics": measured,
            "engine": row.engine,
            "latency": [dataclasses.asdict(time) for time in times],
        }

    def _calibration(self) -> list[np.ndarray]:
        return self._pictures("train", self.options.calibration)

    def _pictures(self, part: str, count: int) -> list[np.ndarray]:
        """Return the first pictures of "train" or "val" as the network sees them."""
        source = self.task.batches(self.config, "val", getattr(self.data, part))
        found: list[np.ndarray] = []
        for images, _ in source:
            found.extend(images)
            if len(found) >= count:
                break
        source.close()
        return found[:count]

    def _frozen(self) -> tuple[str, ...]:
        """Return the names of the layers that the run kept as they were."""
        if self.config.freeze is None:
            return ()
        twin = self.task.build_model(self.config.replace(weights=None))
        return tuple(la.name for la in twin.layers if la.weights and not la.trainable)


def _predictor(model: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in model(images).items()}

    return predict


def _published(backbone: str, weights: str | None) -> dict[str, Any]:
    """Paper of a network, and source and licence of the weights it started from."""
    from keras_lightnets import get_spec, list_models

    spec = get_spec(backbone) if backbone in list_models() else None
    about: dict[str, Any] = {"reference": spec.reference if spec else None}
    about["weights"] = {"source": weights or "none", "licence": None, "url": None}
    held = spec.weights if spec else ()
    found = [w for w in held if weights in (w.tag, "imagenet")]
    if weights and found:
        first = found[0]
        about["weights"] = {
            "source": f"{spec.name if spec else ''}.{first.tag}, {first.source}",
            "licence": first.licence,
            "url": first.url,
        }
    return about


def _file_predictor(file: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Run an opened file on batches, picture by picture."""

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        rows = [file.run(image[None]) for image in images]
        columns = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        return dict(zip(file.outputs, columns, strict=True))

    return predict


def _batched(pictures: list[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(pictures), size):
        yield np.stack(pictures[start : start + size])
