"""Curves as PNG files; boxes and masks drawn on pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets.tasks.run import atomic_file

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def plot_history(
    history: Sequence[Mapping[str, Any]], path: Path, metrics: Sequence[str]
) -> None:
    """Draw loss and metrics over the epochs.

    Args:
        history: One mapping per epoch, with "epoch" and "loss".
        path: PNG file to write.
        metrics: Keys drawn in the second panel.
    """
    figure, (left, right) = _panels(2)
    losses = [key for key in history[0] if key.endswith("loss")] if history else []
    for axis, keys in ((left, losses), (right, metrics)):
        for key in keys:
            rows = [row for row in history if row.get(key) is not None]
            epochs = [row["epoch"] for row in rows]
            axis.plot(epochs, [row[key] for row in rows], marker=".", label=key)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    left.set_title("training loss")
    right.set_title("validation")
    _save(figure, path)


def plot_precision(curve: Sequence[float], recalls: np.ndarray, path: Path) -> None:
    """Draw precision over recall.

    Args:
        curve: Precisions, 0..1.
        recalls: Recalls, 0..1.
        path: PNG file to write.
    """
    figure, (axis,) = _panels(1)
    axis.plot(recalls, curve)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.set_title("precision over recall at IoU 0.5, mean of classes")
    axis.grid(alpha=0.3)
    _save(figure, path)


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw which class was taken for which, as shares of the true class.

    Args:
        counts: Rows of true, columns of found classes.
        names: Class names.
        path: PNG file to write.
    """
    figure, (axis,) = _panels(1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(names) <= 30:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="found", ylabel="true", title="confusion")
    _save(figure, path)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """Draw boxes with class names on a copy of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) x1, y1, x2, y2 in pixels.
        labels: Class index of each box.
        names: Class names.
        scores: 0..1 of each box, or None.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import cv2

    canvas = np.ascontiguousarray(image).copy()
    thick = max(1, round(max(image.shape[:2]) / 320))
    scale = 0.4 * thick
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        colour = COLOURS[int(label) % len(COLOURS)]
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thick)
        text = names[int(label)]
        if scores is not None:
            text = f"{text} {float(scores[index]):.2f}"
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        top = max(y1, height + 4)
        corner = (x1 + width, top - height - 4)
        cv2.rectangle(canvas, (x1, top), corner, colour, cv2.FILLED)
        place = (x1, top - 2)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(canvas, text, place, font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def mask_colours(count: int) -> np.ndarray:
    """Return a colour per class, uint8 (count, 3): the palette, then spread hues."""
    rng = np.random.default_rng(0)
    more = rng.integers(40, 240, (max(0, count - len(COLOURS)), 3))
    return np.concatenate([np.array(COLOURS), more])[:count].astype(np.uint8)


def draw_mask(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], opacity: float = 0.55
) -> np.ndarray:
    """Colour a picture by class, with a legend of the classes it shows.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) classes.
        names: Class names.
        opacity: Of the colours, 0..1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import cv2

    palette = mask_colours(len(names))
    mixed = image * (1.0 - opacity) + palette[labels] * opacity
    canvas = np.ascontiguousarray(np.rint(mixed).astype(np.uint8))
    scale = max(0.35, max(image.shape[:2]) / 1400)
    step = max(12, round(34 * scale))
    for row, label in enumerate(np.unique(labels)):
        top = row * step
        colour = tuple(int(v) for v in palette[label])
        corner = (step - 2, top + step - 2)
        cv2.rectangle(canvas, (2, top + 2), corner, colour, cv2.FILLED)
        place, font = (step + 2, top + step - 4), cv2.FONT_HERSHEY_SIMPLEX
        for shade, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            text = names[int(label)]
            cv2.putText(canvas, text, place, font, scale, shade, width, cv2.LINE_AA)
    return canvas


def save_mask(path: Path, labels: np.ndarray) -> None:
    """Write classes as a PNG of numbers with a palette, as masks are read.

    Args:
        path: .png file.
        labels: (H, W) classes, 0..255.
    """
    from PIL import Image

    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(mask_colours(256).ravel().tolist())
    with atomic_file(path) as part:
        picture.save(part, format="PNG")


def save_picture(path: Path, image: np.ndarray) -> None:
    """Write a picture; the suffix decides the format.

    Args:
        path: .jpg or .png file.
        image: (H, W, 3) uint8 RGB.

    Raises:
        OSError: If the picture cannot be written.
    """
    import cv2

    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(image[:, :, ::-1]))
    if not done:
        raise OSError(f"Cannot encode {path} as {path.suffix}.")
    with atomic_file(path) as part:
        part.write_bytes(data.tobytes())


def _panels(count: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * count, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path) as part:
        figure.savefig(part, dpi=110)
