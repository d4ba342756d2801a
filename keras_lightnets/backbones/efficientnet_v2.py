"""EfficientNetV2: fused convolutions in the early stages, smaller expansions."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import (
    Layout,
    pairs,
    timm_inverted,
    timm_network,
    torchvision_inverted,
)
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    INCEPTION,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "EfficientNetV2B0",
    "EfficientNetV2B1",
    "EfficientNetV2B2",
    "EfficientNetV2B3",
    "EfficientNetV2L",
    "EfficientNetV2M",
    "EfficientNetV2S",
    "EfficientNetV2XL",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One line of the paper's table 4 (before width and depth).

    `fused` replaces expansion and depthwise convolution with one convolution and has
    no squeeze-and-excite.
    """

    stage: int
    fused: bool
    ratio: int
    out: int
    repeat: int
    stride: int

    @property
    def expanded(self) -> bool:
        return self.ratio != 1


# fmt: off
BASE = (
    #   stage fused  ratio out  repeat stride
    Row(1,    True,  1,     16, 1,     1),
    Row(2,    True,  4,     32, 2,     2),
    Row(3,    True,  4,     48, 2,     2),
    Row(4,    False, 4,     96, 3,     2),
    Row(4,    False, 6,    112, 5,     1),
    Row(5,    False, 6,    192, 8,     2),
)
SMALL = (
    Row(1,    True,  1,     24, 2,     1),
    Row(2,    True,  4,     48, 4,     2),
    Row(3,    True,  4,     64, 4,     2),
    Row(4,    False, 4,    128, 6,     2),
    Row(4,    False, 6,    160, 9,     1),
    Row(5,    False, 6,    256, 15,    2),
)
MEDIUM = (
    Row(1,    True,  1,     24, 3,     1),
    Row(2,    True,  4,     48, 5,     2),
    Row(3,    True,  4,     80, 5,     2),
    Row(4,    False, 4,    160, 7,     2),
    Row(4,    False, 6,    176, 14,    1),
    Row(5,    False, 6,    304, 18,    2),
    Row(5,    False, 6,    512, 5,     1),
)
LARGE = (
    Row(1,    True,  1,     32, 4,     1),
    Row(2,    True,  4,     64, 7,     2),
    Row(3,    True,  4,     96, 7,     2),
    Row(4,    False, 4,    192, 10,    2),
    Row(4,    False, 6,    224, 19,    1),
    Row(5,    False, 6,    384, 25,    2),
    Row(5,    False, 6,    640, 7,     1),
)
EXTRA_LARGE = (
    Row(1,    True,  1,     32, 4,     1),
    Row(2,    True,  4,     64, 8,     2),
    Row(3,    True,  4,     96, 8,     2),
    Row(4,    False, 4,    192, 16,    2),
    Row(4,    False, 6,    256, 24,    1),
    Row(5,    False, 6,    512, 32,    2),
    Row(5,    False, 6,    640, 8,     1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class EfficientNetV2Spec(ModelSpec):
    """An EfficientNetV2.

    Attributes:
        depth: Multiplier of a row's repetitions, rounded up.
        kernel: Side of all kernels behind the stem.
        stem: Channels of the stem.
        top: Channels of the last convolution.
        act: Activation of all convolutions and inside squeeze-and-excite.
        drop_connect: Share of images whose residual is dropped in training, at the
            last block; earlier ones have proportionally less. The paper has 0.2.
    """

    rows: tuple[Row, ...] = BASE
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    bn_momentum: float = 0.9
    reference: str = "Tan and Le 2021, EfficientNetV2, https://arxiv.org/abs/2104.00298"
    depth: float = 1.0
    kernel: int = 3
    stem: int = 32
    top: int = 1280
    act: str = "silu"
    drop_connect: float = 0.0


TIMM = f"{_publishers.TIMM}/v0.1-effv2-weights"
KERAS = "tensorflow/keras-applications/efficientnet_v2"
# keras.applications' S, M and L divide by 128, which is not quite -1..1.
KERAS_RULE = Preprocessing(mean=(128.0,) * 3, std=(128.0,) * 3)


def _rule(size: int, crop: float, base: Preprocessing = IMAGENET) -> Preprocessing:
    return dataclasses.replace(base, size=size, crop=crop, interpolation="bicubic")


def _timm_weights(tag: str, file: str, rule: Preprocessing, top1: float) -> Weights:
    source = "converted from the authors' TensorFlow checkpoint"
    return _publishers.timm(tag, file, rule, top1, source=source, host=TIMM)


def _torchvision_weights(file: str, rule: Preprocessing, top1: float) -> Weights:
    changes = (("padding", "symmetric"),)
    return _publishers.torchvision("v1", file, rule, top1, changes)


def _keras_weights(name: str, md5: str, rule: Preprocessing, top1: float) -> Weights:
    return _publishers.keras(f"{KERAS}/efficientnetv2-{name}", rule, md5, top1)


SPECS = (
    EfficientNetV2Spec(
        name="efficientnet_v2_b0",
        function="EfficientNetV2B0",
        top1=78.7,
        weights=(
            _timm_weights(
                "tf_in1k", "tf_efficientnetv2_b0-c7cc451f", _rule(224, 0.875), 78.386
            ),
            _keras_weights(
                "b0", "21ecbf6da12460d5c40bb2f29ceb2188", _rule(224, 0.875), 78.7
            ),
        ),
    ),
    EfficientNetV2Spec(
        name="efficientnet_v2_b1",
        function="EfficientNetV2B1",
        depth=1.1,
        default_size=240,
        top1=79.8,
        weights=(
            _timm_weights(
                "tf_in1k", "tf_efficientnetv2_b1-be6e41b0", _rule(240, 0.882), 79.518
            ),
            _keras_weights(
                "b1", "069f0534ff22adf035c89e2d9547a9dc", _rule(240, 0.882), 79.8
            ),
        ),
    ),
    EfficientNetV2Spec(
        name="efficientnet_v2_b2",
        function="EfficientNetV2B2",
        width=1.1,
        depth=1.2,
        default_size=260,
        top1=80.5,
        weights=(
            _timm_weights(
                "tf_in1k", "tf_efficientnetv2_b2-847de54e", _rule(260, 0.89), 80.226
            ),
            _keras_weights(
                "b2", "424e49f28180edbde1e94797771950a7", _rule(260, 0.89), 80.5
            ),
        ),
    ),
    EfficientNetV2Spec(
        name="efficientnet_v2_b3",
        function="EfficientNetV2B3",
        width=1.2,
        depth=1.4,
        default_size=300,
        top1=82.1,
        weights=(
            _timm_weights(
                "tf_in1k", "tf_efficientnetv2_b3-57773f13", _rule(300, 0.904), 81.96
            ),
            _keras_weights(
                "b3", "1f1fc43bd98a6e4fd8fdfd551e02c7a0", _rule(300, 0.904), 82.1
            ),
        ),
    ),
    EfficientNetV2Spec(
        name="efficientnet_v2_s",
        function="EfficientNetV2S",
        rows=SMALL,
        stem=24,
        default_size=384,
        top1=83.9,
        weights=(
            _timm_weights(
                "tf_in1k",
                "tf_efficientnetv2_s-eb54923e",
                _rule(384, 1.0, INCEPTION),
                83.9,
            ),
            _timm_weights(
                "tf_in21k_ft_in1k",
                "tf_efficientnetv2_s_21ft1k-d7dafa41",
                _rule(384, 1.0, INCEPTION),
                84.332,
            ),
            _keras_weights(
                "s",
                "e1d88a8495beba45748fedd0cecbe016",
                _rule(384, 1.0, KERAS_RULE),
                83.9,
            ),
            _torchvision_weights(
                "efficientnet_v2_s-dd5fe13b",
                dataclasses.replace(
                    IMAGENET, size=384, crop=1.0, interpolation="bilinear"
                ),
                84.228,
            ),
        ),
    ),
    EfficientNetV2Spec(
        name="efficientnet_v2_m",
        function="EfficientNetV2M",
        rows=MEDIUM,
        stem=24,
        default_size=480,
        top1=85.2,
        weights=(
            _timm_weights(
                "tf_in1k",
                "tf_efficientnetv2_m-cc09e0cd",
                _rule(480, 1.0, INCEPTION),
                85.208,
            ),
            _timm_weights(
                "tf_in21k_ft_in1k",
                "tf_efficientnetv2_m_21ft1k-bf41664a",
                _rule(480, 1.0, INCEPTION),
                86.014,
            ),
            _keras_weights(
                "m",
                "a3bf6aa3276309f4fc6a34aa114c95cd",
                _rule(480, 1.0, KERAS_RULE),
                85.2,
            ),
            _torchvision_weights(
                "efficientnet_v2_m-dc08266a",
                dataclasses.replace(
                    IMAGENET, size=480, crop=1.0, interpolation="bilinear"
                ),
                85.112,
            ),
        ),
    ),
    EfficientNetV2Spec(
        name="efficientnet_v2_l",
        function="EfficientNetV2L",
        rows=LARGE,
        default_size=480,
        top1=85.7,
        weights=(
            _timm_weights(
                "tf_in1k",
                "tf_efficientnetv2_l-d664b728",
                _rule(480, 1.0, INCEPTION),
                85.66,
            ),
            _timm_weights(
                "tf_in21k_ft_in1k",
                "tf_efficientnetv2_l_21ft1k-60127a9d",
                _rule(480, 1.0, INCEPTION),
                86.802,
            ),
            _keras_weights(
                "l",
                "27e6d408b53c7ebc868fefa357689935",
                _rule(480, 1.0, KERAS_RULE),
                85.7,
            ),
            _torchvision_weights(
                "efficientnet_v2_l-59c71312", _rule(480, 1.0, INCEPTION), 85.808
            ),
        ),
    ),
    EfficientNetV2Spec(
        name="efficientnet_v2_xl",
        function="EfficientNetV2XL",
        rows=EXTRA_LARGE,
        default_size=512,
        top1=87.2,
        weights=(
            _timm_weights(
                "tf_in21k_ft_in1k",
                "tf_efficientnetv2_xl_in21ft1k-06c35c48",
                _rule(512, 1.0, INCEPTION),
                86.754,
            ),
        ),
    ),
)


def build(spec: EfficientNetV2Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1280 x width)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, _channels(spec, spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    maps: dict[str, Any] = {}
    blocks = _blocks(spec)
    for i, block in enumerate(blocks):
        sizes = layers.Bottleneck(
            kernel=spec.kernel,
            expand=block.channels * block.row.ratio,
            out=block.out,
            stride=block.stride,
            act=spec.act,
            # A quarter of the block's input, not of the expanded channels.
            squeeze=0 if block.row.fused else max(1, block.channels // 4),
            squeeze_act=spec.act,
            gate="sigmoid",
            drop=spec.drop_connect * i / len(blocks),
        )
        if block.row.fused:
            x = layers.fused_residual(x, sizes, spec, stride, block.name)
        else:
            x, expanded = layers.inverted_residual(x, sizes, spec, stride, block.name)
            if block.row.stage == 5:
                maps.setdefault("c4_expand", expanded)
        maps[f"c{block.row.stage}"] = x
    x = layers.conv_bn(x, _channels(spec, spec.top), 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def _channels(spec: EfficientNetV2Spec, count: int) -> int:
    """Round to the nearest multiple; V2 does not round up below 90 %."""
    return make_divisible(count * spec.width, spec.divisor, limit=0.0)


def _blocks(spec: EfficientNetV2Spec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=_channels(spec, spec.stem),
        outs=[_channels(spec, row.out) for row in spec.rows],
        repeats=[math.ceil(row.repeat * spec.depth) for row in spec.rows],
    )


_FUSED = {"expand_conv": "conv_exp", "expand_bn": "bn1"}
_FUSED |= {"project_conv": "conv_pwl", "project_bn": "bn2"}


def _timm(spec: EfficientNetV2Spec) -> dict[str, str]:
    names: dict[str, str] = {}
    for block in _blocks(spec):
        theirs = f"blocks.{block.index}.{block.repeat}."
        if not block.row.fused:
            names |= timm_inverted(
                block.name, theirs, block.row.expanded, squeezed=True
            )
        elif block.row.expanded:
            names |= pairs(block.name, theirs, _FUSED)
        else:
            names |= pairs(block.name, theirs, {"conv": "conv", "bn": "bn1"})
    return timm_network(names)


def _torchvision(spec: EfficientNetV2Spec) -> dict[str, str]:
    names = pairs("stem", "features.0.", {"conv": "0", "bn": "1"})
    for block in _blocks(spec):
        theirs = f"features.{block.index + 1}.{block.repeat}.block."
        if not block.row.fused:
            names |= torchvision_inverted(block.name, theirs, block.row.expanded, True)
        elif block.row.expanded:
            parts = {"expand_conv": "0.0", "expand_bn": "0.1"}
            parts |= {"project_conv": "1.0", "project_bn": "1.1"}
            names |= pairs(block.name, theirs, parts)
        else:
            names |= pairs(block.name, theirs, {"conv": "0.0", "bn": "0.1"})
    last = f"features.{len(spec.rows) + 1}."
    names |= pairs("top", last, {"conv": "0", "bn": "1"})
    return names | {"top_classifier": "classifier.1"}


def _keras(spec: EfficientNetV2Spec) -> dict[str, str]:
    names = {"stem_conv": "stem_conv", "stem_bn": "stem_bn"}
    for block in _blocks(spec):
        parts = {"expand_conv": "expand_conv", "expand_bn": "expand_bn"}
        parts |= {"project_conv": "project_conv", "project_bn": "project_bn"}
        if block.row.fused and not block.row.expanded:
            parts = {"conv": "project_conv", "bn": "project_bn"}
        elif not block.row.fused:
            parts |= {"dw_conv": "dwconv2", "dw_bn": "bn"}
            parts |= {"se_squeeze_conv": "se_reduce", "se_excite_conv": "se_expand"}
        theirs = f"block{block.index + 1}{chr(ord('a') + block.repeat)}_"
        names |= pairs(block.name, theirs, parts)
    names |= {"top_conv": "top_conv", "top_bn": "top_bn"}
    return names | {"top_classifier": "predictions"}


LAYOUTS = {
    "timm": Layout(names=_timm),
    "torchvision": Layout(names=_torchvision),
    "keras": Layout(names=_keras, kind="keras"),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

EfficientNetV2B0 = make_application(SPECS[0], FAMILY)
EfficientNetV2B1 = make_application(SPECS[1], FAMILY)
EfficientNetV2B2 = make_application(SPECS[2], FAMILY)
EfficientNetV2B3 = make_application(SPECS[3], FAMILY)
EfficientNetV2S = make_application(SPECS[4], FAMILY)
EfficientNetV2M = make_application(SPECS[5], FAMILY)
EfficientNetV2L = make_application(SPECS[6], FAMILY)
EfficientNetV2XL = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
