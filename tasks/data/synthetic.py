"""Draws a small COCO data set of shapes, for trying the whole path without data.

Four classes of textured shapes of any size, colour and rotation lie over each other
on cluttered, noisy backgrounds: small, but a real detection problem.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets.tasks.data.images import opencv

# An object may lose this share of its area to those drawn over it.
MOST_COVERED = 0.4

# Least distance between the mean colours of an object and what it lies on.
LEAST_CONTRAST = 70

_SUBPIXEL = 4  # bits of fraction in OpenCV's drawing coordinates
_TRIES = 30


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What to draw.

    Attributes:
        train: Number of training images.
        val: Number of validation images.
        size: Longest side of an image in pixels; the shorter one is 75-100 % of it.
        objects: Least and most objects per image.
        extent: Least and most size of an object, as a share of `size`.
        noise: Most standard deviation of the pixel noise, in units of 0-255.
        seed: Same seed, same bytes, with the same versions of numpy and OpenCV.
    """

    train: int = 400
    val: int = 100
    size: int = 320
    objects: tuple[int, int] = (1, 6)
    extent: tuple[float, float] = (0.12, 0.45)
    noise: float = 12.0
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.extent
        if min(self.train, self.val) < 1 or self.size < 32:
            raise ValueError(
                "train and val must be at least 1, size at least 32. Received: "
                f"train={self.train}, val={self.val}, size={self.size}"
            )
        if not 0 < low <= high <= 0.7 or not 1 <= self.objects[0] <= self.objects[1]:
            raise ValueError(
                "extent must be two shares, 0 < least <= most <= 0.7, and objects two "
                f"counts from 1. Received: extent={self.extent}, objects={self.objects}"
            )


_DEFAULT = SyntheticConfig()


def _regular(corners: int, radii: tuple[float, ...]) -> np.ndarray:
    """Return a closed outline around (0, 0), its radii taken in turn."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    radius = np.resize(radii, corners)
    return np.stack([np.cos(angles) * radius, np.sin(angles) * radius], 1)


# Class name -> outline, (points, 2), inside the unit circle.
SHAPES: dict[str, np.ndarray] = {
    "circle": _regular(48, (1.0,)),
    "square": _regular(4, (1.0,)),
    "triangle": _regular(3, (1.0,)),
    "star": _regular(10, (1.0, 0.42)),
}


def write_shapes(
    out: str | Path, config: SyntheticConfig = _DEFAULT
) -> dict[str, Path]:
    """Write a data set of shapes in COCO format.

    Args:
        out: Folder to write to: `train/*.jpg`, `val/*.jpg` and
            `annotations/instances_{train,val}.json`.
        config: What to draw.

    Returns:
        "train", "val": folders of images; "train_annotations", "val_annotations":
        JSON files.

    Example:
        >>> paths = write_shapes("shapes")  # doctest: +SKIP
        >>> data = CocoDataset(  # doctest: +SKIP
        ...     paths["train"], paths["train_annotations"]
        ... )
    """
    out = Path(out)
    paths: dict[str, Path] = {}
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(thread_name_prefix="draw") as pool:
        for number, split in enumerate(("train", "val")):
            folder = out / split
            folder.mkdir(exist_ok=True)
            seeds = [[config.seed, number, i] for i in range(getattr(config, split))]
            drawn = list(pool.map(_writer(folder, config), seeds))
            paths[split] = folder
            file = out / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps(_annotations(drawn)), encoding="utf-8")
            paths[f"{split}_annotations"] = file
    return paths


def draw_image(
    seed: int | list[int], config: SyntheticConfig = _DEFAULT
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        seed: Decides everything.
        config: What to draw.

    Returns:
        Image, uint8 (H, W, 3), RGB; boxes, float32 (M, 4), x1, y1, x2, y2 in pixels
        around the whole shapes, hidden parts included; labels, int32 (M,), in the
        order of `SHAPES`; and areas, float32 (M,), of the whole shapes.
    """
    rng = np.random.default_rng(seed)
    sides = (config.size, int(config.size * rng.uniform(0.75, 1.0)))
    height, width = sides if rng.random() < 0.3 else sides[::-1]
    canvas = _background(rng, height, width)
    _clutter(rng, canvas, int(rng.integers(4, 12)))
    objects = _place(rng, (height, width), config)
    for _, _, points, mask in objects:
        _paint(rng, canvas, points, mask)
    _clutter(rng, canvas, int(rng.integers(0, 3)))
    sigma = rng.uniform(2, max(2.0, config.noise))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(sigma)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    boxes = np.array([box for box, *_ in objects], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label, *_ in objects], np.int32)
    areas = np.array([mask.sum() / 255 for *_, mask in objects], np.float32)
    return image, boxes, labels, areas


def _writer(folder: Path, config: SyntheticConfig) -> Callable[[list[int]], Any]:
    cv2 = opencv()

    def write(seed: list[int]) -> Any:
        image, *targets = draw_image(seed, config)
        name = f"{seed[-1] + 1:06d}.jpg"
        options = [cv2.IMWRITE_JPEG_QUALITY, 90]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
        (folder / name).write_bytes(data.tobytes())
        return name, image.shape[:2], targets

    return write


def _annotations(drawn: list[Any]) -> dict[str, Any]:
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (name, (height, width), (boxes, labels, areas)) in enumerate(drawn, 1):
        listed.append({"id": i, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label, area in zip(boxes, labels, areas, strict=True):
            corners = (x1, y1, x2 - x1, y2 - y1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(label) + 1,
                    "bbox": [round(float(v), 2) for v in corners],
                    "area": round(float(area), 1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(SHAPES, 1)]
    return {"images": listed, "annotations": annotations, "categories": categories}


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return smooth coloured patches at two scales, float32 (H, W, 3)."""
    cv2 = opencv()
    base = rng.uniform(40, 215, 3).astype(np.float32)
    canvas = np.broadcast_to(base, (height, width, 3)).copy()
    for cells, strength in ((4, 40.0), (24, 14.0)):
        coarse = rng.uniform(-strength, strength, (cells, cells, 3)).astype(np.float32)
        canvas += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(canvas, 0, 255)


def _clutter(rng: np.random.Generator, canvas: np.ndarray, count: int) -> None:
    """Draw thin lines and arcs that belong to no class."""
    cv2 = opencv()
    height, width = canvas.shape[:2]
    for _ in range(count):
        colour = rng.uniform(0, 255, 3).tolist()
        thick = int(rng.integers(1, 4))
        start, stop = rng.uniform(0, 1, (2, 2)) * (width, height)
        a, b = (tuple(int(v) for v in point) for point in (start, stop))
        if rng.random() < 0.6:
            cv2.line(canvas, a, b, colour, thick, cv2.LINE_AA)
        else:
            axes = tuple(int(v) for v in rng.uniform(8, 0.3 * width, 2))
            angles = (rng.uniform(0, 360), 0, rng.uniform(40, 150))
            cv2.ellipse(canvas, a, axes, *angles, colour, thick, cv2.LINE_AA)


def _place(
    rng: np.random.Generator, size: tuple[int, int], config: SyntheticConfig
) -> list[tuple[list[float], int, np.ndarray, np.ndarray]]:
    """Choose shapes so that none is hidden by more than `MOST_COVERED`.

    Returns box, label, outline and mask of each, bottom one first.
    """
    cv2 = opencv()
    placed: list[tuple[list[float], int, np.ndarray, np.ndarray]] = []
    hidden: list[np.ndarray] = []
    wanted = int(rng.integers(config.objects[0], config.objects[1] + 1))
    for _ in range(_TRIES):
        if len(placed) == wanted:
            break
        label = int(rng.integers(len(SHAPES)))
        points = _outline(rng, size, label, config)
        mask = _mask(points, size)
        covers = [cv2.bitwise_or(cover, mask) for cover in hidden]
        shares = [
            cv2.countNonZero(cv2.bitwise_and(cover, below)) / cv2.countNonZero(below)
            for cover, (*_, below) in zip(covers, placed, strict=True)
        ]
        if max(shares, default=0.0) <= MOST_COVERED:
            placed.append((_extent(mask), label, points, mask))
            hidden = [*covers, np.zeros_like(mask)]
    return placed


def _outline(
    rng: np.random.Generator, size: tuple[int, int], label: int, config: SyntheticConfig
) -> np.ndarray:
    """Return a shape's corners in pixels, (points, 2), wholly inside the image."""
    shape = list(SHAPES.values())[label]
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = shape @ turn.T
    span = points.max(0) - points.min(0)
    # Drawn evenly in the logarithm: as many small objects as large ones.
    share = np.exp(rng.uniform(*np.log(config.extent)))
    points = points * (share * config.size / span.max())
    low, high = points.min(0), points.max(0)
    room = np.array(size[::-1]) - (high - low) - 4  # 2 pixels for the soft edge
    return points - low + 2 + rng.uniform(0, 1, 2) * np.maximum(room, 0)


def _mask(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return how much of each pixel an outline covers, uint8 (H, W), 0-255."""
    cv2 = opencv()
    mask = np.zeros(size, np.uint8)
    # OpenCV counts from pixel centres, boxes from pixel edges.
    corners = np.rint((points - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, _SUBPIXEL)
    return mask


def _extent(mask: np.ndarray) -> list[float]:
    """Return x1, y1, x2, y2 around the pixels a shape covers by half or more."""
    x, y = (np.flatnonzero((mask >= 128).any(axis)) for axis in (0, 1))
    return [float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)]


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, points: np.ndarray, mask: np.ndarray
) -> None:
    """Blend a textured shape into the canvas."""
    # The soft edge reaches up to 2 pixels beyond the outline.
    x1, y1 = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
    x2, y2 = np.ceil(points.max(0)).astype(int) + 2
    window = canvas[y1:y2, x1:x2]
    weight = mask[y1:y2, x1:x2, None].astype(np.float32) / 255
    below = (window * weight).sum((0, 1)) / weight.sum()
    for _ in range(_TRIES):
        colour = rng.uniform(10, 245, 3)
        if np.abs(colour - below).max() >= LEAST_CONTRAST:
            break
    texture = _texture(rng, window.shape[:2])[..., None]
    fill = colour.astype(np.float32) + texture * np.float32(rng.uniform(8, 30))
    window += (fill - window) * weight
    if rng.random() < 0.4:
        cv2 = opencv()
        corners = np.rint((points - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
        edge = (colour * rng.uniform(0.3, 0.8)).tolist()
        cv2.polylines(canvas, [corners], True, edge, 1, cv2.LINE_AA, _SUBPIXEL)


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return stripes, checks or blotches, float32 (H, W), about -1 to 1."""
    cv2 = opencv()
    height, width = size
    kind = int(rng.integers(3))
    if kind == 2:
        cells = (max(2, height // 12), max(2, width // 12))
        coarse = rng.uniform(-1, 1, cells).astype(np.float32)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    angle, wave = rng.uniform(0, np.pi), rng.uniform(5, 16)
    y, x = np.mgrid[:height, :width].astype(np.float32) * np.float32(2 * np.pi / wave)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    stripes = np.sin(x * cos + y * sin)
    return stripes if kind == 0 else stripes * np.sin(y * cos - x * sin)
