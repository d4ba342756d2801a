"""IGCV3: inverted residuals of interleaved low-rank group convolutions."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "IGCV3",
    "IGCV3W025",
    "IGCV3W050",
    "IGCV3W075",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One line of the table of IGCV3-D: t, c, n, s (before the width)."""

    stage: int
    ratio: int
    out: int
    repeat: int
    stride: int


# fmt: off
ROWS = (
    #   stage ratio  out repeat stride
    Row(1,    1,      16, 1,    1),
    Row(2,    6,      24, 4,    2),
    Row(3,    6,      32, 6,    2),
    Row(4,    6,      64, 8,    2),
    Row(4,    6,      96, 6,    1),
    Row(5,    6,     160, 6,    2),
    Row(5,    6,     320, 1,    1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class IGCV3Spec(ModelSpec):
    """An IGCV3-D.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution, multiplied only by widths above 1.
        groups: Groups of both 1x1 convolutions of a block; the channels between
            them are shuffled.
    """

    rows: tuple[Row, ...] = ROWS
    divisor: int = 2
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    dynamic_size: bool = False
    flags_reason: str = "the channel shuffle needs a known size"
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    reference: str = "Sun et al. 2018, IGCV3, https://arxiv.org/abs/1806.00178"
    stem: int = 32
    top: int = 1280
    groups: int = 2

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's for every variant."""
        return RULE


RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
AUTHORS_RULE = Preprocessing(
    mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), interpolation="bilinear"
)


def _weights(release: str, file: str, sha1: str) -> tuple[Weights, ...]:
    return (_publishers.pytorchcv(release, f"igcv3_{file}", sha1, RULE),)


# One commit, and the name of its object, since the authors give no hash.
AUTHORS_WEIGHTS = Weights(
    tag="authors_in1k",
    url=(
        "https://raw.githubusercontent.com/homles11/IGCV3/"
        "83aba2f34702836cc1b82350163909034cd9b553/models/igcv3-0000.params"
    ),
    hash="git:c4b0a995619676b526f41669d0fbff8886a79943",
    format="params",
    layout="mxnet",
    licence="none stated",
    preprocessing=AUTHORS_RULE,
    top1=72.2,
    source="homles11/IGCV3, the authors",
)

SPECS = (
    IGCV3Spec(
        name="igcv3",
        function="IGCV3",
        top1=72.2,
        weights=(
            *_weights(
                "v0.0.243", "w1-0920", "12385791681f09adb3a08926c95471f332f538b6"
            ),
            AUTHORS_WEIGHTS,
        ),
    ),
    IGCV3Spec(
        name="igcv3_075",
        function="IGCV3W075",
        width=0.75,
        weights=_weights(
            "v0.0.207", "w3d4-1140", "63f43cf8d334111d55d06f2f9bf7e1e4871d162c"
        ),
    ),
    IGCV3Spec(
        name="igcv3_050",
        function="IGCV3W050",
        width=0.5,
        weights=_weights(
            "v0.0.132", "wd2-1732", "8c504f443283d8a32787275b23771082fcaab61b"
        ),
    ),
    IGCV3Spec(
        name="igcv3_025",
        function="IGCV3W025",
        width=0.25,
        weights=_weights(
            "v0.0.142", "wd4-2871", "c9f28301391601e5e8ae93139431a9e0d467317c"
        ),
    ),
)


def build(spec: IGCV3Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1280 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, "relu6", "stem")
    blocks = _blocks(spec)
    sizes = [_sizes(spec, block) for block in blocks]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    top = make_divisible(spec.top * max(1.0, spec.width), spec.divisor)
    x = layers.conv_bn(x, top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, "relu6", "top")}


def _sizes(spec: IGCV3Spec, block: Block[Row]) -> "layers.Bottleneck":
    return layers.Bottleneck(
        kernel=3,
        expand=block.channels * block.row.ratio,
        out=block.out,
        stride=block.stride,
        act="relu6",
        expand_act="linear",
        always_expand=True,
        groups=spec.groups,
    )


def _blocks(spec: IGCV3Spec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


def _pytorchcv(spec: IGCV3Spec) -> dict[str, str]:
    parts = {"conv": "conv", "bn": "bn"}
    names = pairs("stem", "features.init_block.", parts)
    for block in _blocks(spec):
        for i, part in enumerate(("expand", "dw", "project"), start=1):
            theirs = f"features.stage{block.row.stage}.unit{block.number}.conv{i}."
            names |= pairs(f"{block.name}_{part}", theirs, parts)
    names |= pairs("top", "features.final_block.", parts)
    return names | {"top_classifier": "output"}


def _mxnet(spec: IGCV3Spec) -> dict[str, str]:
    """Name the layers as the authors' MXNet symbol, of which width 1 is published."""
    parts = {"conv": "conv2d", "bn": "batchnorm"}
    names = pairs("stem", "first-3x3-conv-", parts)
    ours = {"exp": "expand", "depthwise": "dw", "linear": "project"}
    for block in _blocks(spec):
        for theirs, part in ours.items():
            prefix = f"seq-{block.index}-block{block.repeat}-{theirs}-"
            names |= pairs(f"{block.name}_{part}", prefix, parts)
    names |= pairs("top", "last-1x1-conv-", parts)
    return names | {"top_classifier": "fc"}


LAYOUTS = {
    "pytorchcv": Layout(names=_pytorchcv, preprocessing=RULE),
    "mxnet": Layout(names=_mxnet, preprocessing=AUTHORS_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

IGCV3 = make_application(SPECS[0], FAMILY)
IGCV3W075 = make_application(SPECS[1], FAMILY)
IGCV3W050 = make_application(SPECS[2], FAMILY)
IGCV3W025 = make_application(SPECS[3], FAMILY)
preprocess_input = make_preprocess(SPECS)
