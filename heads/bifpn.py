"""BiFPN: a feature pyramid with paths in both directions, repeated."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._errors import unknown
from keras_lightnets.heads._conv import Numerics
from keras_lightnets.layers import BatchNormalization, activate
from keras_lightnets.layers.fusion import WeightedFusion

FUSIONS = ("fast", "sum")


@dataclass(frozen=True)
class Node:
    """One node of a cell.

    Attributes:
        level: Whose size it has; 0 is the finest.
        inputs: Positions of what it adds: first the cell's inputs from fine to
            coarse, then the nodes before it.
    """

    level: int
    inputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BiFPNConfig:
    """A pyramid as data.

    Attributes:
        channels: Of every map behind the first cell's inputs.
        cells: Repetitions of the cell.
        levels: Maps; those the backbone lacks are pooled from its last one.
        fusion: "fast" (learned shares, normalised) or "sum".
        conv_bias: Whether convolutions in front of a normalisation have a bias, which
            is redundant; the published files hold one.
        numerics: Activation and normalisation.

    Raises:
        ValueError: If a value is not legal; the legal ones are listed.
    """

    channels: int = 64
    cells: int = 3
    levels: int = 5
    fusion: str = "fast"
    conv_bias: bool = False
    numerics: Numerics = Numerics(act="silu")

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise unknown("fusion of BiFPNConfig", self.fusion, FUSIONS)
        if min(self.channels, self.cells) < 1 or self.levels < 2:
            raise ValueError(
                "BiFPNConfig needs channels >= 1, cells >= 1 and levels >= 2. Received:"
                f" channels={self.channels}, cells={self.cells}, levels={self.levels}"
            )


def topology(levels: int) -> tuple[Node, ...]:
    """Return the nodes of a cell; the last `levels` of them, fine to coarse, leave it.

    With five levels, numbers as in `Node.inputs`; a node reads the arrows that end in
    it and, behind "+", its level's input once more::

             inputs  down     up
        P7      4 ----------> 12
                |             ^
                v             |
        P6      3 ---> 5 ---> 11 + 3
                       |      ^
                       v      |
        P5      2 ---> 6 ---> 10 + 2
                       |      ^
                       v      |
        P4      1 ---> 7 ---> 9 + 1
                       |      ^
                       v      |
        P3      0 ---> 8 -----+         leaving: 8, 9, 10, 11, 12

    Args:
        levels: Number of maps.

    Returns:
        First the way down to the finest level, then the way up.

    Example:
        >>> [(node.level, node.inputs) for node in topology(3)]
        [(1, (1, 2)), (0, (0, 3)), (1, (1, 3, 4)), (2, (2, 5))]

    Reference:
        Tan et al. 2020, figure 2d, https://arxiv.org/abs/1911.09070.
    """
    of_level = [[position] for position in range(levels)]
    nodes = []
    for level in reversed(range(levels - 1)):
        nodes.append(Node(level, (of_level[level][-1], of_level[level + 1][-1])))
        of_level[level].append(levels + len(nodes) - 1)
    for level in range(1, levels):
        nodes.append(Node(level, (*of_level[level], of_level[level - 1][-1])))
        of_level[level].append(levels + len(nodes) - 1)
    return tuple(nodes)


def bifpn(maps: Sequence[Any], config: BiFPNConfig) -> list[Any]:
    """Build the pyramid: missing levels, then the cells.

    Layers: `head_p{k}_*` for level k counted from 0, `head_cell{i}_node{j}_*`.

    Args:
        maps: The backbone's maps from fine to coarse, each half the size of the one
            before, odd sides rounded up.
        config: The pyramid.

    Returns:
        `config.levels` maps of `config.channels` channels, from fine to coarse.

    Raises:
        ValueError: If the maps do not halve.

    Example:
        >>> import keras
        >>> c3, c4 = keras.Input((8, 8, 24)), keras.Input((4, 4, 40))
        >>> made = bifpn([c3, c4], BiFPNConfig(channels=16, levels=3))
        >>> [x.shape[1:] for x in made]
        [(8, 8, 16), (4, 4, 16), (2, 2, 16)]

    Reference:
        Tan et al. 2020, section 3, https://arxiv.org/abs/1911.09070.
    """
    maps = add_levels(maps, config)
    check_halving(maps)
    for number in range(1, config.cells + 1):
        maps = _cell(maps, config, f"head_cell{number}")
    return maps


def add_levels(maps: Sequence[Any], config: BiFPNConfig) -> list[Any]:
    """Pool coarser maps from the last one, the first of them after a 1x1 convolution.

    Args:
        maps: From fine to coarse.
        config: Gives number of levels and channels.

    Returns:
        `config.levels` maps; the given ones unchanged.
    """
    maps = list(maps[: config.levels])
    for level in range(len(maps), config.levels):
        name = f"head_p{level}"
        x = _project(maps[-1], config, name)
        maps.append(_halve(x, name))
    return maps


def separable(
    x: Any, filters: int, bias: bool, name: str, initializer: Any = "glorot_uniform"
) -> Any:
    """Apply 3x3 depthwise and 1x1 convolution: `{name}_dw_conv`, `{name}_conv`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        filters: Output channels.
        bias: Whether the 1x1 convolution has a bias.
        name: Stem of the layers' names.
        initializer: Of both kernels.

    Returns:
        Tensor of shape (batch, height, width, filters).
    """
    x = layers.DepthwiseConv2D(
        3,
        padding="same",
        use_bias=False,
        depthwise_initializer=initializer,
        name=f"{name}_dw_conv",
    )(x)
    return layers.Conv2D(
        filters,
        1,
        use_bias=bias,
        kernel_initializer=initializer,
        name=f"{name}_conv",
    )(x)


def check_halving(maps: Sequence[Any]) -> None:
    """Check that each map is half as large as the one before, rounded up.

    Args:
        maps: From fine to coarse.

    Raises:
        ValueError: If one is not.
    """
    sizes = [tuple(x.shape[1:3]) for x in maps]
    for fine, coarse in itertools.pairwise(sizes):
        for side, half in zip(fine, coarse, strict=True):
            if None not in (side, half) and -(-side // 2) != half:
                raise ValueError(
                    "A feature pyramid needs maps that halve, odd sides rounded up. "
                    f"Received: {', '.join(map(str, sizes))}. Choose an input size "
                    "that the backbone halves without rounding down, such as a "
                    "multiple of 128."
                )


def _cell(maps: Sequence[Any], config: BiFPNConfig, name: str) -> list[Any]:
    known = list(enumerate(maps))  # (level, tensor)
    for number, node in enumerate(topology(len(maps)), 1):
        stem = f"{name}_node{number}"
        parts = []
        for position in node.inputs:
            level, x = known[position]
            part = f"{stem}_in{position}"
            x = _project(x, config, part)
            if level < node.level:
                x = _halve(x, part)
            elif level > node.level:
                x = double(x, maps[node.level], part)
            parts.append(x)
        x = _fuse(parts, config, stem)
        x = activate(x, config.numerics.act, stem)
        x = separable(x, config.channels, config.conv_bias, stem)
        known.append((node.level, normalise(x, config.numerics, stem)))
    return [x for _, x in known[-len(maps) :]]


def _fuse(parts: list[Any], config: BiFPNConfig, name: str) -> Any:
    if config.fusion == "fast":
        return WeightedFusion(name=f"{name}_fuse")(parts)
    return layers.Add(name=f"{name}_add")(parts)


def normalise(x: Any, numerics: Numerics, name: str) -> Any:
    """Apply batch normalisation, `{name}_bn`."""
    return BatchNormalization(
        epsilon=numerics.bn_epsilon, momentum=numerics.bn_momentum, name=f"{name}_bn"
    )(x)


def _project(x: Any, config: BiFPNConfig, name: str) -> Any:
    """Give a map the pyramid's channels, if it has others."""
    if x.shape[-1] == config.channels:
        return x
    conv = layers.Conv2D(
        config.channels, 1, use_bias=config.conv_bias, name=f"{name}_conv"
    )
    return normalise(conv(x), config.numerics, name)


def _halve(x: Any, name: str) -> Any:
    return layers.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool")(x)


def double(x: Any, like: Any, name: str) -> Any:
    """Repeat every cell 2x2 times and cut to an odd size: `{name}_up`, `{name}_crop`.

    Args:
        x: Tensor of shape (batch, height, width, channels).
        like: Tensor whose height and width to take.
        name: Stem of the layers' names.

    Returns:
        Tensor with the channels of `x` and the sides of `like`.
    """
    x = layers.UpSampling2D(2, name=f"{name}_up")(x)
    sides = list(zip(x.shape[1:3], like.shape[1:3], strict=True))
    cut = [0 if None in pair else pair[0] - pair[1] for pair in sides]
    if any(cut):
        cropping = ((0, cut[0]), (0, cut[1]))
        x = layers.Cropping2D(cropping, name=f"{name}_crop")(x)
    return x
