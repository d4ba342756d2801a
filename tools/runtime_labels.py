"""Run a segmenter's or classifier's .tflite file with numpy.

`export` packs this file and `runtime.py` into run.pyz beside the model; copied to a
device they also run side by side: `python runtime_labels.py model.tflite image.jpg`.

Example:
    >>> labels = Segmenter("model.tflite").segment(picture)  # doctest: +SKIP
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    from keras_lightnets.tools import runtime
except ImportError:  # copied to a device
    import runtime  # type: ignore[no-redef]

LEGAL = {
    "task": ("segment", "classify"),
    "range": ("0-255 RGB",),
    "resize": ("stretch", "letterbox", "crop"),
    "align": ("center", "corner"),
    "interpolation": ("bilinear", "bicubic"),
}
CUBIC = -0.5  # Pillow's sharpness of the bicubic filter


@dataclasses.dataclass(frozen=True)
class LabelMeta:
    """What the file does not say itself: the sidecar JSON, checked.

    `resize` "crop" scales the shortest side to side / `crop` with `interpolation`
    (smoothed, as Pillow does) and takes the middle; "stretch" and "letterbox" are
    those of `runtime.Meta`, as are `align` and `fill`.
    """

    task: str
    labels: tuple[str, ...]
    size: tuple[int, int]
    resize: str = "stretch"
    align: str = "center"
    fill: int = 114
    crop: float = 0.875
    interpolation: str = "bicubic"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LabelMeta":
        """Check the decoded JSON object; ValueError names what is wrong."""
        missing = [key for key in ("task", "labels", "input") if key not in data]
        if missing:
            raise ValueError(f"The sidecar lacks {missing}; it holds {sorted(data)}.")
        given = {"range": "0-255 RGB", **data["input"]}
        for key, value in {"task": data["task"], **given}.items():
            if key in LEGAL and value not in LEGAL[key]:
                legal = ", ".join(LEGAL[key])
                raise ValueError(f"Unknown {key} {value!r}. Legal: {legal}.")
        size = given.pop("size", None)
        if not isinstance(size, Sequence) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"input.size must be [height, width], received {size!r}.")
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(
            task=data["task"],
            labels=tuple(str(name) for name in data["labels"]),
            size=(int(size[0]), int(size[1])),
            **{key: value for key, value in given.items() if key in fields},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the sidecar, ready for `json.dumps`."""
        given = dataclasses.asdict(self)
        task, labels = given.pop("task"), given.pop("labels")
        given["size"] = list(self.size)
        rest = {**given, "range": LEGAL["range"][0]}
        return {"task": task, "labels": list(labels), "input": rest}


def load_meta(path: str | os.PathLike[str]) -> LabelMeta:
    """Read a sidecar JSON; ValueError if it is missing, broken or incomplete."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No sidecar {path}: it is written beside the .tflite file.")
    try:
        return LabelMeta.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def _weights(out: int, size: int, kind: str) -> np.ndarray:
    """Weights (out, size) of one axis, smoothed where it shrinks, as Pillow's."""
    scale = max(size / out, 1.0)
    centre = (np.arange(out) + 0.5) * size / out - 0.5
    x = np.abs(centre[:, None] - np.arange(size)) / scale
    if kind == "bilinear":
        rows = np.maximum(1 - x, 0)
    else:
        inner = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        outer = CUBIC * (((x - 5) * x + 8) * x - 4)
        rows = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    return (rows / rows.sum(1, keepdims=True)).astype(np.float32)


def resample(image: np.ndarray, size: tuple[int, int], kind: str) -> np.ndarray:
    """Resize a (H, W, 3) uint8 picture as Pillow does, to within 1 level."""
    if tuple(image.shape[:2]) == tuple(size):
        return image
    height, width, channels = image.shape
    columns = image.transpose(1, 0, 2).reshape(width, -1).astype(np.float32)
    wide = (_weights(size[1], width, kind) @ columns).reshape(-1, height, channels)
    rows = np.clip(np.rint(wide), 0, 255).transpose(1, 0, 2).reshape(height, -1)
    out = _weights(size[0], height, kind) @ rows
    return np.clip(np.rint(out), 0, 255).astype(np.uint8).reshape(*size, channels)


def prepare(image: np.ndarray, meta: Any) -> tuple[np.ndarray, runtime.Placement]:
    """Fit a picture (H, W, 3) uint8 RGB into the network's input.

    Returns (height, width, 3) uint8 and where the picture lies in it; ValueError if
    the picture is empty or of another form.
    """
    if meta.resize != "crop" or image.ndim != 3 or not image.size:
        return runtime.prepare(image, meta)
    (height, width), (tall, wide) = image.shape[:2], meta.size
    # torchvision and timm cut fractions of pixels off.
    least = [int(side / meta.crop + 1e-6) for side in meta.size]
    ratio = max(least[0] / height, least[1] / width)
    inner = (int(height * ratio + 1e-6), int(width * ratio + 1e-6))
    whole = resample(image, inner, meta.interpolation)
    top, left = (inner[0] - tall) // 2, (inner[1] - wide) // 2
    scale = (inner[1] / width, inner[0] / height)
    fitted = np.ascontiguousarray(whole[top : top + tall, left : left + wide])
    return fitted, runtime.Placement(scale, (-left, -top), meta.size, (height, width))


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a (rows, columns, channels) float map bilinearly."""
    rows, columns = values.shape[:2]
    if (rows, columns) == tuple(size):
        return values
    try:
        import cv2
    except ImportError:
        down = runtime._resize_matrix(size[0], rows).astype(np.float32)
        across = runtime._resize_matrix(size[1], columns).astype(np.float32)
        tall = np.tensordot(down, values.astype(np.float32), (1, 0))
        return np.tensordot(across, tall, (1, 1)).transpose(1, 0, 2)
    wanted = (size[1], size[0])
    made = cv2.resize(np.ascontiguousarray(values), wanted)
    return made.reshape(*size, values.shape[2])


def spread(scores: np.ndarray, place: runtime.Placement) -> np.ndarray:
    """Return the scores (rows, columns, classes) of every pixel of the picture."""
    height, width = place.source
    if place.offset == (0, 0) and _fills(place):
        return resize_map(scores, (height, width))
    left, top = place.offset
    inner = (round(height * place.scale[1]), round(width * place.scale[0]))
    whole = resize_map(scores, place.size)
    return resize_map(
        whole[top : top + inner[0], left : left + inner[1]], (height, width)
    )


def _fills(place: runtime.Placement) -> bool:
    height, width = place.source
    inner = (round(height * place.scale[1]), round(width * place.scale[0]))
    return inner == tuple(place.size)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, float32."""
    powers = np.exp(logits.astype(np.float32) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class _Runner:
    """A .tflite file with its sidecar (default: the .json beside it)."""

    task = ""

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: LabelMeta | None = None,
        threads: int = 2,
    ):
        self.meta = meta or load_meta(Path(path).with_suffix(".json"))
        if self.meta.task != self.task:
            raise ValueError(f"{path} is made to {self.meta.task}, not {self.task}.")
        self.model = runtime.TFLiteModel(path, threads)
        shape = tuple(self.model.outputs[0]["shape"])
        if shape[-1] != len(self.meta.labels):
            raise ValueError(
                f"The file tells {shape[-1]} classes, its sidecar names "
                f"{len(self.meta.labels)}: they are not from the same export."
            )


class Segmenter(_Runner):
    """A segmenter's file."""

    task = "segment"

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Return the class of every pixel of a (H, W, 3) uint8 RGB picture, (H, W)."""
        fitted, place = prepare(image, self.meta)
        (logits,) = self.model.run(fitted[None])
        return spread(logits[0], place).argmax(-1).astype(np.int32)


class Classifier(_Runner):
    """A classifier's file."""

    task = "classify"

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Return the probabilities (classes,) of a (H, W, 3) uint8 RGB picture."""
        fitted, _ = prepare(image, self.meta)
        (logits,) = self.model.run(fitted[None])
        return probabilities(logits[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Classify pictures, or say what covers them; one JSON line per picture."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="the .tflite file")
    parser.add_argument("images", nargs="+", help="pictures")
    parser.add_argument("--meta", help="sidecar JSON (default: beside the model)")
    options = parser.parse_args(arguments)
    try:
        meta = load_meta(options.meta or Path(options.model).with_suffix(".json"))
        kinds: dict[str, Any] = {"segment": Segmenter, "classify": Classifier}
        runner = kinds[meta.task](options.model, meta)
        for path in options.images:
            picture = runtime.read_image(path)
            if meta.task == "segment":
                found = np.bincount(
                    runner.segment(picture).ravel(), minlength=len(meta.labels)
                ) / (picture.shape[0] * picture.shape[1])
            else:
                found = runner.classify(picture)
            best = np.argsort(-found, kind="stable")[:5]
            shares = {meta.labels[i]: round(float(found[i]), 4) for i in best}
            sys.stdout.write(json.dumps({"image": path, meta.task: shares}) + "\n")
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
