"""FBNet: found by differentiable search with measured latency in the loss."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import (
    Layout,
    mobile_cv_inverted,
    pairs,
    timm_inverted,
    timm_network,
)
from keras_lightnets._spec import EXPANDED_LEVELS, IMAGENET, ModelSpec, Weights

__all__ = [
    "FBNetA",
    "FBNetB",
    "FBNetC",
    "FBNetCb",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One line of the searched table: one block.

    A kernel of 0 is the search space's "skip": the block is left out. With two
    groups both pointwise convolutions are grouped and the channels shuffled.
    """

    stage: int
    kernel: int
    ratio: int
    out: int
    stride: int
    groups: int = 1


# fmt: off
A = (
    #   stage kernel ratio out  stride groups
    Row(1,    0,     1,     16, 1),
    Row(2,    3,     3,     24, 2),
    Row(2,    3,     1,     24, 1),
    Row(2,    0,     1,     24, 1),
    Row(2,    0,     1,     24, 1),
    Row(3,    5,     6,     32, 2),
    Row(3,    3,     3,     32, 1),
    Row(3,    5,     1,     32, 1),
    Row(3,    3,     3,     32, 1),
    Row(4,    5,     6,     64, 2),
    Row(4,    5,     3,     64, 1),
    Row(4,    5,     1,     64, 1,     2),
    Row(4,    5,     6,     64, 1),
    Row(4,    3,     6,    112, 1),
    Row(4,    5,     1,    112, 1,     2),
    Row(4,    5,     3,    112, 1),
    Row(4,    3,     1,    112, 1,     2),
    Row(5,    5,     6,    184, 2),
    Row(5,    5,     6,    184, 1),
    Row(5,    5,     3,    184, 1),
    Row(5,    5,     6,    184, 1),
    Row(5,    5,     6,    352, 1),
)
B = (
    Row(1,    3,     1,     16, 1),
    Row(2,    3,     6,     24, 2),
    Row(2,    5,     1,     24, 1),
    Row(2,    3,     1,     24, 1),
    Row(2,    3,     1,     24, 1),
    Row(3,    5,     6,     32, 2),
    Row(3,    5,     3,     32, 1),
    Row(3,    3,     6,     32, 1),
    Row(3,    5,     6,     32, 1),
    Row(4,    5,     6,     64, 2),
    Row(4,    5,     6,     64, 1),
    Row(4,    0,     1,     64, 1),
    Row(4,    5,     3,     64, 1),
    Row(4,    5,     6,    112, 1),
    Row(4,    3,     1,    112, 1),
    Row(4,    5,     1,    112, 1),
    Row(4,    5,     3,    112, 1),
    Row(5,    5,     6,    184, 2),
    Row(5,    5,     1,    184, 1),
    Row(5,    5,     6,    184, 1),
    Row(5,    5,     6,    184, 1),
    Row(5,    3,     6,    352, 1),
)
C = (
    Row(1,    3,     1,     16, 1),
    Row(2,    3,     6,     24, 2),
    Row(2,    0,     1,     24, 1),
    Row(2,    3,     1,     24, 1),
    Row(2,    3,     1,     24, 1),
    Row(3,    5,     6,     32, 2),
    Row(3,    5,     3,     32, 1),
    Row(3,    5,     6,     32, 1),
    Row(3,    3,     6,     32, 1),
    Row(4,    5,     6,     64, 2),
    Row(4,    5,     3,     64, 1),
    Row(4,    5,     6,     64, 1),
    Row(4,    5,     6,     64, 1),
    Row(4,    5,     6,    112, 1),
    Row(4,    5,     6,    112, 1),
    Row(4,    5,     6,    112, 1),
    Row(4,    5,     3,    112, 1),
    Row(5,    5,     6,    184, 2),
    Row(5,    5,     6,    184, 1),
    Row(5,    5,     6,    184, 1),
    Row(5,    5,     6,    184, 1),
    Row(5,    3,     6,    352, 1),
)
# fmt: on
# timm's and pytorchcv's reading of C, built of its blocks only.
CB = tuple(row for row in C if row.kernel)


@dataclass(frozen=True, kw_only=True)
class FBNetSpec(ModelSpec):
    """An FBNet.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution.
        act: Activation.
        always_expand: Whether blocks of ratio 1 have an expansion convolution.
    """

    rows: tuple[Row, ...] = A
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    conv_bias: bool = True
    bias_exceptions: tuple[str, ...] = ("*_conv",)
    dropout: float = 0.0
    reference: str = "Wu et al. 2018, FBNet, https://arxiv.org/abs/1812.03443"
    stem: int = 16
    top: int = 1984
    act: str = "relu"
    always_expand: bool = False


RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")


def _facebook_weights(file: str, top1: float) -> Weights:
    return _publishers.facebook(f"20200103/rAuaZE/{file}", RULE, top1)


TIMM_WEIGHTS = _publishers.timm("rmsp_in1k", "fbnetc_100-c345b898", RULE, 75.12)
PYTORCHCV_WEIGHTS = _publishers.pytorchcv(
    "v0.0.415",
    "fbnet_cb-0762",
    "2edb61f8e4b5c45d958d0e57beff41fbfacd6061",
    RULE,
    (("bn_epsilon", 1e-3),),
    "converted from timm",
)

SPECS = (
    FBNetSpec(
        name="fbnet_a",
        function="FBNetA",
        top=1504,
        dynamic_size=False,
        flags_reason="the channel shuffle of its grouped blocks needs a known size",
        top1=73.3,
        weights=(_facebook_weights("fbnet_a_f155351132", 73.298),),
    ),
    FBNetSpec(
        name="fbnet_b",
        function="FBNetB",
        rows=B,
        top1=74.5,
        weights=(_facebook_weights("fbnet_b_f153237418", 74.5441),),
    ),
    FBNetSpec(
        name="fbnet_c",
        function="FBNetC",
        rows=C,
        top1=75.2,
        weights=(_facebook_weights("fbnet_c_f152910217", 75.2499),),
    ),
    FBNetSpec(
        name="fbnet_cb",
        function="FBNetCb",
        rows=CB,
        conv_bias=False,
        bias_exceptions=(),
        always_expand=True,
        top1=74.9,
        weights=(TIMM_WEIGHTS, PYTORCHCV_WEIGHTS),
    ),
)


def build(spec: FBNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1984 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    c1 = x = layers.activate(x, spec.act, "stem")
    blocks = _blocks(spec)
    sizes = [_sizes(spec, block) for block in blocks]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    x = layers.conv_bn(x, spec.top, 1, spec, "top")
    return {"c1": c1, **maps, "features": layers.activate(x, spec.act, "top")}


def _sizes(spec: FBNetSpec, block: Block[Row]) -> "layers.Bottleneck":
    row = block.row
    return layers.Bottleneck(
        kernel=row.kernel,
        expand=block.channels * row.ratio,
        out=row.out,
        stride=row.stride,
        act=spec.act,
        always_expand=spec.always_expand,
        groups=row.groups,
    )


def _blocks(spec: FBNetSpec) -> list[Block[Row]]:
    """Return the blocks that are built; the skipped ones keep their numbers."""
    outs = [row.out for row in spec.rows]
    blocks = expand_rows(spec.rows, channels=spec.stem, outs=outs)
    return [block for block in blocks if block.row.kernel]


def _mobile_cv(spec: FBNetSpec) -> dict[str, str]:
    stages = "backbone.stages.xif"
    names = pairs("stem", f"{stages}0_0.", {"conv": "conv", "bn": "bn"})
    for block in _blocks(spec):
        theirs = f"{stages}{block.row.stage}_{block.number - 1}."
        expanded = block.row.ratio != 1
        names |= mobile_cv_inverted(block.name, theirs, expanded, False)
    names |= pairs("top", f"{stages}6_0.", {"conv": "conv", "bn": "bn"})
    return names | {"top_classifier": "head.conv"}


def _timm(spec: FBNetSpec) -> dict[str, str]:
    """Name the layers as timm, whose `blocks` are runs of equal channels."""
    names: dict[str, str] = {}
    run, index, out = -1, 0, None
    for block in _blocks(spec):
        new = block.row.out != out
        run, index, out = run + new, 0 if new else index + 1, block.row.out
        names |= timm_inverted(block.name, f"blocks.{run}.{index}.", True, False)
    return timm_network(names)


def _pytorchcv(spec: FBNetSpec) -> dict[str, str]:
    one = {"conv": "conv", "bn": "bn"}
    names = pairs("stem", "features.init_block.conv1.", one)
    parts = {"expand_conv": "exp_conv.conv", "expand_bn": "exp_conv.bn"}
    parts |= {"dw_conv": "conv1.conv", "dw_bn": "conv1.bn"}
    parts |= {"project_conv": "conv2.conv", "project_bn": "conv2.bn"}
    for block in _blocks(spec):
        theirs = f"features.stage{block.row.stage - 1}.unit{block.number}."
        if block.row.stage == 1:
            theirs = "features.init_block.conv2."
        names |= pairs(block.name, theirs, parts)
    names |= pairs("top", "features.final_block.", one)
    return names | {"top_classifier": "output"}


LAYOUTS = {
    "mobile_cv": Layout(names=_mobile_cv, preprocessing=RULE),
    "timm": Layout(names=_timm, preprocessing=RULE),
    "pytorchcv": Layout(
        names=_pytorchcv, changes=PYTORCHCV_WEIGHTS.changes, preprocessing=RULE
    ),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

FBNetA = make_application(SPECS[0], FAMILY)
FBNetB = make_application(SPECS[1], FAMILY)
FBNetC = make_application(SPECS[2], FAMILY)
FBNetCb = make_application(SPECS[3], FAMILY)
preprocess_input = make_preprocess(SPECS)
