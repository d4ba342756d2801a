"""Run a detector's .tflite file: one file, numpy and a TFLite interpreter.

Copy this file, `model.tflite` and `model.json` to any device and run
`python runtime.py model.tflite image.jpg`. It needs numpy, one of ai_edge_litert,
tflite_runtime (pycoral's) or tensorflow, and, to read pictures, OpenCV or Pillow.

Example:
    >>> found = Detector("model.tflite").detect(read_image("a.jpg"))  # doctest: +SKIP
"""

import argparse
import ctypes
import dataclasses
import importlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEGAL = {
    "task": ("detect",),
    "range": ("0-255 RGB",),
    "resize": ("stretch", "letterbox"),
    "align": ("center", "corner"),
    "scores": ("softmax", "sigmoid"),
}
RAW_OUTPUTS = ("boxes", "scores")
DETECTION_OUTPUTS = ("boxes", "classes", "scores", "count")
# Width and height grow at most 62.5 fold, as in torchvision's box coder.
MAX_LOG_RATIO = math.log(1000.0 / 16)
CANDIDATES_PER_CLASS = 300
INTERPRETERS = ("ai_edge_litert", "tflite_runtime", "tensorflow.lite.python")
EDGETPU_MARK = b"edgetpu-custom-op"
EDGETPU_LIBRARY = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}.get(
    sys.platform, "libedgetpu.so.1"
)


def _choice(key: str, value: Any) -> str:
    if value not in LEGAL[key]:
        raise ValueError(f"Unknown {key} {value!r}. Legal: {', '.join(LEGAL[key])}.")
    return str(value)


@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    `boxes` (M, 4) float32 x1, y1, x2, y2 (0..1 of the input from `postprocess`, pixels
    from `Detector.detect`), `scores` (M,) float32, `labels` (M,) int32 positions.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a detector's file does not say itself: the sidecar JSON, checked.

    `scores` is "softmax" (column 0 is background) or "sigmoid" (no background);
    `anchors` are (N, 4) cx, cy, w, h in 0..1, empty for files that end in the
    detection post-processing op; `align` and `fill` (grey, 0..255) place a
    letterboxed picture; `outputs` maps "boxes" and "scores" to positions or tensor
    names in the file and may be empty.
    """

    labels: tuple[str, ...]
    size: tuple[int, int]
    scores: str = "softmax"
    anchors: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4)))
    resize: str = "stretch"
    align: str = "center"
    fill: int = 114
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    outputs: Mapping[str, int | str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Meta":
        """Check the decoded JSON object; ValueError names what is wrong."""
        missing = [key for key in ("labels", "input", "scores") if key not in data]
        if missing:
            raise ValueError(f"The sidecar lacks {missing}; it holds {sorted(data)}.")
        _choice("task", data.get("task", "detect"))
        given = {"range": "0-255 RGB", **data["input"]}
        size = given.get("size")
        if not isinstance(size, Sequence) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"input.size must be [height, width], received {size!r}.")
        _choice("range", given["range"])
        return cls(
            labels=tuple(str(name) for name in data["labels"]),
            size=(int(size[0]), int(size[1])),
            scores=_choice("scores", data["scores"]),
            anchors=np.asarray(data.get("anchors", []), np.float32).reshape(-1, 4),
            resize=_choice("resize", given.get("resize", "stretch")),
            align=_choice("align", given.get("align", "center")),
            fill=int(given.get("fill", 114)),
            box_weights=tuple(map(float, data.get("box_weights", (10, 10, 5, 5)))),
            outputs=dict(data.get("outputs", {})),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the sidecar, ready for `json.dumps`."""
        keys = ("size", "resize", "align", "fill")
        given = {key: getattr(self, key) for key in keys}
        return {
            "task": "detect",
            "labels": list(self.labels),
            "input": {**given, "range": LEGAL["range"][0]},
            "scores": self.scores,
            "anchors": self.anchors.astype(float).round(7).tolist(),
            "box_weights": list(self.box_weights),
            "outputs": dict(self.outputs),
        }


def load_meta(path: str | os.PathLike[str]) -> Meta:
    """Read a sidecar JSON; ValueError if it is missing, broken or incomplete."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No sidecar {path}: it is written beside the .tflite file.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(data).__name__}.")
    return Meta.from_dict(data)


def _resize_matrix(out: int, size: int) -> np.ndarray:
    """Weights (out, size) of one axis; half-pixel centres, edges repeated."""
    centre = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(centre[:, None] - np.arange(size)), 0)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a (H, W, C) uint8 picture bilinearly to a height and width.

    OpenCV does it where present, else numpy; the two differ by at most 1 level.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        rows = _resize_matrix(size[0], height).astype(np.float32)
        columns = _resize_matrix(size[1], width).astype(np.float32)
        tall = np.tensordot(rows, image.astype(np.float32), (1, 0))
        out = np.tensordot(columns, tall, (1, 1)).transpose(1, 0, 2)
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a picture lies in the network's input; pairs are (x, y), sizes (h, w)."""

    scale: tuple[float, float]
    offset: tuple[int, int]
    size: tuple[int, int]
    source: tuple[int, int]

    def to_pixels(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (M, 4) from 0..1 of the input to clipped picture pixels."""
        pixels = boxes * np.asarray(self.size[::-1] * 2, np.float32)
        pixels = (pixels - np.asarray(self.offset * 2)) / np.asarray(self.scale * 2)
        return np.clip(pixels, 0, self.source[::-1] * 2).astype(np.float32)


def prepare(image: np.ndarray, meta: Meta) -> tuple[np.ndarray, Placement]:
    """Fit a picture (H, W, 3) uint8 RGB into the network's input.

    Returns (height, width, 3) uint8 and where the picture lies in it; ValueError if
    the picture is empty or of another form.
    """
    form = (image.ndim, image.shape[-1], image.dtype)
    if form != (3, 3, np.uint8) or not image.size:
        raise ValueError(
            "A picture must be (height, width, 3) uint8 RGB with pixels, received "
            f"{image.shape} {image.dtype}. read_image() returns that form."
        )
    (height, width), (tall, wide), inner = image.shape[:2], meta.size, meta.size
    if meta.resize == "letterbox":
        ratio = min(tall / height, wide / width)
        inner = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    centred = meta.align == "center"
    top, left = ((tall - inner[0]) // 2, (wide - inner[1]) // 2) if centred else (0, 0)
    fitted = resize_image(image, inner)
    if inner != meta.size:
        canvas = np.full((tall, wide, 3), meta.fill, np.uint8)
        canvas[top : top + inner[0], left : left + inner[1]] = fitted
        fitted = canvas
    scale = (inner[1] / width, inner[0] / height)
    return fitted, Placement(scale, (left, top), meta.size, (height, width))


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB, upright; ValueError if it is none."""
    if not Path(path).is_file():
        raise ValueError(f"No picture at {path}.")
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        return _read_with_pillow(path)
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{path} is not a readable picture.")
    return np.ascontiguousarray(image[:, :, ::-1])


def _read_with_pillow(path: str | os.PathLike[str]) -> np.ndarray:
    try:
        pillow = importlib.import_module("PIL.Image")
        operations = importlib.import_module("PIL.ImageOps")
    except ImportError as error:
        raise ImportError("Reading pictures needs: pip install pillow") from error
    try:
        with pillow.open(path) as opened:
            upright = operations.exif_transpose(opened)
            if upright.mode.startswith("I"):  # 16 bits
                upright = pillow.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"), np.uint8)
    except OSError as error:
        raise ValueError(f"{path} is not a readable picture: {error}.") from error


def decode_boxes(
    raw: np.ndarray, anchors: np.ndarray, weights: Sequence[float] = (10, 10, 5, 5)
) -> np.ndarray:
    """Turn encodings (..., N, 4) dx, dy, dw, dh into boxes x1, y1, x2, y2.

    Anchors are (N, 4) cx, cy, w, h in 0..1, weights the divisors of the encodings.
    Returns float32, not clipped; ValueError if the two counts differ.
    """
    if raw.shape[-2:] != anchors.shape:
        raise ValueError(
            f"{raw.shape[-2:]} box encodings do not fit {anchors.shape} anchors: "
            "the model and its sidecar are not from the same export."
        )
    scaled = raw.astype(np.float32) / np.asarray(weights, np.float32)
    centre = scaled[..., :2] * anchors[:, 2:] + anchors[:, :2]
    half = np.exp(np.minimum(scaled[..., 2:], MAX_LOG_RATIO)) * (anchors[:, 2:] / 2)
    return np.concatenate([centre - half, centre + half], -1).astype(np.float32)


def _suppress(boxes: np.ndarray, alive: np.ndarray, iou: float) -> np.ndarray:
    """Greedy suppression of (C, K, 4) boxes sorted by score; all classes at once."""
    keep = alive.copy()
    area = np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)
    for row in range(boxes.shape[1] - 1):
        active = np.flatnonzero(keep[:, row])
        if not active.size:
            continue
        rest = boxes[active, row + 1 :]
        low = np.maximum(boxes[active, row, None, :2], rest[..., :2])
        high = np.minimum(boxes[active, row, None, 2:], rest[..., 2:])
        inner = np.prod(np.maximum(high - low, 0), -1)
        union = area[active, row, None] + area[active, row + 1 :] - inner
        keep[active, row + 1 :] &= inner <= iou * union
    return keep


def nms(boxes: np.ndarray, scores: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """Return the positions of the boxes (N, 4) of one class to keep, best first.

    A box goes when it overlaps a better kept one by more than `iou`.
    """
    order = np.argsort(-scores, kind="stable")
    alive = np.ones((1, len(order)), bool)
    return order[_suppress(boxes[order][None], alive, iou)[0]]


def class_scores(raw: np.ndarray, activation: str) -> np.ndarray:
    """Turn logits into class probabilities (..., N, classes) without background.

    Raw scores have classes + 1 columns for "softmax", classes for "sigmoid".
    """
    raw = raw.astype(np.float32)
    if _choice("scores", activation) == "sigmoid":
        return (0.5 * (1 + np.tanh(0.5 * raw))).astype(np.float32)
    powers = np.exp(raw - raw.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True))[..., 1:]


def postprocess(
    raw_boxes: np.ndarray,
    raw_scores: np.ndarray,
    meta: Meta | Mapping[str, Any],
    score_threshold: float = 0.3,
    iou: float = 0.5,
    max_detections: int = 100,
) -> Detections:
    """Decode one image's raw outputs and suppress overlaps class by class.

    Args:
        raw_boxes: (N, 4) or (1, N, 4) encodings dx, dy, dw, dh.
        raw_scores: (N, K) or (1, N, K) logits.
        meta: The sidecar, as `Meta` or as the decoded JSON.
        score_threshold: Only higher scores count; the best 300 of each class.
        iou: Overlap above which the worse box of a class is dropped.
        max_detections: The most boxes returned.

    Returns:
        Boxes in 0..1 of the network's input, clipped.

    Raises:
        ValueError: If the outputs do not fit the sidecar.
    """
    meta = meta if isinstance(meta, Meta) else Meta.from_dict(meta)
    raw_boxes = raw_boxes.reshape(raw_boxes.shape[-2:])
    boxes = np.clip(decode_boxes(raw_boxes, meta.anchors, meta.box_weights), 0, 1)
    scores = class_scores(raw_scores.reshape(raw_scores.shape[-2:]), meta.scores).T
    if scores.shape != (len(meta.labels), len(boxes)):
        raise ValueError(
            f"Scores of shape {raw_scores.shape} ({meta.scores}) do not fit "
            f"{len(boxes)} anchors and {len(meta.labels)} labels."
        )
    most = int((scores > score_threshold).sum(1).max(initial=0))
    order = np.argsort(-scores, axis=1, kind="stable")
    order = order[:, : min(most, CANDIDATES_PER_CLASS)]
    ranked = np.take_along_axis(scores, order, 1)
    keep = _suppress(boxes[order], ranked > score_threshold, iou)
    labels, columns = np.nonzero(keep)
    values = ranked[labels, columns]
    best = np.argsort(-values, kind="stable")[:max_detections]
    rows = order[labels, columns][best]
    return Detections(boxes[rows], values[best], labels[best].astype(np.int32))


def _interpreter(content: bytes, threads: int) -> Any:
    """Open a file's content with whichever interpreter is installed."""
    for name in INTERPRETERS:
        try:
            module = importlib.import_module(f"{name}.interpreter")
            break
        except ImportError:
            continue
    else:
        raise ImportError("Running a .tflite file needs: pip install ai-edge-litert")
    delegates = []
    if EDGETPU_MARK in content:
        try:
            ctypes.CDLL(EDGETPU_LIBRARY)  # load_delegate's own error is less clean
            delegates = [module.load_delegate(EDGETPU_LIBRARY)]
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The file is compiled for the Edge TPU; {EDGETPU_LIBRARY} does not "
                f"load: {error}. Install libedgetpu1-std and plug the device in."
            ) from error
    return module.Interpreter(
        model_content=content, num_threads=threads, experimental_delegates=delegates
    )


class TFLiteModel:
    """A .tflite file that takes pictures and returns floats, whatever it stores.

    `inputs` and `outputs` are its tensor details. ValueError: no file, or no model.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, threads: int = 2):
        if not isinstance(source, bytes):
            if not Path(source).is_file():
                raise ValueError(f"No model at {source}.")
            source = Path(source).read_bytes()
        if source[4:8] != b"TFL3":
            raise ValueError(f"Not a TFLite file: bytes 4 to 8 are {source[4:8]!r}.")
        try:
            self._interpreter = _interpreter(source, threads)
            self._interpreter.allocate_tensors()
        except RuntimeError as error:
            raise ValueError(f"The interpreter refused the file: {error}.") from error
        self.inputs = list(self._interpreter.get_input_details())
        self.outputs = list(self._interpreter.get_output_details())

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        """Return a batch of one picture, 0..255, as the file's input reads it."""
        row = self.inputs[0]
        if tuple(pixels.shape) != tuple(row["shape"]):
            raise ValueError(f"The file takes {row['shape']}, not {pixels.shape}.")
        if not np.issubdtype(row["dtype"], np.integer):
            return pixels.astype(row["dtype"])
        levels = np.clip(np.rint(pixels), 0, 255).astype(np.int16)
        return (levels - 128 * (row["dtype"] == np.int8)).astype(row["dtype"])

    def floats(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return outputs as float32; those not quantised keep their values."""
        ways = [row["quantization"] for row in self.outputs]
        pairs = zip((o.astype(np.float32) for o in outputs), ways, strict=True)
        return [
            (o - zero) * np.float32(step) if step else o for o, (step, zero) in pairs
        ]

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Run a batch of one picture, 0..255; float32 outputs in the file's order."""
        self._interpreter.set_tensor(self.inputs[0]["index"], self.stored(pixels))
        self._interpreter.invoke()
        get = self._interpreter.get_tensor
        return self.floats([get(row["index"]) for row in self.outputs])


class Detector:
    """A detector's .tflite file with its sidecar (default: the .json beside it)."""

    def __init__(
        self, path: str | os.PathLike[str], meta: Meta | None = None, threads: int = 2
    ):
        self.meta = meta or load_meta(Path(path).with_suffix(".json"))
        self.model = TFLiteModel(path, threads)
        self._order = self._find_outputs()

    def _find_outputs(self) -> dict[str, int]:
        """Position of each output: as the sidecar says, else by shape."""
        shapes = [tuple(row["shape"]) for row in self.model.outputs]
        places = {row["name"]: at for at, row in enumerate(self.model.outputs)}
        names = DETECTION_OUTPUTS if len(shapes) == 4 else RAW_OUTPUTS
        columns = len(self.meta.labels) + (self.meta.scores == "softmax")
        last = [shape[-1] for shape in shapes if shape]
        given: dict[Any, Any] = dict(self.meta.outputs)
        if not given and len(shapes) == 4:
            given = {name: at for at, name in enumerate(names)}
        elif not given and places.keys() >= set(names):
            given = places
        elif not given and sorted(last) == sorted((4, columns)) and columns != 4:
            given = {"boxes": last.index(4), "scores": last.index(columns)}
        order = {name: places.get(at, at) for name, at in given.items()}
        if any(order.get(name) not in range(len(shapes)) for name in names):
            raise ValueError(
                f"The file's outputs {list(zip(places, shapes, strict=True))} do not "
                f"fit the sidecar: outputs {dict(self.meta.outputs)}, "
                f"{len(self.meta.labels)} labels ({self.meta.scores})."
            )
        return order

    def detect(
        self,
        image: np.ndarray,
        score_threshold: float = 0.3,
        iou: float = 0.5,
        max_detections: int = 100,
    ) -> Detections:
        """Find objects in one (H, W, 3) uint8 RGB picture.

        The arguments are those of `postprocess`; files that end in the detection
        post-processing op hold their own `iou`. Boxes are in pixels of the picture.
        """
        fitted, placement = prepare(image, self.meta)
        outputs = self.model.run(fitted[None])
        parts = {name: outputs[place][0] for name, place in self._order.items()}
        boxes, scores = parts["boxes"], parts["scores"]
        if "count" in parts:
            rows = np.arange(min(int(parts["count"]), max_detections))
            rows = rows[scores[rows] > score_threshold]
            yxyx, labels = np.clip(boxes[rows], 0, 1), parts["classes"][rows]
            labels = labels.astype(np.int32)
            found = Detections(yxyx[:, [1, 0, 3, 2]], scores[rows], labels)
        else:
            found = postprocess(
                boxes, scores, self.meta, score_threshold, iou, max_detections
            )
        return dataclasses.replace(found, boxes=placement.to_pixels(found.boxes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Detect objects in pictures; one JSON line per picture."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="the .tflite file")
    parser.add_argument("images", nargs="+", help="pictures")
    parser.add_argument("--meta", help="sidecar JSON (default: beside the model)")
    parser.add_argument("--threshold", type=float, default=0.3)
    options = parser.parse_args(arguments)
    try:
        meta = load_meta(options.meta) if options.meta else None
        detector = Detector(options.model, meta)
        for path in options.images:
            found = detector.detect(read_image(path), options.threshold)
            parts = (found.labels, found.scores, found.boxes.astype(float).round(1))
            rows = [
                {"label": detector.meta.labels[label], "score": score, "box": box}
                for label, score, box in zip(*(p.tolist() for p in parts), strict=True)
            ]
            sys.stdout.write(json.dumps({"image": path, "detections": rows}) + "\n")
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
