"""Random changes of images that keep their boxes right, made with albumentations."""

import functools
import os
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_lightnets._errors import unknown
from keras_lightnets.tasks.data import images
from keras_lightnets.tools.runtime import Meta, Placement, prepare

# A box is dropped when less than this share of it, or fewer than this many pixels
# along a side of the network's input, are left.
LEAST_VISIBLE = 0.25
LEAST_SIDE = 2.0

# SSD, section 2.2: a patch overlaps an object by at least one of these.
IOU_CHOICES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Op:
    """One albumentations transform.

    Attributes:
        name: Its class, such as "HorizontalFlip", or "IoUCrop" of this module.
        options: Its arguments.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """What happens to a training image.

    Attributes:
        geometry: Changes of image and boxes before the resize.
        colour: Changes of the pixels after the resize, where they cost least.
    """

    geometry: tuple[Op, ...] = ()
    colour: tuple[Op, ...] = ()


_FLIP = Op("HorizontalFlip", {"p": 0.5})
_ZOOM_OUT = Op("CropAndPad", {"percent": (0.0, 0.5), "keep_size": False, "fill": 114})
_JITTER = {"brightness": 0.125, "contrast": (0.5, 1.5), "hue": 0.05}

PRESETS: dict[str, Preset] = {
    "none": Preset(),
    "light": Preset(
        (_FLIP,),
        (Op("RandomBrightnessContrast", {"p": 0.5}),),
    ),
    "default": Preset(
        (Op("BBoxSafeRandomCrop", {"erosion_rate": 0.2, "p": 0.5}), _FLIP),
        (Op("ColorJitter", {**_JITTER, "saturation": 0.4, "p": 0.5}),),
    ),
    "ssd": Preset(
        (
            Op(_ZOOM_OUT.name, {**_ZOOM_OUT.options, "p": 0.3}),
            Op("IoUCrop", {"p": 0.8}),
            _FLIP,
        ),
        (Op("ColorJitter", {**_JITTER, "saturation": (0.5, 1.5), "p": 0.5}),),
    ),
}


class Changes:
    """A preset's transforms, built once per thread: a transform holds random state.

    Args:
        preset: A key of the table, or a `Preset`.
        presets: The table.
        target: (height, width) of the result.
        fit: How images are resized.
        fits: Legal values of `fit`.

    Raises:
        ValueError: If the preset or the fit is unknown.
    """

    def __init__(
        self,
        preset: "str | Preset",
        presets: "Mapping[str, Preset]",
        target: tuple[int, int],
        fit: str,
        fits: tuple[str, ...] = images.FITS,
    ) -> None:
        if isinstance(preset, str):
            if preset not in presets:
                raise unknown("augmentation preset", preset, presets)
            preset = presets[preset]
        if fit not in fits:
            raise unknown("fit", fit, fits)
        self.preset = preset
        self.target = target
        self.fit = fit
        self._local = threading.local()

    def apply(self, part: str, generators: "Generators", data: "Data") -> "Data":
        """Run this thread's transforms one after the other.

        `albumentations.Compose` would check and convert the boxes several times over,
        in Python, for which threads must wait on each other: three times the cost.

        Args:
            part: "geometry" or "colour".
            generators: What the transforms draw from.
            data: "image", uint8 (H, W, 3), and what changes with it: "bboxes", (M, 4
                or more), shares of the sides, then what they carry; "mask", (H, W).

        Returns:
            The same, changed; boxes may leave the image.
        """
        steps: list[Any] | None = getattr(self._local, part, None)
        if steps is None:
            steps = [_build(op) for op in getattr(self.preset, part)]
            setattr(self._local, part, steps)
        for step in steps:
            step.set_random_state(*generators)
            data = step(**data)
        return data


Generators = tuple[np.random.Generator, random.Random]
Data = dict[str, Any]


def generators_of(seed: int) -> Generators:
    """Return the two generators that albumentations draws from."""
    return np.random.default_rng(seed), random.Random(seed)


class Augment(Changes):
    """Changes, then resizes, an image and its boxes.

    The result depends on the arguments and the seed only, not on the thread or on
    earlier calls.

    Args:
        preset: A key of `PRESETS`, or a `Preset`.
        target: (height, width) of the result.
        fit: "stretch" resizes both sides, "letterbox" keeps the aspect ratio and
            pads with grey, as `tools.runtime` does.

    Raises:
        ValueError: If the preset or the fit is unknown.

    Example:
        >>> augment = Augment("ssd", (320, 320))
        >>> picture = np.zeros((48, 64, 3), np.uint8)
        >>> image, boxes, kept = augment(picture, np.array([[8, 8, 40, 40.0]]), 7)
        >>> image.shape
        (320, 320, 3)
    """

    def __init__(
        self, preset: str | Preset, target: tuple[int, int], fit: str = "stretch"
    ) -> None:
        super().__init__(preset, PRESETS, target, fit)
        self._meta = Meta(labels=(), size=target, resize=fit)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Change one image.

        Args:
            image: uint8 (H, W, 3), RGB.
            boxes: (M, 4), x1, y1, x2, y2 in pixels.
            seed: Decides every random choice.

        Returns:
            Image, uint8 (height, width, 3) of `target`; boxes, float32 (K, 4), in
            its pixels, all of them at least `LEAST_SIDE` wide and high; and kept,
            int64 (K,), the rows of the given boxes they come from.
        """
        generators = generators_of(seed)
        kept = np.arange(len(boxes))
        if self.preset.geometry:
            size = np.array(image.shape[1::-1] * 2)
            rows = np.concatenate([boxes / size, kept[:, None]], 1).astype(np.float32)
            data = self.apply("geometry", generators, {"image": image, "bboxes": rows})
            image = data["image"]
            boxes, kept = _visible(data["bboxes"], image.shape[:2])
        image, placement = prepare(image, self._meta)
        boxes = place_boxes(boxes, placement)
        if self.preset.colour:
            image = self.apply("colour", generators, {"image": image})["image"]
        big = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
        return image, boxes[big], kept[big]


def place_boxes(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Move pixel boxes of a picture to where `runtime.prepare` put it.

    Args:
        boxes: (M, 4), x1, y1, x2, y2 in pixels of the picture.
        placement: What `runtime.prepare` returned with the image.

    Returns:
        float32 (M, 4), in pixels of the network's input, inside it.
    """
    moved = boxes * np.array(placement.scale * 2) + np.array(placement.offset * 2)
    height, width = placement.size
    return np.clip(moved, 0, [width, height] * 2).astype(np.float32)


@functools.cache
def _albumentations() -> Any:
    # Importing albumentations otherwise asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _own_transforms() -> dict[str, Callable[[], Any]]:
    """Return what makes the transforms that albumentations lacks, by name."""
    from keras_lightnets.tasks.data import label_augment

    return {
        "IoUCrop": _iou_crop_class,
        "ScaledCrop": label_augment.scaled_crop_class,
        "RandAugment": lambda: label_augment.rand_augment,
    }


def _build(op: Op) -> Any:
    library = _albumentations()
    own = _own_transforms()
    if op.name not in own and not hasattr(library, op.name):
        names = [n for n in dir(library) if n[0].isupper()]
        raise unknown("albumentations transform", op.name, [*own, *names])
    make = own[op.name]() if op.name in own else getattr(library, op.name)
    return make(**op.options)


def _visible(rows: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes (M, 5) of shares to the image; drop those mostly cut off.

    Returns boxes (K, 4) in pixels and the numbers in the last column (K,).
    """
    clipped = np.clip(rows[:, :4], 0, 1)
    areas, left = (
        np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None).prod(1)
        for boxes in (rows, clipped)
    )
    seen = left > LEAST_VISIBLE * areas
    height, width = size
    pixels = clipped[seen] * np.array([width, height] * 2, np.float32)
    return pixels, rows[seen, 4].astype(np.int64)


@functools.cache
def _iou_crop_class() -> type:
    base: Any = _albumentations().BBoxSafeRandomCrop

    class IoUCrop(base):
        """Crops a patch that overlaps an object by a drawn amount."""

        def get_params_dependent_on_data(
            self, params: dict[str, Any], data: dict[str, Any]
        ) -> dict[str, Any]:
            height, width = params["shape"][:2]
            scaled = data["bboxes"][:, :4] * np.array([width, height] * 2, np.float32)
            window = iou_window((height, width), scaled, self.random_generator)
            return {"crop_coords": window}

    return IoUCrop


def iou_window(
    size: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the crop of the SSD paper.

    Args:
        size: (height, width) of the image.
        boxes: (M, 4), x1, y1, x2, y2 in pixels.
        rng: Where randomness comes from.

    Returns:
        x1, y1, x2, y2 of a patch with sides of 0.3-1 of the image's and an aspect
        ratio of 0.5-2 times the image's: some box has its centre inside and, with
        the patch, an IoU of at least one of `IOU_CHOICES`. The whole image if there
        are no boxes or none of 50 tries fits.

    Reference:
        SSD, section 2.2, https://arxiv.org/abs/1512.02325
    """
    height, width = size
    whole = (0, 0, width, height)
    least = rng.choice(IOU_CHOICES)
    if not len(boxes):
        return whole
    sides = rng.uniform(0.3, 1.0, (50, 2)) * (width, height)
    starts = rng.uniform(0, 1, (50, 2)) * ((width, height) - sides)
    patches = np.concatenate([starts, starts + sides], 1).astype(int)
    ratio = sides[:, 0] / sides[:, 1] * (height / width)
    low = np.maximum(patches[:, None, :2], boxes[None, :, :2])
    high = np.minimum(patches[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    patch_areas = (patches[:, 2:] - patches[:, :2]).prod(-1)
    iou = shared / (areas[None] + patch_areas[:, None] - shared)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centres >= patches[:, None, :2]) & (centres < patches[:, None, 2:])
    fits = (inside.all(-1) & (iou >= least)).any(1)
    fits &= (ratio >= 0.5) & (ratio <= 2) & (patch_areas > 0)
    first = int(fits.argmax())
    if not fits[first]:
        return whole
    x1, y1, x2, y2 = patches[first].tolist()
    return x1, y1, x2, y2
