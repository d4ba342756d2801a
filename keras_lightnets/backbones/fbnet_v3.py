"""FBNetV3: architecture and training recipe searched together."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, mobile_cv_inverted, pairs, timm_inverted
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "FBNetV3A",
    "FBNetV3B",
    "FBNetV3C",
    "FBNetV3D",
    "FBNetV3E",
    "FBNetV3F",
    "FBNetV3G",
    "decode_predictions",
    "preprocess_input",
]

# The search rounds to a multiple of 8 that keeps at least this share.
LIMIT = 0.95


@dataclass(frozen=True)
class Row:
    """Lines of the searched table with the same output.

    `pad` is what the authors' network pads at a strided convolution, where that is
    less than half the kernel: maps behind it are one or two pixels smaller.
    """

    stage: int
    kernel: int
    ratio: int
    out: int
    repeat: int
    stride: int
    se: bool = False
    pad: int | None = None


# fmt: off
A = (
    #   stage kernel ratio out  repeat stride se     pad
    Row(1,    3,     1,     16, 2,     1),
    Row(2,    5,     4,     24, 1,     2),
    Row(2,    5,     2,     24, 3,     1),
    Row(3,    5,     5,     40, 1,     2,     True),
    Row(3,    5,     3,     40, 4,     1,     True),
    Row(4,    5,     5,     72, 1,     2,     False, 1),
    Row(4,    3,     3,     72, 4,     1),
    Row(4,    3,     5,    120, 1,     1,     True),
    Row(4,    5,     3,    120, 5,     1,     True),
    Row(5,    3,     6,    184, 1,     2,     True,  0),
    Row(5,    5,     4,    184, 5,     1,     True),
    Row(5,    5,     6,    224, 1,     1,     True),
)
C = (
    Row(1,    3,     1,     16, 2,     1),
    Row(2,    5,     5,     24, 1,     2),
    Row(2,    3,     3,     24, 4,     1),
    Row(3,    5,     5,     48, 1,     2,     True),
    Row(3,    5,     2,     48, 4,     1,     True),
    Row(4,    5,     4,     88, 1,     2,     False, 1),
    Row(4,    3,     3,     88, 4,     1),
    Row(4,    3,     4,    120, 1,     1,     True),
    Row(4,    5,     3,    120, 5,     1,     True),
    Row(5,    5,     5,    216, 1,     2,     True,  1),
    Row(5,    5,     5,    216, 5,     1,     True),
    Row(5,    5,     6,    216, 1,     1,     True),
)
D = (
    Row(1,    3,     1,     16, 2,     1),
    Row(2,    3,     5,     24, 1,     2),
    Row(2,    3,     2,     24, 5,     1),
    Row(3,    5,     4,     40, 1,     2,     True),
    Row(3,    3,     3,     40, 4,     1,     True),
    Row(4,    3,     5,     72, 1,     2),
    Row(4,    3,     3,     72, 4,     1),
    Row(4,    3,     5,    128, 1,     1,     True),
    Row(4,    5,     3,    128, 6,     1,     True),
    Row(5,    3,     6,    208, 1,     2,     True),
    Row(5,    5,     5,    208, 5,     1,     True),
    Row(5,    5,     6,    240, 1,     1,     True),
)
E = (
    Row(1,    3,     1,     16, 3,     1),
    Row(2,    5,     4,     24, 1,     2),
    Row(2,    5,     2,     24, 4,     1),
    Row(3,    5,     4,     48, 1,     2,     True),
    Row(3,    5,     3,     48, 4,     1,     True),
    Row(4,    5,     5,     80, 1,     2,     False, 1),
    Row(4,    3,     3,     80, 4,     1),
    Row(4,    3,     5,    128, 1,     1,     True),
    Row(4,    5,     3,    128, 7,     1,     True),
    Row(5,    3,     6,    216, 1,     2,     True),
    Row(5,    5,     5,    216, 5,     1,     True),
    Row(5,    5,     6,    240, 1,     1,     True),
)
F = (
    Row(1,    3,     1,     24, 3,     1),
    Row(2,    5,     4,     32, 1,     2),
    Row(2,    5,     2,     32, 4,     1),
    Row(3,    5,     4,     56, 1,     2,     True),
    Row(3,    5,     3,     56, 4,     1,     True),
    Row(4,    5,     5,     88, 1,     2),
    Row(4,    3,     3,     88, 4,     1),
    Row(4,    3,     5,    144, 1,     1,     True),
    Row(4,    5,     3,    144, 8,     1,     True),
    Row(5,    3,     6,    248, 1,     2,     True,  0),
    Row(5,    5,     5,    248, 6,     1,     True),
    Row(5,    5,     6,    272, 1,     1,     True),
)
G = (
    Row(1,    3,     1,     24, 3,     1),
    Row(2,    5,     4,     40, 1,     2),
    Row(2,    5,     2,     40, 4,     1),
    Row(3,    5,     4,     56, 1,     2,     True),
    Row(3,    5,     3,     56, 4,     1,     True),
    Row(4,    5,     5,    104, 1,     2),
    Row(4,    3,     3,    104, 4,     1),
    Row(4,    3,     5,    160, 1,     1,     True),
    Row(4,    5,     3,    160, 8,     1,     True),
    Row(5,    3,     6,    264, 1,     2,     True),
    Row(5,    5,     5,    264, 6,     1,     True),
    Row(5,    5,     6,    288, 2,     1,     True),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class FBNetV3Spec(ModelSpec):
    """An FBNetV3.

    Attributes:
        stem: Channels of the stem.
        stem_bias: Whether the stem has a bias, as the authors' files do.
        narrow: Whether the rows' `pad` holds; timm pads half the kernel everywhere.
        top_ratio: Channels of the last convolution, times those before it.
        hidden: Channels of the layer before the classifier.
        act: Activation of all convolutions and inside squeeze-and-excite.
    """

    rows: tuple[Row, ...] = A
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    bias_exceptions: tuple[str, ...] = ("stem_conv", "top_hidden_conv")
    dropout: float = 0.0
    reference: str = "Dai et al. 2020, FBNetV3, https://arxiv.org/abs/2006.02049"
    stem: int = 16
    stem_bias: bool = True
    narrow: bool = True
    top_ratio: int = 6
    hidden: int = 1984
    act: str = "hard_swish"


NARROW = "the authors pad some strided convolutions less than half the kernel"
TIMM_CHANGES = (("stem_bias", False), ("narrow", False))


def _rule(size: int, crop: float) -> Preprocessing:
    return dataclasses.replace(IMAGENET, size=size, crop=crop, interpolation="bilinear")


def _facebook_weights(file: str, size: int, resize: int, top1: float) -> Weights:
    rule = _rule(size, size / resize)
    return _publishers.facebook(f"20201201/GtOtfw/{file}", rule, top1)


def _timm_weights(file: str, size: int, top1: float) -> Weights:
    return _publishers.timm("ra2_in1k", file, _rule(size, 0.95), top1, TIMM_CHANGES)


SPECS = (
    FBNetV3Spec(
        name="fbnet_v3_a",
        function="FBNetV3A",
        exact_strides=False,
        flags_reason=NARROW,
        top1=79.57,
        weights=(_facebook_weights("FBNetV3_A_f235707940", 224, 242, 79.574),),
    ),
    FBNetV3Spec(
        name="fbnet_v3_b",
        function="FBNetV3B",
        exact_strides=False,
        flags_reason=NARROW,
        default_size=248,
        top1=80.21,
        weights=(
            _facebook_weights("FBNetV3_B_f233607847", 248, 266, 80.206),
            _timm_weights("fbnetv3_b_224-ead5d2a1", 256, 79.154),
        ),
    ),
    FBNetV3Spec(
        name="fbnet_v3_c",
        function="FBNetV3C",
        exact_strides=False,
        flags_reason=NARROW,
        rows=C,
        default_size=248,
        top1=80.83,
        weights=(_facebook_weights("FBNetV3_C_f234529537", 248, 272, 80.826),),
    ),
    FBNetV3Spec(
        name="fbnet_v3_d",
        function="FBNetV3D",
        rows=D,
        stem=24,
        default_size=248,
        top1=81.04,
        weights=(
            _facebook_weights("FBNetV3_D_f231225742", 248, 277, 81.042),
            _timm_weights("fbnetv3_d_224-c98bce42", 256, 79.682),
        ),
    ),
    FBNetV3Spec(
        name="fbnet_v3_e",
        function="FBNetV3E",
        exact_strides=False,
        flags_reason=NARROW,
        rows=E,
        stem=24,
        default_size=264,
        top1=81.25,
        weights=(_facebook_weights("FBNetV3_E_f230158956", 264, 291, 81.254),),
    ),
    FBNetV3Spec(
        name="fbnet_v3_f",
        function="FBNetV3F",
        exact_strides=False,
        flags_reason=NARROW,
        rows=F,
        stem=24,
        default_size=272,
        top1=82.06,
        weights=(_facebook_weights("FBNetV3_F_f230161092", 272, 296, 82.062),),
    ),
    FBNetV3Spec(
        name="fbnet_v3_g",
        function="FBNetV3G",
        rows=G,
        stem=32,
        default_size=320,
        top1=82.79,
        weights=(
            _facebook_weights("FBNetV3_G_f226438997", 320, 325, 82.794),
            _timm_weights("fbnetv3_g_240-0b1df83b", 288, 82.034),
        ),
    ),
)


def build(spec: FBNetV3Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (c5 x top_ratio)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    biased = dataclasses.replace(spec, conv_bias=spec.stem_bias)
    x = layers.conv_bn(x, spec.stem, 3, biased, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    blocks = _blocks(spec)
    sizes = [_sizes(spec, block) for block in blocks]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    x = layers.conv_bn(x, x.shape[-1] * spec.top_ratio, 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def neck(spec: FBNetV3Spec, x: Any) -> Any:
    """Widen the pooled features: 1x1 convolution without bias, hard swish."""
    x = layers.bias_conv(x, spec.hidden, "top_hidden", use_bias=False)
    return layers.activate(x, spec.act, "top_hidden")


def _expand(block: Block[Row]) -> int:
    return make_divisible(block.channels * block.row.ratio, limit=LIMIT)


def _squeeze(block: Block[Row]) -> int:
    share = 0.25 / block.row.ratio
    reduced = make_divisible(int(_expand(block) * share), limit=LIMIT)
    return reduced if block.row.se else 0


def _sizes(spec: FBNetV3Spec, block: Block[Row]) -> "layers.Bottleneck":
    row = block.row
    return layers.Bottleneck(
        kernel=row.kernel,
        expand=_expand(block),
        out=row.out,
        stride=block.stride,
        act=spec.act,
        squeeze=_squeeze(block),
        squeeze_act=spec.act,
        pad=row.pad if spec.narrow and block.repeat == 0 else None,
    )


def _blocks(spec: FBNetV3Spec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=spec.stem,
        outs=[row.out for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


def _mobile_cv(spec: FBNetV3Spec) -> dict[str, str]:
    stages, one = "backbone.stages.xif", {"conv": "conv", "bn": "bn"}
    names = pairs("stem", f"{stages}0_0.", one)
    for block in _blocks(spec):
        theirs = f"{stages}{block.row.stage}_{block.number - 1}."
        expanded = _expand(block) != block.channels
        names |= mobile_cv_inverted(block.name, theirs, expanded, block.row.se)
    names |= pairs("top", f"{stages}6_0.pw.", one)
    names["top_hidden_conv"] = f"{stages}6_0.pwl.conv"
    return names | {"top_classifier": "head.conv"}


def _timm(spec: FBNetV3Spec) -> dict[str, str]:
    """Name the layers as timm, which cuts stage 4 where its channels change."""
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    run, index = -1, 0
    place: tuple[int, int] | None = None
    for block in _blocks(spec):
        stage = block.row.stage
        here = (stage, block.row.out if stage == 4 else 0)
        run, index = (run, index + 1) if here == place else (run + 1, 0)
        place, theirs = here, f"blocks.{run}.{index}."
        expanded = block.row.ratio != 1
        names |= timm_inverted(block.name, theirs, expanded, block.row.se)
    names |= pairs("top", f"blocks.{run + 1}.0.", {"conv": "conv", "bn": "bn1"})
    return names | {"top_hidden_conv": "conv_head", "top_classifier": "classifier"}


TOP = ("top_hidden_conv", "top_classifier")
LAYOUTS = {
    "mobile_cv": Layout(names=_mobile_cv, top=TOP),
    "timm": Layout(names=_timm, top=TOP, changes=TIMM_CHANGES),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, neck=neck)

FBNetV3A = make_application(SPECS[0], FAMILY)
FBNetV3B = make_application(SPECS[1], FAMILY)
FBNetV3C = make_application(SPECS[2], FAMILY)
FBNetV3D = make_application(SPECS[3], FAMILY)
FBNetV3E = make_application(SPECS[4], FAMILY)
FBNetV3F = make_application(SPECS[5], FAMILY)
FBNetV3G = make_application(SPECS[6], FAMILY)
preprocess_input = make_preprocess(SPECS)
