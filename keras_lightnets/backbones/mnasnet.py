"""MnasNet: found by search with the latency of a phone in the reward."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs, timm_inverted, timm_network
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "MnasNetA1",
    "MnasNetA1W075",
    "MnasNetA1W140",
    "MnasNetB1",
    "MnasNetB1W050",
    "MnasNetB1W075",
    "MnasNetB1W130",
    "MnasNetSmall",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """Lines of the paper's figure 7 with the same output (before the width).

    `skip` joins a block of stride 1 and equal channels to its input.
    """

    stage: int
    kernel: int
    ratio: int
    out: int
    repeat: int
    stride: int
    se: bool = False
    skip: bool = True

    @property
    def expanded(self) -> bool:
        return self.ratio != 1


# fmt: off
A1 = (
    #   stage kernel ratio out  repeat stride se
    Row(1,    3,     1,     16, 1,     1,     skip=False),
    Row(2,    3,     6,     24, 2,     2),
    Row(3,    5,     3,     40, 3,     2,     se=True),
    Row(4,    3,     6,     80, 4,     2),
    Row(4,    3,     6,    112, 2,     1,     se=True),
    Row(5,    5,     6,    160, 3,     2,     se=True),
    Row(5,    3,     6,    320, 1,     1),
)
B1 = (
    Row(1,    3,     1,     16, 1,     1,     skip=False),
    Row(2,    3,     3,     24, 3,     2),
    Row(3,    5,     3,     40, 3,     2),
    Row(4,    5,     6,     80, 3,     2),
    Row(4,    3,     6,     96, 2,     1),
    Row(5,    5,     6,    192, 4,     2),
    Row(5,    3,     6,    320, 1,     1,     skip=False),
)
SMALL = (
    Row(1,    3,     1,      8, 1,     1),
    Row(2,    3,     3,     16, 1,     2),
    Row(3,    3,     6,     16, 2,     2),
    Row(4,    5,     6,     32, 4,     2,     se=True),
    Row(4,    3,     6,     32, 3,     1,     se=True),
    Row(5,    5,     6,     88, 3,     2,     se=True),
    Row(5,    3,     6,    144, 1,     1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class MnasNetSpec(ModelSpec):
    """A MnasNet.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution, not multiplied by the width.
        act: Activation.
    """

    rows: tuple[Row, ...] = A1
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    reference: str = "Tan et al. 2018, MnasNet, https://arxiv.org/abs/1807.11626"
    stem: int = 32
    top: int = 1280
    act: str = "relu"


TIMM_RULE = dataclasses.replace(IMAGENET, interpolation="bicubic")
TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
TORCH_CHANGES = (("bn_momentum", 0.9997),)
TORCH_RULE_232 = dataclasses.replace(TORCH_RULE, crop=224 / 232)


def _timm_weights(tag: str, file: str, top1: float) -> Weights:
    return _publishers.timm(tag, file, TIMM_RULE, top1)


def _torchvision_weights(
    file: str, top1: float, rule: Preprocessing = TORCH_RULE
) -> Weights:
    return _publishers.torchvision("v1", file, rule, top1, TORCH_CHANGES)


def _pytorchcv_weights(release: str, file: str, sha1: str) -> Weights:
    return _publishers.pytorchcv(release, file, sha1, TORCH_RULE)


SPECS = (
    MnasNetSpec(
        name="mnasnet_a1",
        function="MnasNetA1",
        top1=75.2,
        weights=(
            _timm_weights("rmsp_in1k", "mnasnet_a1-d9418771", 75.452),
            _pytorchcv_weights(
                "v0.0.486",
                "mnasnet_a1-0720",
                "e155916ce24d06e273e8f90540707bcb7e1f9eab",
            ),
        ),
    ),
    MnasNetSpec(
        name="mnasnet_a1_075",
        function="MnasNetA1W075",
        width=0.75,
        top1=73.3,
        weights=(_timm_weights("rmsp_in1k", "semnasnet_075-18710866", 73.0),),
    ),
    MnasNetSpec(name="mnasnet_a1_140", function="MnasNetA1W140", width=1.4, top1=77.2),
    MnasNetSpec(
        name="mnasnet_b1",
        function="MnasNetB1",
        rows=B1,
        top1=74.5,
        weights=(
            _timm_weights("rmsp_in1k", "mnasnet_b1-74cb7081", 74.672),
            _torchvision_weights("mnasnet1.0_top1_73.512-f206786ef8", 73.456),
            _pytorchcv_weights(
                "v0.0.493",
                "mnasnet_b1-0740",
                "7025b43c5c0251980ada2c591dd3e7e28d856e79",
            ),
        ),
    ),
    MnasNetSpec(
        name="mnasnet_b1_050",
        function="MnasNetB1W050",
        rows=B1,
        width=0.5,
        weights=(_torchvision_weights("mnasnet0.5_top1_67.823-3ffadce67e", 67.734),),
    ),
    MnasNetSpec(
        name="mnasnet_b1_075",
        function="MnasNetB1W075",
        rows=B1,
        width=0.75,
        weights=(_torchvision_weights("mnasnet0_75-7090bc5f", 71.18, TORCH_RULE_232),),
    ),
    MnasNetSpec(
        name="mnasnet_b1_130",
        function="MnasNetB1W130",
        rows=B1,
        width=1.3,
        weights=(_torchvision_weights("mnasnet1_3-a4c69d6f", 76.506, TORCH_RULE_232),),
    ),
    MnasNetSpec(
        name="mnasnet_small",
        function="MnasNetSmall",
        rows=SMALL,
        stem=8,
        top1=64.9,
        weights=(_timm_weights("lamb_in1k", "mnasnet_small_lamb-aff75073", 66.204),),
    ),
)


def build(spec: MnasNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1280 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    blocks = _blocks(spec)
    sizes = [_sizes(spec, block) for block in blocks]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    x = layers.conv_bn(x, spec.top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def _sizes(spec: MnasNetSpec, block: Block[Row]) -> "layers.Bottleneck":
    return layers.Bottleneck(
        kernel=block.row.kernel,
        expand=block.channels * block.row.ratio,
        out=block.out,
        stride=block.stride,
        act=spec.act,
        # A quarter of the block's input, not of the expanded channels.
        squeeze=max(1, round(block.channels / 4)) if block.row.se else 0,
        squeeze_act=spec.act,
        gate="sigmoid",
        skip=block.row.skip,
    )


def _blocks(spec: MnasNetSpec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


def _timm(spec: MnasNetSpec) -> dict[str, str]:
    names: dict[str, str] = {}
    for block in _blocks(spec):
        theirs = f"blocks.{block.index}.{block.repeat}."
        names |= timm_inverted(block.name, theirs, block.row.expanded, block.row.se)
    return timm_network(names)


def _torchvision(spec: MnasNetSpec) -> dict[str, str]:
    names = pairs("stem", "layers.", {"conv": "0", "bn": "1"})
    parts = {"dw_conv": "3", "dw_bn": "4", "project_conv": "6", "project_bn": "7"}
    expand = {"expand_conv": "0", "expand_bn": "1"}
    first, *others = _blocks(spec)
    names |= pairs(first.name, "layers.", parts)
    for block in others:
        theirs = f"layers.{block.index + 7}.{block.repeat}.layers."
        names |= pairs(block.name, theirs, expand | parts)
    last = len(spec.rows) + 7
    names |= {"top_conv": f"layers.{last}", "top_bn": f"layers.{last + 1}"}
    return names | {"top_classifier": "classifier.1"}


def _pytorchcv(spec: MnasNetSpec) -> dict[str, str]:
    names = pairs("stem", "features.init_block.conv1.", {"conv": "conv", "bn": "bn"})
    blocks = _blocks(spec)
    for block in blocks:
        theirs = f"features.stage{block.row.stage - 1}.unit{block.number}."
        if block is blocks[0]:
            theirs = "features.init_block.conv2."
        elif block is blocks[-1]:
            theirs = "features.final_block.conv1."
        parts = {"expand_conv": "exp_conv.conv", "expand_bn": "exp_conv.bn"}
        parts = parts if block.row.expanded else {}
        parts |= {"dw_conv": "dw_conv.conv", "dw_bn": "dw_conv.bn"}
        if block.row.se:
            parts |= {"se_squeeze_conv": "se.conv1", "se_excite_conv": "se.conv2"}
        parts |= {"project_conv": "pw_conv.conv", "project_bn": "pw_conv.bn"}
        names |= pairs(block.name, theirs, parts)
    last = {"conv": "conv", "bn": "bn"}
    names |= pairs("top", "features.final_block.conv2.", last)
    return names | {"top_classifier": "output"}


LAYOUTS = {
    "timm": Layout(names=_timm, preprocessing=TIMM_RULE),
    "torchvision": Layout(
        names=_torchvision,
        changes=TORCH_CHANGES,
        preprocessing=TORCH_RULE_232,
    ),
    "pytorchcv": Layout(names=_pytorchcv, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

MnasNetA1 = make_application(SPECS[0], FAMILY)
MnasNetA1W075 = make_application(SPECS[1], FAMILY)
MnasNetA1W140 = make_application(SPECS[2], FAMILY)
MnasNetB1 = make_application(SPECS[3], FAMILY)
MnasNetB1W050 = make_application(SPECS[4], FAMILY)
MnasNetB1W075 = make_application(SPECS[5], FAMILY)
MnasNetB1W130 = make_application(SPECS[6], FAMILY)
MnasNetSmall = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
