"""Random changes of images with a mask or a class, made with albumentations."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lightnets._errors import unknown
from keras_lightnets.tasks.data import images
from keras_lightnets.tasks.data.augment import (
    Changes,
    Op,
    Preset,
    generators_of,
)
from keras_lightnets.tasks.data.masks import IGNORE
from keras_lightnets.tools import runtime, runtime_labels
from keras_lightnets.tools.runtime_labels import LabelMeta

_FLIP = Op("HorizontalFlip", {"p": 0.5})
_COLOUR = Op(
    "ColorJitter",
    {
        "brightness": 0.25,
        "contrast": (0.75, 1.33),
        "saturation": (0.75, 1.33),
        "hue": 0.03,
        "p": 0.5,
    },
)

# The scale's range is that of DeepLab (https://arxiv.org/abs/1706.05587, section 4.1);
# "ScaledCrop" of this module scales, pads with IGNORE and crops in one step.
MASK_PRESETS: Mapping[str, Preset] = {
    "none": Preset(),
    "light": Preset((_FLIP,), (_COLOUR,)),
    "default": Preset((Op("ScaledCrop", {"scale": (0.5, 2.0)}), _FLIP), (_COLOUR,)),
    "zoom": Preset((Op("ScaledCrop", {"scale": (1.0, 2.0)}), _FLIP), (_COLOUR,)),
}

# "RandomResizedCrop" gets the network's size. Its area: Szegedy et al. 2014,
# https://arxiv.org/abs/1409.4842, section 6.
_CROP = Op("RandomResizedCrop", {"scale": (0.35, 1.0)})
_RAND = Op("RandAugment", {"count": 2, "magnitude": 9})
IMAGE_PRESETS: Mapping[str, Preset] = {
    "none": Preset(),
    "light": Preset((Op("RandomResizedCrop", {"scale": (0.7, 1.0)}), _FLIP)),
    "default": Preset((_CROP, _FLIP), (_COLOUR,)),
    "rand": Preset((_CROP, _FLIP), (_RAND,)),
    "inception": Preset(
        (Op("RandomResizedCrop", {"scale": (0.08, 1.0)}), _FLIP), (_COLOUR,)
    ),
}


class MaskAugment(Changes):
    """Resizes, then changes, an image and its mask.

    Args:
        preset: A key of `MASK_PRESETS`, or a `Preset`.
        target: (height, width) of the result.
        fit: "stretch" or "letterbox"; what lies outside the picture is IGNORE.

    Raises:
        ValueError: If the preset or the fit is unknown.

    Example:
        >>> augment = MaskAugment("default", (64, 96))
        >>> picture = np.zeros((48, 64, 3), np.uint8)
        >>> mask = picture[:, :, 0]
        >>> image, labels = augment(picture, mask, 7)
        >>> image.shape, labels.shape
        ((64, 96, 3), (64, 96))
    """

    def __init__(
        self, preset: str | Preset, target: tuple[int, int], fit: str = "stretch"
    ) -> None:
        super().__init__(_sized(preset, MASK_PRESETS, target), {}, target, fit)
        self._meta = runtime.Meta(labels=(), size=target, resize=fit)

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Change one image.

        Args:
            image: uint8 (H, W, 3), RGB.
            mask: uint8 (H, W), labels and IGNORE.
            seed: Decides every random choice.

        Returns:
            Image, uint8 (height, width, 3) of `target`, and its mask.
        """
        generators = generators_of(seed)
        image, place = runtime.prepare(image, self._meta)
        data = {"image": image, "mask": place_mask(mask, place)}
        data = self.apply("geometry", generators, data)
        image = self.apply("colour", generators, {"image": data["image"]})["image"]
        return image, data["mask"]


def place_mask(mask: np.ndarray, place: runtime.Placement) -> np.ndarray:
    """Move a mask to where `runtime.prepare` put its picture; the rest is IGNORE."""
    height, width = place.source
    inner = (round(height * place.scale[1]), round(width * place.scale[0]))
    fitted = resize_mask(mask, inner)
    if inner == tuple(place.size):
        return fitted
    canvas = np.full(place.size, IGNORE, np.uint8)
    left, top = place.offset
    canvas[top : top + inner[0], left : left + inner[1]] = fitted
    return canvas


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize labels (H, W) to (height, width) by the nearest pixel's centre."""
    cv2 = images.opencv()
    if mask.shape == tuple(size):
        return mask
    nearest = cv2.INTER_NEAREST_EXACT
    return cv2.resize(mask, (size[1], size[0]), interpolation=nearest)


class ImageAugment(Changes):
    """Crops, resizes and changes an image that has one class.

    Args:
        preset: A key of `IMAGE_PRESETS`, or a `Preset`; one without geometry fits
            the image as an evaluation does.
        meta: Input size, and how an evaluation fits an image.

    Raises:
        ValueError: If the preset is unknown.
    """

    def __init__(self, preset: str | Preset, meta: LabelMeta) -> None:
        sized = _sized(preset, IMAGE_PRESETS, meta.size)
        legal = ("stretch", "letterbox", "crop")
        super().__init__(sized, {}, meta.size, meta.resize, legal)
        self._meta = meta

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Change one image.

        Args:
            image: uint8 (H, W, 3), RGB.
            seed: Decides every random choice.

        Returns:
            uint8 (height, width, 3) of `target`.
        """
        generators = generators_of(seed)
        data: dict[str, Any] = {"image": image}
        if self.preset.geometry:
            data = self.apply("geometry", generators, data)
        image = data["image"]
        if image.shape[:2] != tuple(self.target):
            image, _ = runtime_labels.prepare(image, self._meta)
        return self.apply("colour", generators, {"image": image})["image"]


def _sized(
    preset: str | Preset, presets: Mapping[str, Preset], size: tuple[int, int]
) -> Preset:
    """Return the preset with the network's size given to the crops."""
    if isinstance(preset, str):
        if preset not in presets:
            raise unknown("augmentation preset", preset, presets)
        preset = presets[preset]
    crops = ("ScaledCrop", "RandomResizedCrop")
    geometry = [
        Op(op.name, {"size": size, **op.options}) if op.name in crops else op
        for op in preset.geometry
    ]
    return Preset(tuple(geometry), preset.colour)


@functools.cache
def scaled_crop_class() -> type:
    """Return the transform that scales, pads with IGNORE and crops in one step."""
    import albumentations

    base: Any = albumentations.DualTransform

    class ScaledCrop(base):
        """Scales by a drawn factor; crops or pads to a size at a drawn place."""

        def __init__(
            self,
            size: tuple[int, int],
            scale: tuple[float, float] = (0.5, 2.0),
            p: float = 1.0,
        ) -> None:
            super().__init__(p=p)
            self.size, self.scale = size, scale

        def get_params_dependent_on_data(
            self, params: dict[str, Any], data: dict[str, Any]
        ) -> dict[str, Any]:
            low, high = np.log(self.scale)
            factor = float(np.exp(self.random_generator.uniform(low, high)))
            sides = np.array(params["shape"][:2]) * factor
            # Pixels of the scaled image left of and above the crop; below 0: padding.
            spare = sides - np.array(self.size)
            top, left = self.random_generator.uniform(0, 1, 2) * spare
            return {"window": (factor, float(top), float(left))}

        def apply(
            self, img: np.ndarray, window: tuple[float, ...], **params: Any
        ) -> np.ndarray:
            cv2 = images.opencv()
            return _warp(img, self.size, window, cv2.INTER_LINEAR)

        def apply_to_mask(
            self, mask: np.ndarray, window: tuple[float, ...], **params: Any
        ) -> np.ndarray:
            return _warp(mask, self.size, window, images.opencv().INTER_NEAREST)

    return ScaledCrop


def _warp(
    array: np.ndarray, size: tuple[int, int], window: tuple[float, ...], kind: int
) -> np.ndarray:
    """Take a window (scale, top, left) of a scaled image or mask."""
    factor, top, left = window
    cv2 = images.opencv()
    # From a pixel's centre in the window to one in the image.
    shift = 0.5 / factor - 0.5
    matrix = np.array(
        [
            [1 / factor, 0, left / factor + shift],
            [0, 1 / factor, top / factor + shift],
        ]
    )
    return cv2.warpAffine(
        array,
        matrix,
        (size[1], size[0]),
        flags=kind | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(114, 114, 114) if array.ndim == 3 else IGNORE,
    )


def rand_augment(count: int, magnitude: float) -> Any:
    """Return RandAugment: some of its changes, drawn anew for each image.

    Args:
        count: Changes per image.
        magnitude: 0 to 10: how strong they are.

    Returns:
        An albumentations transform.

    Reference:
        Cubuk et al. 2019, https://arxiv.org/abs/1909.13719.
    """
    import albumentations as library

    share = magnitude / 10.0
    low, high = max(0.05, 1 - 0.9 * share), 1 + 0.9 * share
    factor = (low, high)
    same = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "p": 1.0}
    changes = [
        library.AutoContrast(p=1.0),
        library.Equalize(p=1.0),
        library.Rotate(limit=(-30 * share, 30 * share), fill=114, p=1.0),
        library.Solarize(threshold_range=(1 - share, 1.0), p=1.0),
        library.Posterize(num_bits=(max(1, round(8 - 4 * share)), 8), p=1.0),
        library.ColorJitter(**{**same, "saturation": factor}),
        library.ColorJitter(**{**same, "contrast": factor}),
        library.ColorJitter(**{**same, "brightness": factor}),
        library.Sharpen(alpha=(0.0, max(share, 0.01)), p=1.0),
        library.Affine(shear={"x": (-17 * share, 17 * share)}, fill=114, p=1.0),
        library.Affine(shear={"y": (-17 * share, 17 * share)}, fill=114, p=1.0),
        library.Affine(
            translate_percent={"x": (-0.3 * share, 0.3 * share)}, fill=114, p=1.0
        ),
        library.Affine(
            translate_percent={"y": (-0.3 * share, 0.3 * share)}, fill=114, p=1.0
        ),
    ]
    return library.SomeOf(changes, n=count, replace=True, p=1.0)
