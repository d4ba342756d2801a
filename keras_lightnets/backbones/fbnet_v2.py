"""FBNetV2: the search of FBNet with widths and resolution as masks."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, mobile_cv_inverted, pairs
from keras_lightnets._spec import EXPANDED_LEVELS, IMAGENET, ModelSpec, Weights

__all__ = [
    "FBNetV2F1",
    "FBNetV2F2",
    "FBNetV2F3",
    "FBNetV2F4",
    "FBNetV2L1",
    "FBNetV2L2",
    "decode_predictions",
    "preprocess_input",
]

RE, HS = "relu", "hard_swish"
# The search rounds to a multiple of 8 that keeps at least this share.
LIMIT = 0.95


@dataclass(frozen=True)
class Row:
    """One line of the searched table: one block.

    A kernel of 0 is the search space's "skip": nothing, or a pointwise convolution
    where the channels change. `ratio` is of the block's input.
    """

    stage: int
    kernel: int
    ratio: float
    out: int
    stride: int
    act: str = RE
    se: bool = False


# fmt: off
F1 = (
    #   stage kernel ratio   out stride act  se
    Row(1,    5,     1,        8, 1,      RE),
    Row(2,    5,     5.4566,  24, 2,      RE),
    Row(2,    5,     4.7912,  24, 1,      RE),
    Row(3,    5,     5.3501,  32, 2,      RE, True),
    Row(3,    5,     4.5379,  24, 1,      RE, True),
    Row(4,    5,     5.7133,  56, 2,      HS),
    Row(4,    3,     4.1212,  56, 1,      HS),
    Row(4,    3,     5.1246,  56, 1,      HS, True),
    Row(4,    0,     1,       80, 1),
    Row(4,    5,     4.507,   80, 1,      HS, True),
    Row(4,    5,     1.7712,  80, 1,      HS, True),
    Row(5,    3,     4.5685, 144, 2,      HS, True),
    Row(5,    5,     5.84,   144, 1,      HS, True),
    Row(5,    5,     6.8754, 144, 1,      HS, True),
    Row(5,    0,     1,      224, 1),
)
F4 = (
    Row(1,    3,     1,       16, 1,      HS),
    Row(2,    5,     5.4566,  24, 2,      HS),
    Row(2,    5,     1.7912,  24, 1,      HS),
    Row(2,    5,     1.7912,  24, 1,      HS),
    Row(3,    5,     5.3501,  32, 2,      RE, True),
    Row(3,    5,     3.5379,  32, 1,      RE, True),
    Row(3,    5,     4.5379,  32, 1,      RE, True),
    Row(3,    5,     4.5379,  32, 1,      RE, True),
    Row(4,    5,     5.7133,  64, 2,      HS),
    Row(4,    3,     2.1212,  64, 1,      HS),
    Row(4,    0,     1,       64, 1),
    Row(4,    3,     5.0333, 104, 1,      HS),
    Row(4,    5,     2.507,  104, 1,      HS, True),
    Row(4,    5,     1.7712, 104, 1,      HS, True),
    Row(4,    5,     3.7712, 112, 1,      HS, True),
    Row(5,    3,     5.5685, 184, 2,      HS, True),
    Row(5,    5,     2.84,   184, 1,      HS, True),
    Row(5,    5,     4.8754, 184, 1,      HS, True),
    Row(5,    0,     1,      224, 1),
)
L1 = (
    Row(1,    3,     1,       16, 1,      HS),
    Row(2,    5,     5.4566,  24, 2,      HS),
    Row(2,    5,     1.7912,  24, 1,      HS),
    Row(2,    3,     1.7912,  24, 1,      HS),
    Row(2,    5,     1.7912,  24, 1,      HS),
    Row(3,    5,     5.3501,  40, 2,      HS, True),
    Row(3,    5,     3.5379,  32, 1,      HS, True),
    Row(3,    5,     4.5379,  32, 1,      HS, True),
    Row(3,    5,     4.5379,  32, 1,      HS, True),
    Row(4,    5,     5.7133,  64, 2,      HS),
    Row(4,    3,     2.1212,  64, 1,      HS),
    Row(4,    0,     1,       64, 1),
    Row(4,    3,     3.1246,  64, 1,      HS),
    Row(4,    3,     5.0333, 112, 1,      HS),
    Row(4,    5,     2.507,  112, 1,      HS, True),
    Row(4,    5,     1.7712, 112, 1,      HS, True),
    Row(4,    5,     2.7712, 112, 1,      HS, True),
    Row(4,    5,     3.7712, 112, 1,      HS, True),
    Row(4,    5,     3.7712, 112, 1,      HS, True),
    Row(5,    3,     5.5685, 184, 2,      HS, True),
    Row(5,    5,     2.84,   184, 1,      HS, True),
    Row(5,    5,     2.84,   184, 1,      HS, True),
    Row(5,    5,     4.8754, 184, 1,      HS, True),
    Row(5,    5,     4.8754, 184, 1,      HS, True),
    Row(5,    0,     1,      224, 1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class FBNetV2Spec(ModelSpec):
    """An FBNetV2.

    Attributes:
        stem: Channels of the stem.
        stem_bias: Whether the stem has a bias, as the authors' files do.
        top_ratio: Channels of the last convolution, times those before it.
        hidden: Channels of the layer before the classifier.
    """

    rows: tuple[Row, ...] = F1
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    bias_exceptions: tuple[str, ...] = ("stem_conv", "top_hidden_conv")
    dropout: float = 0.0
    reference: str = "Wan et al. 2020, FBNetV2, https://arxiv.org/abs/2004.05565"
    stem: int = 16
    stem_bias: bool = True
    top_ratio: float = 6.0
    hidden: int = 1984


def _weights(file: str, size: int, resize: int, top1: float) -> tuple[Weights, ...]:
    rule = dataclasses.replace(
        IMAGENET, size=size, crop=size / resize, interpolation="bilinear"
    )
    return (_publishers.facebook(file, rule, top1),)


SPECS = (
    FBNetV2Spec(
        name="fbnet_v2_f1",
        function="FBNetV2F1",
        stem=8,
        hidden=1600,
        default_size=128,
        top1=68.28,
        weights=_weights("20200325/dktSJh/FBNetV2_F1_f167001958", 128, 151, 68.278),
    ),
    FBNetV2Spec(
        name="fbnet_v2_f2",
        function="FBNetV2F2",
        stem=8,
        hidden=1600,
        default_size=160,
        top1=70.98,
        weights=_weights("20200318/ezwcZW/FBNetV2_F2_f167001918", 160, 179, 70.9759),
    ),
    FBNetV2Spec(
        name="fbnet_v2_f3",
        function="FBNetV2F3",
        stem=8,
        default_size=192,
        top1=73.03,
        weights=_weights("20200318/ezwcZW/FBNetV2_F3_f167001975", 192, 208, 73.0319),
    ),
    FBNetV2Spec(
        name="fbnet_v2_f4",
        function="FBNetV2F4",
        rows=F4,
        top1=75.82,
        weights=_weights("20200325/dktSJh/FBNetV2_F4_f167001913", 224, 251, 75.818),
    ),
    FBNetV2Spec(
        name="fbnet_v2_l1",
        function="FBNetV2L1",
        rows=L1,
        top1=77.04,
        weights=_weights("20200422/ElRAUZ/FBNetV2_L1_f183461678", 224, 256, 77.038),
    ),
    FBNetV2Spec(
        name="fbnet_v2_l2",
        function="FBNetV2L2",
        rows=L1,
        default_size=256,
        top1=78.24,
        weights=_weights("20200318/NEPKxa/FBNetV2_L2_f167001961", 256, 287, 78.2429),
    ),
)


def build(spec: FBNetV2Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (c5 x top_ratio)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    biased = dataclasses.replace(spec, conv_bias=spec.stem_bias)
    x = layers.conv_bn(x, spec.stem, 3, biased, "stem", stride=step)
    x = layers.activate(x, HS, "stem")
    maps: dict[str, Any] = {}
    for block in _blocks(spec):
        row, name = block.row, block.name
        if not row.kernel:
            x = layers.activate(layers.conv_bn(x, row.out, 1, spec, name), RE, name)
            maps[f"c{row.stage}"] = x
            continue
        sizes = layers.Bottleneck(
            kernel=row.kernel,
            expand=_expand(block),
            out=row.out,
            stride=row.stride,
            act=row.act,
            squeeze=_squeeze(block),
            squeeze_act=row.act,
        )
        x, expanded = layers.inverted_residual(x, sizes, spec, stride, name)
        maps[f"c{row.stage}"] = x
        if row.stage == 5:
            maps.setdefault("c4_expand", expanded)
    top = make_divisible(x.shape[-1] * spec.top_ratio, limit=LIMIT)
    x = layers.conv_bn(x, top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, HS, "top")}


def neck(spec: FBNetV2Spec, x: Any) -> Any:
    """Widen the pooled features: 1x1 convolution without bias, hard swish."""
    x = layers.bias_conv(x, spec.hidden, "top_hidden", use_bias=False)
    return layers.activate(x, HS, "top_hidden")


def _expand(block: Block[Row]) -> int:
    return make_divisible(block.channels * block.row.ratio, limit=LIMIT)


def _squeeze(block: Block[Row]) -> int:
    reduced = make_divisible(int(_expand(block) * 0.25), limit=LIMIT)
    return reduced if block.row.se else 0


def _blocks(spec: FBNetV2Spec) -> list[Block[Row]]:
    """Return the blocks that are built; the skipped ones keep their numbers."""
    outs = [row.out for row in spec.rows]
    blocks = expand_rows(spec.rows, channels=spec.stem, outs=outs)
    return [b for b in blocks if b.row.kernel or b.out != b.channels]


def _mobile_cv(spec: FBNetV2Spec) -> dict[str, str]:
    stages, one = "backbone.stages.xif", {"conv": "conv", "bn": "bn"}
    names = pairs("stem", f"{stages}0_0.", one)
    for block in _blocks(spec):
        theirs = f"{stages}{block.row.stage}_{block.number - 1}."
        if not block.row.kernel:
            names |= pairs(block.name, f"{theirs}conv.", one)
            continue
        expanded = _expand(block) != block.channels
        names |= mobile_cv_inverted(block.name, theirs, expanded, block.row.se)
    names |= pairs("top", f"{stages}6_0.pw.", one)
    names["top_hidden_conv"] = f"{stages}6_0.pwl.conv"
    return names | {"top_classifier": "head.conv"}


LAYOUTS = {
    "mobile_cv": Layout(names=_mobile_cv, top=("top_hidden_conv", "top_classifier"))
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, neck=neck)

FBNetV2F1 = make_application(SPECS[0], FAMILY)
FBNetV2F2 = make_application(SPECS[1], FAMILY)
FBNetV2F3 = make_application(SPECS[2], FAMILY)
FBNetV2F4 = make_application(SPECS[3], FAMILY)
FBNetV2L1 = make_application(SPECS[4], FAMILY)
FBNetV2L2 = make_application(SPECS[5], FAMILY)
preprocess_input = make_preprocess(SPECS)
