"""EfficientNet: one network scaled in depth, width and resolution."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs, timm_inverted
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "EfficientNetB0",
    "EfficientNetB1",
    "EfficientNetB2",
    "EfficientNetB3",
    "EfficientNetB4",
    "EfficientNetB5",
    "EfficientNetB6",
    "EfficientNetB7",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One line of the paper's table 1 (B0's, before width and depth)."""

    stage: int
    kernel: int
    ratio: int
    out: int
    repeat: int
    stride: int


# fmt: off
ROWS = (
    #   stage kernel ratio  out  repeat stride
    Row(1,    3,     1,      16, 1,     1),
    Row(2,    3,     6,      24, 2,     2),
    Row(3,    5,     6,      40, 2,     2),
    Row(4,    3,     6,      80, 3,     2),
    Row(4,    5,     6,     112, 3,     1),
    Row(5,    5,     6,     192, 4,     2),
    Row(5,    3,     6,     320, 1,     1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class EfficientNetSpec(ModelSpec):
    """An EfficientNet.

    Attributes:
        depth: Multiplier of a row's repetitions, rounded up.
        stem: Channels of the stem.
        top: Channels of the last convolution.
        act: Activation of all convolutions and inside squeeze-and-excite.
        drop_connect: Share of images whose residual is dropped in training, at the
            last block; earlier ones have proportionally less. The paper has 0.2.
    """

    rows: tuple[Row, ...] = ROWS
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    reference: str = "Tan and Le 2019, EfficientNet, https://arxiv.org/abs/1905.11946"
    depth: float = 1.0
    stem: int = 32
    top: int = 1280
    act: str = "silu"
    drop_connect: float = 0.0


TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download"


def _rule(size: int, crop: float, interpolation: str = "bicubic") -> Preprocessing:
    return dataclasses.replace(
        IMAGENET, size=size, crop=crop, interpolation=interpolation
    )


def _timm_weights(tag: str, file: str, rule: Preprocessing) -> Weights:
    return Weights(
        tag=tag,
        url=f"{TIMM}/v0.1-weights/{file}.pth",
        hash=f"sha256:{file[-8:]}",
        format="pth",
        layout="timm",
        licence="Apache-2.0",
        preprocessing=rule,
        source="timm, converted from the authors' checkpoint",
    )


def _torchvision_weights(
    tag: str, file: str, top1: float, rule: Preprocessing, epsilon: float = 1e-5
) -> Weights:
    return Weights(
        tag=tag,
        url=f"https://download.pytorch.org/models/{file}.pth",
        hash=f"sha256:{file[-8:]}",
        format="pth",
        layout="torchvision",
        licence="BSD-3-Clause",
        preprocessing=rule,
        changes=(("padding", "symmetric"), ("bn_epsilon", epsilon)),
        top1=top1,
        source="torchvision",
    )


def _keras_weights(name: str, md5: str, top1: float, rule: Preprocessing) -> Weights:
    return Weights(
        tag="keras_in1k",
        url=f"https://storage.googleapis.com/keras-applications/efficientnet{name}.h5",
        hash=f"md5:{md5}",
        format="h5",
        layout="keras",
        licence="Apache-2.0",
        preprocessing=rule,
        top1=top1,
        source="keras.applications, converted from the authors' checkpoint",
    )


SPECS = (
    EfficientNetSpec(
        name="efficientnet_b0",
        function="EfficientNetB0",
        top1=77.1,
        weights=(
            _timm_weights("tf_in1k", "tf_efficientnet_b0-0af12548", _rule(224, 0.875)),
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b0_aa-827b6e33", _rule(224, 0.875)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b0_ns-c0e6a31c", _rule(224, 0.875)
            ),
            _keras_weights(
                "b0", "902e53a9f72be733fc0bcb005b3ebbac", 77.1, _rule(224, 0.875)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b0_rwightman-7f5810bc",
                77.692,
                _rule(224, 224 / 256),
            ),
        ),
    ),
    EfficientNetSpec(
        name="efficientnet_b1",
        function="EfficientNetB1",
        depth=1.1,
        default_size=240,
        top1=79.1,
        weights=(
            _timm_weights("tf_in1k", "tf_efficientnet_b1-5c1377c4", _rule(240, 0.882)),
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b1_aa-ea7a6ee0", _rule(240, 0.882)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b1_ns-99dd0c41", _rule(240, 0.882)
            ),
            _keras_weights(
                "b1", "1d254153d4ab51201f1646940f018540", 79.1, _rule(240, 0.882)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b1_rwightman-bac287d4",
                78.642,
                _rule(240, 240 / 256),
            ),
            _torchvision_weights(
                "torchvision_v2",
                "efficientnet_b1-c27df63c",
                79.838,
                _rule(240, 240 / 255, "bilinear"),
            ),
        ),
    ),
    EfficientNetSpec(
        name="efficientnet_b2",
        function="EfficientNetB2",
        width=1.1,
        depth=1.2,
        default_size=260,
        dropout=0.3,
        top1=80.1,
        weights=(
            _timm_weights("tf_in1k", "tf_efficientnet_b2-e393ef04", _rule(260, 0.89)),
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b2_aa-60c94f97", _rule(260, 0.89)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b2_ns-00306e48", _rule(260, 0.89)
            ),
            _keras_weights(
                "b2", "b15cce36ff4dcbd00b6dd88e7857a6ad", 80.1, _rule(260, 0.89)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b2_rwightman-c35c1473",
                80.608,
                _rule(288, 288 / 288),
            ),
        ),
    ),
    EfficientNetSpec(
        name="efficientnet_b3",
        function="EfficientNetB3",
        width=1.2,
        depth=1.4,
        default_size=300,
        dropout=0.3,
        top1=81.6,
        weights=(
            _timm_weights("tf_in1k", "tf_efficientnet_b3-e3bd6955", _rule(300, 0.904)),
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b3_aa-84b4657e", _rule(300, 0.904)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b3_ns-9d44bf68", _rule(300, 0.904)
            ),
            _keras_weights(
                "b3", "ffd1fdc53d0ce67064dc6a9c7960ede0", 81.6, _rule(300, 0.904)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b3_rwightman-b3899882",
                82.008,
                _rule(300, 300 / 320),
            ),
        ),
    ),
    EfficientNetSpec(
        name="efficientnet_b4",
        function="EfficientNetB4",
        width=1.4,
        depth=1.8,
        default_size=380,
        dropout=0.4,
        top1=82.9,
        weights=(
            _timm_weights("tf_in1k", "tf_efficientnet_b4-74ee3bed", _rule(380, 0.922)),
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b4_aa-818f208c", _rule(380, 0.922)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b4_ns-d6313a46", _rule(380, 0.922)
            ),
            _keras_weights(
                "b4", "18c95ad55216b8f92d7e70b3a046e2fc", 82.9, _rule(380, 0.922)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b4_rwightman-23ab8bcd",
                83.384,
                _rule(380, 380 / 384),
            ),
        ),
    ),
    EfficientNetSpec(
        name="efficientnet_b5",
        function="EfficientNetB5",
        width=1.6,
        depth=2.2,
        default_size=456,
        dropout=0.4,
        top1=83.6,
        weights=(
            _timm_weights("tf_in1k", "tf_efficientnet_b5-c6949ce9", _rule(456, 0.934)),
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b5_aa-99018a74", _rule(456, 0.934)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b5_ns-6f26d0cf", _rule(456, 0.934)
            ),
            _keras_weights(
                "b5", "ace28f2a6363774853a83a0b21b9421a", 83.6, _rule(456, 0.934)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b5_lukemelas-1a07897c",
                83.444,
                _rule(456, 456 / 456),
                0.001,
            ),
        ),
    ),
    EfficientNetSpec(
        name="efficientnet_b6",
        function="EfficientNetB6",
        width=1.8,
        depth=2.6,
        default_size=528,
        dropout=0.5,
        top1=84.0,
        weights=(
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b6_aa-80ba17e4", _rule(528, 0.942)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b6_ns-51548356", _rule(528, 0.942)
            ),
            _keras_weights(
                "b6", "165f6e37dce68623721b423839de8be5", 84.0, _rule(528, 0.942)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b6_lukemelas-24a108a5",
                84.008,
                _rule(528, 528 / 528),
                0.001,
            ),
        ),
    ),
    EfficientNetSpec(
        name="efficientnet_b7",
        function="EfficientNetB7",
        width=2.0,
        depth=3.1,
        default_size=600,
        dropout=0.5,
        top1=84.3,
        weights=(
            _timm_weights(
                "tf_ra_in1k", "tf_efficientnet_b7_ra-6c08e654", _rule(600, 0.949)
            ),
            _timm_weights(
                "tf_aa_in1k", "tf_efficientnet_b7_aa-076e3472", _rule(600, 0.949)
            ),
            _timm_weights(
                "tf_ns_jft_in1k", "tf_efficientnet_b7_ns-1dbc32de", _rule(600, 0.949)
            ),
            _keras_weights(
                "b7", "8c03f828fec3ef71311cd463b6759d99", 84.3, _rule(600, 0.949)
            ),
            _torchvision_weights(
                "torchvision_v1",
                "efficientnet_b7_lukemelas-c5b4e57e",
                84.122,
                _rule(600, 600 / 600),
                0.001,
            ),
        ),
    ),
)


@dataclass(frozen=True)
class _Block:
    """One block: its row, place and channels."""

    row: Row
    index: int
    repeat: int
    name: str
    channels: int
    out: int

    @property
    def stride(self) -> int:
        return self.row.stride if self.repeat == 0 else 1

    @property
    def expanded(self) -> bool:
        return self.row.ratio != 1


def build(spec: EfficientNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1280 x width)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, _channels(spec, spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    maps: dict[str, Any] = {}
    blocks = _blocks(spec)
    for i, block in enumerate(blocks):
        sizes = layers.Bottleneck(
            kernel=block.row.kernel,
            expand=block.channels * block.row.ratio,
            out=block.out,
            stride=block.stride,
            act=spec.act,
            # A quarter of the block's input, not of the expanded channels.
            squeeze=max(1, block.channels // 4),
            squeeze_act=spec.act,
            gate="sigmoid",
            drop=spec.drop_connect * i / len(blocks),
        )
        x, expanded = layers.inverted_residual(x, sizes, spec, stride, block.name)
        maps[f"c{block.row.stage}"] = x
        if block.row.stage == 5:
            maps.setdefault("c4_expand", expanded)
    x = layers.conv_bn(x, _channels(spec, spec.top), 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def _channels(spec: EfficientNetSpec, count: int) -> int:
    return make_divisible(count * spec.width, spec.divisor)


def _blocks(spec: EfficientNetSpec) -> list[_Block]:
    blocks: list[_Block] = []
    channels = _channels(spec, spec.stem)
    for index, row in enumerate(spec.rows):
        out = _channels(spec, row.out)
        for repeat in range(math.ceil(row.repeat * spec.depth)):
            number = 1 + sum(b.row.stage == row.stage for b in blocks)
            name = f"stage{row.stage}_block{number}"
            blocks.append(_Block(row, index, repeat, name, channels, out))
            channels = out
    return blocks


def _timm(spec: EfficientNetSpec) -> dict[str, str]:
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    for block in _blocks(spec):
        theirs = f"blocks.{block.index}.{block.repeat}."
        names |= timm_inverted(block.name, theirs, block.expanded, squeezed=True)
    names |= {"top_conv": "conv_head", "top_bn": "bn2"}
    return names | {"top_classifier": "classifier"}


def _torchvision(spec: EfficientNetSpec) -> dict[str, str]:
    names = pairs("stem", "features.0.", {"conv": "0", "bn": "1"})
    for block in _blocks(spec):
        first = 1 if block.expanded else 0
        parts = {"expand_conv": "0.0", "expand_bn": "0.1"} if first else {}
        parts |= {"dw_conv": f"{first}.0", "dw_bn": f"{first}.1"}
        parts["se_squeeze_conv"] = f"{first + 1}.fc1"
        parts["se_excite_conv"] = f"{first + 1}.fc2"
        parts |= {"project_conv": f"{first + 2}.0", "project_bn": f"{first + 2}.1"}
        theirs = f"features.{block.index + 1}.{block.repeat}.block."
        names |= pairs(block.name, theirs, parts)
    last = f"features.{len(spec.rows) + 1}."
    names |= pairs("top", last, {"conv": "0", "bn": "1"})
    return names | {"top_classifier": "classifier.1"}


def _keras(spec: EfficientNetSpec) -> dict[str, str]:
    names = {name: name for name in ("stem_conv", "stem_bn", "top_conv", "top_bn")}
    for block in _blocks(spec):
        parts = {"expand_conv": "expand_conv", "expand_bn": "expand_bn"}
        parts = parts if block.expanded else {}
        parts |= {"dw_conv": "dwconv", "dw_bn": "bn"}
        parts |= {"se_squeeze_conv": "se_reduce", "se_excite_conv": "se_expand"}
        parts |= {"project_conv": "project_conv", "project_bn": "project_bn"}
        theirs = f"block{block.index + 1}{chr(ord('a') + block.repeat)}_"
        names |= pairs(block.name, theirs, parts)
    return names | {"top_classifier": "predictions"}


LAYOUTS = {
    "timm": Layout(names=_timm),
    "torchvision": Layout(names=_torchvision),
    "keras": Layout(names=_keras, kind="keras"),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

EfficientNetB0 = make_application(SPECS[0], FAMILY)
EfficientNetB1 = make_application(SPECS[1], FAMILY)
EfficientNetB2 = make_application(SPECS[2], FAMILY)
EfficientNetB3 = make_application(SPECS[3], FAMILY)
EfficientNetB4 = make_application(SPECS[4], FAMILY)
EfficientNetB5 = make_application(SPECS[5], FAMILY)
EfficientNetB6 = make_application(SPECS[6], FAMILY)
EfficientNetB7 = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
