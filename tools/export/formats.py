"""The table of export formats, and the one function that writes any of them.

| name | weights | input and output | runs on |
|---|---|---|---|
| tflite-float32 | float32 | float | LiteRT on any CPU or GPU |
| tflite-float16 | float16 | float | LiteRT, half the size |
| tflite-int8 | int8 | uint8, int8 or float | LiteRT, microcontrollers, NPUs |
| edgetpu | int8 | uint8, int8 or float | input of the Edge TPU compiler |
| ethosu | int8 | int8, uint8 or float | Arm Ethos-U; compiled files beside it |
| tflite-micro | int8 | int8, uint8 or float | microcontrollers, TFLite Micro |
| onnx | float32 | float | onnxruntime, OpenVINO and others |
| onnx-int8 | int8 | uint8, float out | the same, as QuantizeLinear pairs |

A row holds all that makes a format differ from the others; nothing elsewhere asks for
a format's name.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets import _errors
from keras_lightnets.tools.export import (
    edgetpu,
    ethosu,
    metadata,
    micro,
    postprocess,
    runner,
)
from keras_lightnets.tools.export import verify as verifying
from keras_lightnets.tools.export.artifact import (
    Artifact,
    Detector,
    ExportError,
    Finding,
    table,
)
from keras_lightnets.tools.export.files import write_files
from keras_lightnets.tools.export.opened import OpenedFile, TFLiteFile

__all__ = [
    "Artifact",
    "Detector",
    "ExportError",
    "FORMATS",
    "Finding",
    "Format",
    "Request",
    "export",
    "table",
    "write_files",
]

# The most samples a file is compared on: decisions of a detector are counted per
# anchor, so a few pictures give thousands.
SAMPLES = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """What a format's `make` works from.

    Attributes:
        model: A functional Keras 3 model or a quantisation-aware model.
        io: Type of input and outputs, one of the row's.
        calibration: Pictures (height, width, 3), 0..255, or None where the row or
            the model needs none.
        options: The row's options with the caller's changes.
    """

    model: Any
    io: str
    calibration: Sequence[np.ndarray] | None
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finished:
    """Content as it is written, and what finishing it has shown.

    Attributes:
        content: The file.
        compared: Comparison of the post-processing op with numpy, None without.
    """

    content: bytes
    compared: Mapping[str, float] | None = None


def _tflite(request: Request, kind: str, target: str = "cpu") -> bytes:
    from keras_lightnets.tools.export import tflite

    return tflite.convert(request.model, kind, request.io, request.calibration, target)


def _finish_tflite(
    content: bytes, detector: Detector, pictures: Sequence[np.ndarray]
) -> Finished:
    """Append the detection op if it is asked for; write labels into the file."""
    made, compared = content, None
    if detector.postprocess is not None:
        made = postprocess.append(content, detector.meta, detector.postprocess)
        if pictures:
            compared = postprocess.compare(content, made, detector.meta, pictures)
    return Finished(metadata.attach(made, detector.meta), compared)


def _onnx(request: Request) -> bytes:
    from keras_lightnets.tools.export import onnx_model

    return onnx_model.convert(request.model, **request.options)


def _onnx_int8(request: Request) -> bytes:
    from keras_lightnets.tools.export import onnx_model

    return onnx_model.convert_int8(
        request.model, request.calibration, **request.options
    )


def _open_onnx(content: bytes, threads: int = 2) -> OpenedFile:
    from keras_lightnets.tools.export import onnx_model

    return onnx_model.OnnxFile(content, threads)


def _finish_onnx(
    content: bytes, detector: Detector, pictures: Sequence[np.ndarray]
) -> Finished:
    """Write the sidecar into the file's own metadata."""
    from keras_lightnets.tools.export import onnx_model

    held = {onnx_model.META_KEY: json.dumps(detector.meta.to_dict())}
    return Finished(onnx_model.add_metadata(content, held))


def _edgetpu(content: bytes) -> Finding:
    """Predict what the compiler maps."""
    verdict = edgetpu.verdict(content)
    if verdict.network_mapped:
        return Finding(verdict)
    left = [r for r in verdict.ops if not r.mapped and r.index not in verdict.border]
    texts = [f"op {row.index} {row.op}: {row.reason}" for row in left[:3]]
    problem = f"{len(left)} ops are not mapped to the Edge TPU: {'; '.join(texts)}"
    return Finding(verdict, (problem,))


def _ethosu(content: bytes, target: str) -> Finding:
    """Compile for one Ethos-U; the compiled file is written beside the model."""
    compiled, found = ethosu.compile_file(content, target)
    files = {ethosu.ending(target): compiled}
    if found.all_mapped:
        return Finding(found, files=files)
    texts = [f"{row.op} {row.output!r}: {row.reason}" for row in found.cpu_ops[:3]]
    problem = f"{len(found.cpu_ops)} ops are not on {target}: {'; '.join(texts)}"
    return Finding(found, (problem,), files)


def _micro(content: bytes) -> Finding:
    """Run the file as a microcontroller does."""
    found = micro.report(content)
    return Finding(found, () if found.runs else (found.table(),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One row of the table.

    Attributes:
        weights: "float32", "float16" or "int8": which limits of `verify` hold. int8
            needs calibration pictures or a quantisation-aware model.
        io: Legal input and output types, the default first.
        runs_on: For people.
        make: Converts: a request to a file with the model's own outputs.
        suffix: How the file's name ends.
        open: Opens a file for running: (content, threads=2).
        finish: Completes the compared file from labels and preprocessing: (content,
            detector, pictures) to what is written.
        postprocess: Whether `finish` can append the detection op.
        verdicts: What each target makes of the written file, by name.
        options: Names and defaults of options that `make` reads.
        runtime: Whether `tools.runtime` runs the file as devices do; metrics are
            then measured through it.
        engine: What runs the file on this machine.
    """

    weights: str
    io: tuple[str, ...]
    runs_on: str
    make: Callable[[Request], bytes]
    suffix: str = ".tflite"
    open: Callable[..., OpenedFile] = TFLiteFile
    finish: Callable[[bytes, Detector, Sequence[np.ndarray]], Finished] = _finish_tflite
    postprocess: bool = True
    verdicts: Mapping[str, Callable[[bytes], Finding]] = dataclasses.field(
        default_factory=dict
    )
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runtime: bool = True
    engine: str = "LiteRT"

    @property
    def calibration(self) -> bool:
        """Whether ranges come from pictures or a quantisation-aware model."""
        return self.weights == "int8"


ONNX: Mapping[str, Any] = {
    "suffix": ".onnx",
    "open": _open_onnx,
    "finish": _finish_onnx,
    "postprocess": False,
    "options": {"opset": 17},
    "runtime": False,
    "engine": "onnxruntime",
}
FLOAT_ENDS = ("float",)
BYTE_ENDS = ("uint8", "int8", "float")
# What kernels of microcontrollers work on needs no conversion.
MICRO_ENDS = ("int8", "uint8", "float")

FORMATS: Mapping[str, Format] = {
    "tflite-float32": Format(
        weights="float32",
        io=FLOAT_ENDS,
        runs_on="LiteRT on CPU and GPU",
        make=functools.partial(_tflite, kind="float32"),
    ),
    "tflite-float16": Format(
        weights="float16",
        io=FLOAT_ENDS,
        runs_on="LiteRT, half the size",
        make=functools.partial(_tflite, kind="float16"),
    ),
    "tflite-int8": Format(
        weights="int8",
        io=BYTE_ENDS,
        runs_on="LiteRT, microcontrollers, NPUs",
        make=functools.partial(_tflite, kind="int8"),
    ),
    "edgetpu": Format(
        weights="int8",
        io=BYTE_ENDS,
        runs_on="input of the Edge TPU compiler",
        make=functools.partial(_tflite, kind="int8", target="edgetpu"),
        verdicts={"edgetpu": _edgetpu},
    ),
    "ethosu": Format(
        weights="int8",
        io=MICRO_ENDS,
        runs_on="Arm Ethos-U; compiled files beside it",
        make=functools.partial(_tflite, kind="int8"),
        verdicts={
            target: functools.partial(_ethosu, target=target)
            for target in ethosu.TARGETS
        },
    ),
    "tflite-micro": Format(
        weights="int8",
        io=MICRO_ENDS,
        runs_on="microcontrollers, TFLite Micro",
        make=functools.partial(_tflite, kind="int8"),
        postprocess=False,
        verdicts={"micro": _micro},
    ),
    "onnx": Format(
        weights="float32",
        io=FLOAT_ENDS,
        runs_on="onnxruntime, OpenVINO and others",
        make=_onnx,
        **ONNX,
    ),
    "onnx-int8": Format(
        weights="int8",
        io=("uint8",),
        runs_on="onnxruntime, OpenVINO and others, in int8",
        make=_onnx_int8,
        **ONNX,
    ),
}


def export(
    model: Any,
    format: str,
    path: str | os.PathLike[str],
    calibration: Iterable[np.ndarray] | None = None,
    samples: Iterable[np.ndarray] | None = None,
    io: str | None = None,
    detector: Detector | None = None,
    options: Mapping[str, Any] | None = None,
) -> Artifact:
    """Convert a model, run the file, compare it with the model, and write it.

    A detector's sidecar NAME.json, labels.txt and run.pyz, which runs it on a device,
    are written beside it. Each file appears whole or not at all.

    Args:
        model: A functional Keras 3 model or a quantisation-aware model.
        format: Name in `FORMATS`.
        path: Where the file goes; the folder is made.
        calibration: Pictures (height, width, 3), 0..255, that fix the ranges of int8
            files; not needed for quantisation-aware models.
        samples: Real pictures to compare on; by default those of the calibration.
        io: Type of input and outputs; by default the format's first.
        detector: Labels, anchors and post-processing of a detector.
        options: Changes of the format's own options.

    Returns:
        The artifact with everything measured; `problems` lists what misses the
        limits of `verify`.

    Raises:
        ExportError: If an int8 file has ops that work on floats; they are named.
        ValueError: If an option is not legal, or the two kinds of pictures lack.

    Example:
        >>> export(model, "tflite-int8", "m.tflite", calibration=pictures)
        ... # doctest: +SKIP
    """
    row = _checked(model, format, path, io, detector)
    pictures = None if calibration is None else list(calibration)
    shown = ((pictures if samples is None else list(samples)) or [])[:SAMPLES]
    raw = row.make(_request(model, format, pictures, io, options or {}))
    checked = _compared(raw, row, model, shown)
    finished = Finished(raw)
    if detector is not None:
        finished = row.finish(raw, detector, [_picture(sample) for sample in shown])
    found = {name: judge(finished.content) for name, judge in row.verdicts.items()}
    files = write_files(_contents(Path(path), row, finished.content, detector, found))
    return _artifact(files, format, finished, checked, found)


def _checked(
    model: Any,
    format: str,
    path: str | os.PathLike[str],
    io: str | None,
    detector: Detector | None,
) -> Format:
    """Check what is asked for against the table, before any work."""
    if format not in FORMATS:
        raise _errors.unknown("export format", format, FORMATS)
    row = FORMATS[format]
    if io is not None and io not in row.io:
        raise _errors.unknown(f"io of format {format}", io, row.io)
    if _is_quantised(model) and not row.calibration:
        legal = [name for name, other in FORMATS.items() if other.calibration]
        raise _errors.unknown("format of a quantisation-aware model", format, legal)
    if Path(path).suffix != row.suffix:
        raise ValueError(f"The file's name must end in {row.suffix}, received {path}.")
    if detector is not None and detector.postprocess and not row.postprocess:
        legal = [name for name, other in FORMATS.items() if other.postprocess]
        raise _errors.unknown("format with the detection op", format, legal)
    return row


def _request(
    model: Any,
    format: str,
    pictures: Sequence[np.ndarray] | None,
    io: str | None,
    options: Mapping[str, Any],
) -> Request:
    """Check what a format's `make` needs, and gather it."""
    row = FORMATS[format]
    if row.calibration and not pictures and not _is_quantised(model):
        raise ValueError(
            f"Format {format!r} needs calibration pictures: pass calibration=, about "
            "100 real pictures (height, width, 3) of 0..255."
        )
    for name in options:
        if name not in row.options:
            raise _errors.unknown(f"option of format {format}", name, row.options)
    return Request(
        model=model,
        io=io or row.io[0],
        calibration=pictures if row.calibration else None,
        options={**row.options, **options},
    )


def _compared(
    raw: bytes, row: Format, model: Any, shown: Sequence[np.ndarray]
) -> verifying.Verification | None:
    """Run the file and compare it with the model; None without pictures."""
    file = row.open(raw)
    _refuse_floats(file, row)
    if not shown:
        return None
    return verifying.verify(raw, _callable(model), shown, row.weights, lambda _: file)


def _is_quantised(model: Any) -> bool:
    return hasattr(model, "source_weights")


def _callable(model: Any) -> verifying.Reference:
    """The model as a function of a batch, in inference mode."""
    if _is_quantised(model) or not hasattr(model, "layers"):
        return model
    return lambda batch: model(batch, training=False)


def _picture(sample: np.ndarray) -> np.ndarray:
    array = np.asarray(sample)
    return array[0] if array.ndim == 4 else array


def _refuse_floats(file: OpenedFile, row: Format) -> None:
    loose = file.float_ops if row.calibration else ()
    if loose:
        raise ExportError(
            f"{len(loose)} ops of the int8 file work on floats: "
            f"{'; '.join(loose[:8])}. A layer without a range is the usual cause; "
            "nothing was written."
        )


def _contents(
    path: Path,
    row: Format,
    content: bytes,
    detector: Detector | None,
    found: Mapping[str, Finding],
) -> dict[Path, bytes]:
    """The model, a detector's sidecar, labels and runner, and what targets made."""
    contents = {path: content}
    if detector is not None:
        meta = detector.meta
        if detector.postprocess is not None:
            meta = postprocess.sidecar(meta)
        labels = postprocess.labels_text(meta.labels)
        contents[path.with_suffix(".json")] = json.dumps(meta.to_dict()).encode()
        contents[path.with_name("labels.txt")] = labels.encode()
        if row.runtime:
            contents[path.with_name(runner.NAME)] = runner.archive()
    for finding in found.values():
        for ending, further in finding.files.items():
            contents[path.with_name(path.stem + ending)] = further
    return contents


def _artifact(
    files: tuple[Path, ...],
    format: str,
    finished: Finished,
    checked: verifying.Verification | None,
    found: Mapping[str, Finding],
) -> Artifact:
    compared = finished.compared
    problems = list(checked.problems) if checked is not None else []
    if checked is None:
        problems.append("not compared: there were no samples")
    if compared is not None and compared["unmatched"]:
        problems.append(
            f"post-processing: {compared['unmatched']} of {compared['detections']} "
            "detections differ from numpy"
        )
    for finding in found.values():
        problems += finding.problems
    file = FORMATS[format].open(finished.content)
    return Artifact(
        path=files[0],
        format=format,
        bytes=len(finished.content),
        ops=file.ops,
        max_error=checked.max_error if checked is not None else None,
        agreement=checked.agreement if checked is not None else None,
        io=file.io,
        files=files,
        verification=checked,
        postprocess=compared,
        verdicts={name: finding.verdict for name, finding in found.items()},
        problems=tuple(problems),
    )
