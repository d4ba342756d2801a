"""What an export hands back: the file, and what was measured on it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from keras_lightnets.tools.export.postprocess import Postprocess
from keras_lightnets.tools.export.verify import Verification


class ExportError(ValueError):
    """The exported file is not what was asked for; nothing was written."""


class Verdict(Protocol):
    """What a target makes of a file."""

    def json(self) -> dict[str, Any]:
        """Return everything as plain values for `json.dumps`."""

    def table(self) -> str:
        """Return it as text."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A verdict, and what follows from it for the export.

    Attributes:
        verdict: The verdict itself.
        problems: What is not as it should be, in words.
        files: Further files that came out of it, such as a compiled model: what
            follows the model's name ("_vela.tflite") to content. Written beside it.
    """

    verdict: Verdict
    problems: tuple[str, ...] = ()
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


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


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One exported file and what was measured on it.

    Attributes:
        path: The model file.
        format: Name in `FORMATS`.
        bytes: Size of the file.
        ops: Operator name to count.
        max_error: Largest difference of an output from the model.
        agreement: Share of decisions equal to the model's, None without any.
        io: Name, type, shape and quantisation of inputs and outputs.
        files: Everything written: model, sidecar, labels, compiled models.
        verification: All figures; None when there were no samples.
        postprocess: Comparison of the post-processing op with numpy, None without.
        verdicts: What each target that the format is for makes of the file, by name.
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
    verification: Verification | None = None
    postprocess: Mapping[str, float] | None = None
    verdicts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return everything as plain values for `json.dumps`."""
        checked = self.verification
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
            "verdicts": {
                name: {**made.json(), "text": made.table()}
                for name, made in self.verdicts.items()
            },
            "problems": list(self.problems),
        }


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
