"""MGIC-MobileNetV3: inverted residuals on a hierarchy of channel grids.

Blocks, rows and tail are the authors' code (BGUCompSci/MultigridInChannelsCNNs),
whose stem is for small images. Chosen here: MobileNetV3's stem (3x3, stride 2), 64
channels a group and at the coarsest level, ImageNet's normalisation. The paper's
abstract has 76.1 % for a network of MobileNetV3's cost without saying which these
are, so no accuracy is claimed.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing

__all__ = [
    "MGICMobileNetV3Large",
    "MGICMobileNetV3Small",
    "decode_predictions",
    "preprocess_input",
]

RE, HS = "relu", "hard_swish"


@dataclass(frozen=True)
class Row:
    """One block; `ratio` times the input's channels are those inside it."""

    stage: int
    kernel: int
    ratio: float
    out: int
    se: bool
    act: str
    stride: int


# fmt: off
LARGE = (
    #   stage kernel ratio out  se     act stride
    Row(1,    3,     1,     16, False, RE, 1),
    Row(2,    3,     4,     24, False, RE, 2),
    Row(2,    3,     3,     24, False, RE, 1),
    Row(3,    5,     3,     40, True,  RE, 2),
    Row(3,    5,     3,     40, True,  RE, 1),
    Row(3,    5,     3,     40, True,  RE, 1),
    Row(4,    3,     6,     80, False, HS, 2),
    Row(4,    3,     2.5,   80, False, HS, 1),
    Row(4,    3,     2.3,   80, False, HS, 1),
    Row(4,    3,     2.3,   80, False, HS, 1),
    Row(4,    3,     6,    112, True,  HS, 1),
    Row(4,    3,     6,    112, True,  HS, 1),
    Row(5,    5,     6,    160, True,  HS, 2),
    Row(5,    5,     6,    160, True,  HS, 1),
    Row(5,    5,     6,    160, True,  HS, 1),
)
SMALL = (
    Row(2,    3,     1,     16, True,  RE, 2),
    Row(3,    3,     4.5,   24, False, RE, 2),
    Row(3,    3,     3.67,  24, False, RE, 1),
    Row(4,    5,     4,     40, True,  HS, 2),
    Row(4,    5,     6,     40, True,  HS, 1),
    Row(4,    5,     6,     40, True,  HS, 1),
    Row(4,    5,     3,     48, True,  HS, 1),
    Row(4,    5,     3,     48, True,  HS, 1),
    Row(5,    5,     6,     96, True,  HS, 2),
    Row(5,    5,     6,     96, True,  HS, 1),
    Row(5,    5,     6,     96, True,  HS, 1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class MGICMobileNetV3Spec(ModelSpec):
    """An MGIC-MobileNetV3.

    Attributes:
        stem: Channels of the stem.
        hidden: Channels of the layer before the classifier.
        group: Channels of a group (s_g in the paper).
        coarsest: Levels of fewer channels are fully coupled (s_c in the paper).
        runs: Blocks in each of the authors' lists, by which they number them.
    """

    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    bias_exceptions: tuple[str, ...] = ("*_connect_conv",)
    reference: str = "Eliasof et al. 2020, MGIC, https://arxiv.org/abs/2011.09128"
    stem: int = 16
    hidden: int = 1280
    group: int = 64
    coarsest: int = 64
    runs: tuple[int, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's."""
        return TORCH_RULE


TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")

SPECS = (
    MGICMobileNetV3Spec(
        name="mgic_mobilenet_v3_large",
        function="MGICMobileNetV3Large",
        rows=LARGE,
        runs=(1, 1, 1, 1, 1, 1, 4, 1, 4),
    ),
    MGICMobileNetV3Spec(
        name="mgic_mobilenet_v3_small",
        function="MGICMobileNetV3Small",
        rows=SMALL,
        hidden=1024,
        runs=(1, 1, 1, 3, 2, 3),
    ),
)


def build(spec: MGICMobileNetV3Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5 and "features" (a last 1x1 convolution)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, _channels(spec.stem, spec), 3, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {"c1": x}
    for block in _blocks(spec):
        x = _block(x, block, spec, stride)
        maps[f"c{block.row.stage}"] = x
    x = layers.conv_bn(x, x.shape[-1], 1, spec, "top")
    return {**maps, "features": layers.activate(x, "relu", "top")}


def classifier(spec: MGICMobileNetV3Spec, x: Any, classes: int) -> Any:
    """Widen every cell, take the largest of each channel, classify."""
    x = layers.activate(
        layers.bias_conv(x, spec.hidden, "top_hidden"), "relu", "top_hidden"
    )
    x = layers.global_max_pool(x)
    return layers.dense_classifier(x, classes, spec.dropout)


def _block(
    x: Any, block: Block[Row], spec: MGICMobileNetV3Spec, stride: layers.DilatedStride
) -> Any:
    """Change the shape by a bare 1x1 convolution; then the hierarchy."""
    row, name = block.row, block.name
    step, _ = stride.step(row.stride)
    if row.stride > 1 or block.channels != block.out:
        part = f"{name}_connect"
        x = layers.padded_conv(x, block.out, 1, spec, part, step)
    rate = stride.dilation

    def smooth(tensor: Any, grid: Any, part: str) -> Any:
        return _step(tensor, grid, row, spec, rate, part)

    mid = make_divisible(block.channels * row.ratio * spec.width, 8)
    grids = layers.mgic_grids(block.out, mid, spec.group, spec.coarsest)
    return layers.mgic_block(x, grids, smooth, spec, name, normed=True)


def _step(
    x: Any, grid: Any, row: Row, spec: MGICMobileNetV3Spec, rate: int, name: str
) -> Any:
    """Inverted residual with grouped 1x1 convolutions; its input is added twice.

    Without expansion, squeeze-and-excite stands behind the activation.
    """
    y, expands = x, grid.mid != grid.planes
    reduced = make_divisible(grid.mid // 4, 8)
    if expands:
        part = f"{name}_expand"
        y = layers.conv_bn(y, grid.mid, 1, spec, part, groups=grid.groups)
        y = layers.activate(y, row.act, part)
    part = f"{name}_dw"
    y = layers.depthwise_bn(y, row.kernel, spec, part, dilation=rate)
    if not expands:
        y = layers.activate(y, row.act, part)
    if row.se:
        y = layers.squeeze_excite(y, reduced, f"{name}_se")
    if expands:
        y = layers.activate(y, row.act, part)
    part = f"{name}_project"
    y = layers.conv_bn(y, grid.planes, 1, spec, part, groups=grid.groups)
    y = layers.activate(layers.residual(y, x, f"{name}_inner"), "relu", name)
    return layers.residual(y, x, name)


def _channels(count: float, spec: MGICMobileNetV3Spec) -> int:
    return make_divisible(count * spec.width, 8)


def _blocks(spec: MGICMobileNetV3Spec) -> list[Block[Row]]:
    outs = [_channels(row.out, spec) for row in spec.rows]
    return expand_rows(spec.rows, channels=_channels(spec.stem, spec), outs=outs)


def _authors(spec: MGICMobileNetV3Spec) -> dict[str, str]:
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    places = [f"{i}.{j}" for i, run in enumerate(spec.runs) for j in range(run)]
    for block, place in zip(_blocks(spec), places, strict=True):
        theirs = f"blocks.{place}.ghost1."
        if block.row.stride > 1 or block.channels != block.out:
            names[f"{block.name}_connect_conv"] = f"{theirs}shortcut.0"
        names |= _steps(block, f"{theirs}mgStep.", spec)
    top = {"conv": "conv", "bn": "bn1"}
    names |= pairs("top", f"blocks.{len(spec.runs)}.0.", top)
    return names | {"top_hidden_conv": "conv_head", "top_classifier": "classifier"}


def _steps(block: Block[Row], theirs: str, spec: MGICMobileNetV3Spec) -> dict[str, str]:
    """Name a hierarchy: their list goes down to the coarsest level and up again."""
    names: dict[str, str] = {}
    mid, planes = make_divisible(block.channels * block.row.ratio * spec.width, 8), 0
    fine, planes = 1, block.out
    while planes // 2 >= spec.coarsest:
        planes, fine = planes // 2, fine + 1
    parts = {"dw_conv": "0", "dw_bn": "1", "project_conv": "4", "project_bn": "5"}
    se = 3
    if mid != block.out:
        parts = {"expand_conv": "0", "expand_bn": "1", "dw_conv": "3", "dw_bn": "4"}
        parts |= {"project_conv": "7", "project_bn": "8"}
        se = 5
    if block.row.se:
        parts |= {"se_squeeze_conv": f"{se}.fc.0", "se_excite_conv": f"{se}.fc.2"}
    for level in range(1, fine + 2):
        up = 2 * fine + 1 - level if level <= fine else fine
        grid = f"level{level}" if level <= fine else "coarse"
        part = f"{block.name}_{grid}"
        if level <= fine:
            restrict = {"conv": "R", "bn": "bnr"}
            names |= pairs(f"{part}_restrict", f"{theirs}{level - 1}.", restrict)
            prolong = {"conv": "P", "bn": "bnp1"}
            names |= pairs(f"{part}_prolong", f"{theirs}{up}.", prolong)
        names |= pairs(part, f"{theirs}{up}.conv.", parts)
    return names


LAYOUTS = {
    "authors": Layout(
        names=_authors,
        top=("top_hidden_conv", "top_classifier"),
        preprocessing=TORCH_RULE,
    )
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, classifier=classifier)

MGICMobileNetV3Large = make_application(SPECS[0], FAMILY)
MGICMobileNetV3Small = make_application(SPECS[1], FAMILY)
preprocess_input = make_preprocess(SPECS)
