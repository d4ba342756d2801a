"""The multigrid-in-channels block: grouped convolutions on ever fewer channels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._spec import ModelSpec
from keras_lightnets.layers.conv import normalise, padded_conv, residual


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One level of a block.

    Attributes:
        number: From 1, the finest; 0 is the coarsest.
        planes: Channels of the level, before a bottleneck's expansion.
        mid: Channels inside the level's own convolutions.
        groups: Channel groups of all its convolutions, 1 at the coarsest level.
    """

    number: int
    planes: int
    mid: int
    groups: int

    @property
    def part(self) -> str:
        """What the names of its layers begin with."""
        return f"level{self.number}" if self.number else "coarse"


Smooth = Callable[[Any, Grid, str], Any]


def mgic_grids(planes: int, mid: int, group: int, coarsest: int) -> list[Grid]:
    """Return a block's levels, the finest first.

    Channels are halved until fewer than `coarsest` are left, at least once. A level
    has planes / group groups, or the next smaller number that divides planes and
    mid.

    Args:
        planes: Channels of the block.
        mid: Channels inside its convolutions.
        group: Channels of a group (s_g in the paper).
        coarsest: Levels of fewer channels are fully coupled (s_c in the paper).

    Returns:
        The levels; the last one is the coarsest.

    Example:
        >>> [(g.planes, g.groups) for g in mgic_grids(256, 256, 64, 64)]
        [(256, 4), (128, 2), (64, 1), (32, 1)]
    """
    grids: list[Grid] = []
    while not grids or planes >= coarsest:
        groups = max(planes // group, 1)
        while planes % groups or mid % groups:
            groups -= 1
        number = len(grids) + 1
        grids.append(Grid(number=number, planes=planes, mid=mid, groups=groups))
        planes, mid = planes // 2, mid // 2
    return [*grids, Grid(number=0, planes=planes, mid=mid, groups=1)]


def mgic_block(
    x: Any,
    grids: Sequence[Grid],
    smooth: Smooth,
    spec: ModelSpec,
    name: str,
    normed: bool = False,
) -> Any:
    """Restrict to half the channels, solve there, correct, convolve.

    With r the restricted input and y what the coarser levels make of it, the level
    returns smooth(x + norm(prolong(y - r))): only the change is brought back, so that
    a coarse part that changes nothing leaves x as it is.

    Layers of a level: `{name}_levelI_restrict_conv`, `..._difference_add`,
    `..._prolong_conv|bn`, `..._correct_add` and those of `smooth`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        grids: What `mgic_grids` returned.
        smooth: Makes a level's own convolutions, of the tensor, its level and the
            stem of the layers' names; keeps the shape.
        spec: Gives epsilon and momentum.
        name: Stem of the layers' names, such as "stage2_block1".
        normed: Whether the restriction is normalised too.

    Returns:
        Tensor of the same shape.

    Reference:
        Eliasof et al. 2020, MGIC, https://arxiv.org/abs/2011.09128.
    """
    grid, *coarser = grids
    part, channels = f"{name}_{grid.part}", x.shape[-1]
    if coarser:
        place = f"{part}_restrict"
        low = padded_conv(x, channels // 2, 1, spec, place, groups=grid.groups)
        low = normalise(low, spec, place) if normed else low
        y = mgic_block(low, coarser, smooth, spec, name, normed)
        y = layers.Subtract(name=f"{part}_difference_add")([y, low])
        place = f"{part}_prolong"
        y = padded_conv(y, channels, 1, spec, place, groups=grid.groups)
        x = residual(normalise(y, spec, place), x, f"{part}_correct")
    return smooth(x, grid, part)
