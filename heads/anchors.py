"""Default boxes of SSD and of RetinaNet's kind, in numpy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

# Scale of the square box that the lowest level keeps when it is reduced.
_REDUCED_SCALE = 0.1


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Sizes and shapes of the default boxes.

    Level k has, per cell and in this order: a square of scale s_k, a square of
    scale sqrt(s_k * s_{k+1}), and per ratio r the boxes of s_k * (sqrt(r),
    1/sqrt(r)) and its transpose. Scales are shares of the image's sides.

    Attributes:
        levels: Number of feature maps.
        first_stride: Input pixels per cell of the first map; doubles per level.
        min_scale: Scale of the first level.
        max_scale: Scale of the last level; those between are spaced evenly.
        ratios: Aspect ratios above 1, used by all levels.
        scales: Explicit scales, one more than levels; empty: from min and max.
        reduce_lowest: Give the first level three boxes only: a square of 0.1 and
            the pair of the first ratio, as TensorFlow's detectors do.
        clip: Limit box sizes to the image's.

    Raises:
        ValueError: If a field is out of range.
    """

    levels: int = 6
    first_stride: int = 16
    min_scale: float = 0.2
    max_scale: float = 0.95
    ratios: tuple[float, ...] = (2.0, 3.0)
    scales: tuple[float, ...] = ()
    reduce_lowest: bool = False
    clip: bool = True

    def __post_init__(self) -> None:
        if self.levels < 1 or self.first_stride < 1:
            raise ValueError(
                "AnchorConfig needs levels >= 1 and first_stride >= 1. Received: "
                f"levels={self.levels}, first_stride={self.first_stride}"
            )
        if self.scales and len(self.scales) != self.levels + 1:
            raise ValueError(
                f"scales of AnchorConfig needs one entry more than levels, so "
                f"{self.levels + 1}; the last one is for the second square of the "
                f"last level. Received: {len(self.scales)}"
            )
        if min((self.min_scale, *self.scales, *self.ratios)) <= 0:
            raise ValueError(
                "Scales and ratios of AnchorConfig must be positive. Received: "
                f"min_scale={self.min_scale}, scales={self.scales}, "
                f"ratios={self.ratios}"
            )
        if not self.scales and self.max_scale < self.min_scale:
            raise ValueError(
                "max_scale of AnchorConfig must not be below min_scale. Received: "
                f"min_scale={self.min_scale}, max_scale={self.max_scale}"
            )


@dataclass(frozen=True, kw_only=True)
class OctaveAnchorConfig:
    """Sizes and shapes of default boxes that grow with the cells.

    Each cell has, per octave o and within it per aspect (a, b), a box of scale x
    2^(o / octaves) x (a, b) cells. Boxes may be larger than the image.

    Attributes:
        levels: Number of feature maps.
        first_stride: Input pixels per cell of the first map; doubles per level.
        scale: Side of the smallest square, in cells.
        octaves: Sizes per level, evenly spaced up to the next level's.
        aspects: (width, height) factors.

    Raises:
        ValueError: If a field is out of range.
    """

    levels: int = 5
    first_stride: int = 8
    scale: float = 4.0
    octaves: int = 3
    aspects: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))

    def __post_init__(self) -> None:
        sides = [side for aspect in self.aspects for side in aspect]
        if min(self.levels, self.first_stride, self.octaves) < 1 or not sides:
            raise ValueError(
                "OctaveAnchorConfig needs levels, first_stride and octaves of at least "
                f"1 and an aspect. Received: levels={self.levels}, first_stride="
                f"{self.first_stride}, octaves={self.octaves}, aspects={self.aspects}"
            )
        if min((self.scale, *sides)) <= 0:
            raise ValueError(
                "scale and aspects of OctaveAnchorConfig must be positive. Received: "
                f"scale={self.scale}, aspects={self.aspects}"
            )

    @property
    def per_cell(self) -> int:
        """Number of default boxes per cell."""
        return self.octaves * len(self.aspects)


class Grids(Protocol):
    """What says on which grids default boxes lie."""

    @property
    def levels(self) -> int:
        """Number of feature maps."""

    @property
    def first_stride(self) -> int:
        """Input pixels per cell of the first map."""


def feature_sizes(
    config: Grids, image_size: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """Return the grid of every level, (rows, columns).

    Args:
        config: Gives the number of levels and the first stride.
        image_size: (height, width) in pixels.

    Returns:
        One pair per level, from fine to coarse: ceil(side / stride), at least 1.

    Example:
        >>> feature_sizes(AnchorConfig(), (320, 320))[:3]
        ((20, 20), (10, 10), (5, 5))
    """
    height, width = image_size
    strides = [config.first_stride * 2**k for k in range(config.levels)]
    return tuple((-(-height // s), -(-width // s)) for s in strides)


def anchors_per_cell(config: AnchorConfig) -> tuple[int, ...]:
    """Return the number of default boxes per cell of every level.

    Args:
        config: Gives ratios and levels.

    Returns:
        One number per level, from fine to coarse.

    Example:
        >>> anchors_per_cell(AnchorConfig(reduce_lowest=True))
        (3, 6, 6, 6, 6, 6)
    """
    return tuple(len(shapes) for shapes in _shapes(config))


def ssd_anchors(
    config: AnchorConfig,
    image_size: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the default boxes of all levels.

    Args:
        config: Sizes and shapes.
        image_size: (height, width) of the network's input in pixels.
        grids: (rows, columns) per level; None: those of `feature_sizes`.

    Returns:
        (cx, cy, w, h) as shares of the image's sides, float32, shape (N, 4);
        ordered by level, then cell (row-major), then box within the cell.

    Reference:
        Liu et al. 2016 (SSD), section 2.2, https://arxiv.org/abs/1512.02325.

    Example:
        >>> ssd_anchors(AnchorConfig(), (320, 320)).shape
        (3234, 4)
    """
    blocks = []
    grids = feature_sizes(config, image_size) if grids is None else tuple(grids)
    for (rows, columns), shapes in zip(grids, _shapes(config), strict=True):
        sizes = np.asarray(shapes, "float32")
        if config.clip:
            sizes = np.minimum(sizes, 1.0)
        blocks.append(_block(rows, columns, sizes))
    return np.concatenate(blocks)


def octave_anchors(
    config: OctaveAnchorConfig, image_size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Return the default boxes of all levels.

    Args:
        config: Sizes and shapes.
        image_size: (height, width) of the network's input in pixels.

    Returns:
        (cx, cy, w, h) as shares of the image's sides, float32, shape (N, 4);
        ordered by level, then cell (row-major), then octave, then aspect.

    Reference:
        Lin et al. 2017 (RetinaNet), section 4, https://arxiv.org/abs/1708.02002.

    Example:
        >>> octave_anchors(OctaveAnchorConfig(), (512, 512)).shape
        (49104, 4)
    """
    shapes = np.asarray(
        [
            [config.scale * 2 ** (octave / config.octaves) * side for side in aspect]
            for octave in range(config.octaves)
            for aspect in config.aspects
        ]
    )
    return np.concatenate(
        [
            _block(rows, columns, shapes / (columns, rows))
            for rows, columns in feature_sizes(config, image_size)
        ]
    )


def _block(
    rows: int, columns: int, sizes: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Put boxes of the given (width, height) on every cell of a grid."""
    block = np.empty((rows, columns, len(sizes), 4), "float32")
    block[..., 0] = ((np.arange(columns, dtype="float32") + 0.5) / columns)[:, None]
    block[..., 1] = ((np.arange(rows, dtype="float32") + 0.5) / rows)[:, None, None]
    block[..., 2:] = sizes
    return block.reshape(-1, 4)


def _scales(config: AnchorConfig) -> tuple[float, ...]:
    if config.scales:
        return config.scales
    if config.levels == 1:
        return config.min_scale, config.max_scale
    span = config.max_scale - config.min_scale
    steps = config.levels - 1
    return (*(config.min_scale + span * k / steps for k in range(config.levels)), 1.0)


def _shapes(config: AnchorConfig) -> list[list[tuple[float, float]]]:
    """Return (width, height) of every box per level."""
    scales = _scales(config)
    levels = []
    for k in range(config.levels):
        scale, between = scales[k], math.sqrt(scales[k] * scales[k + 1])
        shapes = [(scale, scale), (between, between)]
        ratios = config.ratios
        if k == 0 and config.reduce_lowest:
            shapes, ratios = [(_REDUCED_SCALE, _REDUCED_SCALE)], ratios[:1]
        for ratio in ratios:
            root = math.sqrt(ratio)
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        levels.append(shapes)
    return levels
