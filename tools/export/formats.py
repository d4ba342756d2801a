"""The table of export formats, and the one function that writes any of them.

| name | weights | input and output | runs on |
|---|---|---|---|
| tflite-float32 | float32 | float | LiteRT on any CPU or GPU |
| tflite-float16 | float16 | float | LiteRT, half the size |
| tflite-int8 | int8 | uint8, int8 or float | LiteRT, microcontrollers, NPUs |
| edgetpu | int8 | uint8, int8 or float | input of the Edge TPU compiler |
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets import _errors
from keras_lightnets.tools.export import _flatbuffer, edgetpu, postprocess
from keras_lightnets.tools.export import verify as verifying
from keras_lightnets.tools.export.postprocess import Postprocess

# The most samples a file is compared on: decisions of a detector are counted per
# anchor, so a few pictures give thousands.
SAMPLES = 16


@dataclasses.dataclass(frozen=True)
class Format:
    """One row of the table.

    Attributes:
        kind: What `tools.export.tflite.convert` calls it.
        io: Legal input and output types, the default first.
        calibration: Whether real pictures are needed to choose ranges.
        runs_on: For people.
        edgetpu: Whether the Edge TPU verdict belongs to the result.
    """

    kind: str
    io: tuple[str, ...]
    calibration: bool
    runs_on: str
    edgetpu: bool = False


FORMATS: Mapping[str, Format] = {
    "tflite-float32": Format("float32", ("float",), False, "LiteRT on CPU and GPU"),
    "tflite-float16": Format("float16", ("float",), False, "LiteRT, half the size"),
    "tflite-int8": Format(
        "int8", ("uint8", "int8", "float"), True, "LiteRT, microcontrollers, NPUs"
    ),
    "edgetpu": Format(
        "int8",
        ("uint8", "int8", "float"),
        True,
        "input of the Edge TPU compiler",
        edgetpu=True,
    ),
}


class ExportError(ValueError):
    """The exported file is not what was asked for; nothing was written."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One exported file and what was measured on it.

    Attributes:
        path: The .tflite file.
        format: Name in `FORMATS`.
        bytes: Size of the file.
        ops: Operator name to count.
        max_error: Largest difference of an output from the model.
        agreement: Share of decisions equal to the model's, None without any.
        io: Name, type, shape and quantisation of inputs and outputs.
        files: Everything written: model, sidecar, labels.
        verification: All figures; None when there were no samples.
        postprocess: Comparison of the post-processing op with numpy, None without.
        verdict: What the Edge TPU compiler would map, None for other formats.
        problems: What misses the limits, in words.
    """

    path: Path
    format: str
    bytes: int
    ops: Mapping[str, int]
    max_error: float | None
    agreement: float | None
    io: Mapping[str, Any]
    files: tuple[Path, ...]
    verification: verifying.Verification | None = None
    postprocess: Mapping[str, float] | None = None
    verdict: edgetpu.Verdict | None = None
    problems: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return everything as plain values for `json.dumps`."""
        checked, verdict = self.verification, self.verdict
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.bytes,
            "ops": dict(self.ops),
            "max_error": self.max_error,
            "agreement": self.agreement,
            "io": dict(self.io),
            "files": [str(path) for path in self.files],
            "verification": checked.json() if checked is not None else None,
            "postprocess": dict(self.postprocess) if self.postprocess else None,
            "edgetpu": verdict.json() if verdict is not None else None,
            "problems": list(self.problems),
        }


@dataclasses.dataclass(frozen=True)
class Detector:
    """What a file needs beside its weights.

    Attributes:
        meta: Labels, preprocessing and, of a detector, anchors: written as the
            sidecar; `runtime.Meta` or `runtime_labels.LabelMeta`.
        postprocess: Append the detection post-processing op with these options.
    """

    meta: Any
    postprocess: Postprocess | None = None


def export(
    model: Any,
    format: str,
    path: str | os.PathLike[str],
    calibration: Iterable[np.ndarray] | None = None,
    samples: Iterable[np.ndarray] | None = None,
    io: str | None = None,
    detector: Detector | None = None,
) -> Artifact:
    """Convert a model, run the file, compare it with the model, and write it.

    A detector's sidecar NAME.json and labels.txt are written beside it. Each file
    appears whole or not at all.

    Args:
        model: A functional Keras 3 model or a quantisation-aware model.
        format: Name in `FORMATS`.
        path: Where the .tflite file goes; the folder is made.
        calibration: Pictures (height, width, 3), 0..255, that fix the ranges of int8
            files; not needed for quantisation-aware models.
        samples: Real pictures to compare on; by default those of the calibration.
        io: Type of input and outputs; by default the format's first.
        detector: Labels, anchors and post-processing of a detector.

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
    row, io = _options(model, format, path, io)
    pictures = None if calibration is None else list(calibration)
    if row.calibration and not pictures and not _is_quantised(model):
        raise ValueError(
            f"Format {format!r} needs calibration pictures: pass calibration=, about "
            "100 real pictures (height, width, 3) of 0..255."
        )
    shown = pictures if samples is None else list(samples)
    converting = _convert_function()
    raw = converting(model, row.kind, io, pictures if row.calibration else None)
    checked = None
    if shown:
        checked = verifying.verify(raw, _callable(model), shown[:SAMPLES], row.kind)
    _refuse_floats(raw, row.kind)
    content, compared = raw, None
    if detector is not None and detector.postprocess is not None:
        content = postprocess.append(raw, detector.meta, detector.postprocess)
        if shown:
            sizes = [_picture(sample) for sample in shown[:SAMPLES]]
            compared = postprocess.compare(raw, content, detector.meta, sizes)
    verdict = edgetpu.verdict(content) if row.edgetpu else None
    files = write_files({Path(path): content, **_beside(Path(path), detector)})
    return _artifact(files, format, content, checked, compared, verdict)


def _options(
    model: Any, format: str, path: str | os.PathLike[str], io: str | None
) -> tuple[Format, str]:
    """Check the options against the table."""
    if format not in FORMATS:
        raise _errors.unknown("export format", format, FORMATS)
    row = FORMATS[format]
    if io is not None and io not in row.io:
        raise _errors.unknown(f"io of format {format}", io, row.io)
    if _is_quantised(model) and row.kind != "int8":
        legal = [name for name, other in FORMATS.items() if other.kind == "int8"]
        raise _errors.unknown("format of a quantisation-aware model", format, legal)
    if Path(path).suffix != ".tflite":
        raise ValueError(f"The file's name must end in .tflite, received {path}.")
    return row, io or row.io[0]


def _is_quantised(model: Any) -> bool:
    return hasattr(model, "source_weights")


def _convert_function() -> Callable[..., bytes]:
    from keras_lightnets.tools.export import tflite

    return tflite.convert


def _callable(model: Any) -> verifying.Reference:
    """The model as a function of a batch, in inference mode."""
    if _is_quantised(model) or not hasattr(model, "layers"):
        return model
    return lambda batch: model(batch, training=False)


def _picture(sample: np.ndarray) -> np.ndarray:
    array = np.asarray(sample)
    return array[0] if array.ndim == 4 else array


def _refuse_floats(content: bytes, kind: str) -> None:
    loose = verifying.float_ops(_flatbuffer.read(content)) if kind == "int8" else ()
    if loose:
        raise ExportError(
            f"{len(loose)} ops of the int8 file work on floats: "
            f"{'; '.join(loose[:8])}. A layer without a range is the usual cause; "
            "nothing was written."
        )


def _beside(path: Path, detector: Detector | None) -> dict[Path, bytes]:
    """Sidecar and labels of a detector."""
    if detector is None:
        return {}
    meta = detector.meta
    if detector.postprocess is not None:
        meta = postprocess.sidecar(meta)
    return {
        path.with_suffix(".json"): json.dumps(meta.to_dict()).encode(),
        path.with_name("labels.txt"): postprocess.labels_text(meta.labels).encode(),
    }


def _artifact(
    files: tuple[Path, ...],
    format: str,
    content: bytes,
    checked: verifying.Verification | None,
    compared: Mapping[str, float] | None,
    verdict: edgetpu.Verdict | None,
) -> Artifact:
    problems = list(checked.problems) if checked is not None else []
    if checked is None:
        problems.append("not compared: there were no samples")
    if compared is not None and compared["unmatched"]:
        problems.append(
            f"post-processing: {compared['unmatched']} of {compared['detections']} "
            "detections differ from numpy"
        )
    if verdict is not None and not verdict.network_mapped:
        left = [
            r for r in verdict.ops if not r.mapped and r.index not in verdict.border
        ]
        texts = [f"op {row.index} {row.op}: {row.reason}" for row in left[:3]]
        problems.append(
            f"{len(left)} ops are not mapped to the Edge TPU: {'; '.join(texts)}"
        )
    described = verdict or edgetpu.verdict(content, compiler=False)
    ops: dict[str, int] = {}
    for op in described.ops:
        ops[op.op] = ops.get(op.op, 0) + 1
    return Artifact(
        path=files[0],
        format=format,
        bytes=len(content),
        ops=ops,
        max_error=checked.max_error if checked is not None else None,
        agreement=checked.agreement if checked is not None else None,
        io=described.io,
        files=files,
        verification=checked,
        postprocess=compared,
        verdict=verdict,
        problems=tuple(problems),
    )


def write_files(contents: Mapping[Path, bytes]) -> tuple[Path, ...]:
    """Write files so that each appears whole; nothing half-written stays behind.

    Args:
        contents: Path to content. All are written beside their places first and
            only then renamed.

    Returns:
        The paths, in the order given.

    Raises:
        OSError: If a folder cannot be written to.
    """
    with _temporary(contents) as waiting:
        for path, held in waiting.items():
            os.replace(held, path)
    return tuple(contents)


@contextlib.contextmanager
def _temporary(contents: Mapping[Path, bytes]) -> Iterator[dict[Path, str]]:
    waiting: dict[Path, str] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, waiting[path] = tempfile.mkstemp(
                prefix=f".{path.name}.", dir=path.parent
            )
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(waiting[path], 0o644)
        yield waiting
    finally:
        for held in waiting.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(held)


def table(rows: Sequence[Artifact]) -> str:
    """Return artifacts as text, one line each."""
    lines = [f"{'format':<16}{'bytes':>12}{'ops':>6}{'max error':>12}{'agreement':>11}"]
    for row in rows:
        error = "" if row.max_error is None else f"{row.max_error:.3g}"
        share = "" if row.agreement is None else f"{row.agreement:.2%}"
        lines.append(
            f"{row.format:<16}{row.bytes:>12,}{sum(row.ops.values()):>6}"
            f"{error:>12}{share:>11}  {row.path}"
        )
    return "\n".join(lines)
