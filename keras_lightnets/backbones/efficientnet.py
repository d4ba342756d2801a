"""EfficientNet: one network scaled in depth, width and resolution."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._efficientnet import EFFICIENTNET_ROWS, ScaledRow
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
    ModelSpec,
    Preprocessing,
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

    rows: tuple[ScaledRow, ...] = EFFICIENTNET_ROWS
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    reference: str = "Tan and Le 2019, EfficientNet, https://arxiv.org/abs/1905.11946"
    depth: float = 1.0
    stem: int = 32
    top: int = 1280
    act: str = "silu"
    drop_connect: float = 0.0


TIMM = (
    "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights"
)


@dataclass(frozen=True)
class Variant:
    """One network of the paper's table 2, its evaluation and its published files.

    Attributes:
        name: Such as "b0".
        width: Channel multiplier.
        depth: Multiplier of repetitions.
        size: Input side.
        crop: Share of the resized shortest side.
        dropout: Rate before the classifier.
        top1: The paper's.
        timm: (tag, file name's ending, top-1) of the converted checkpoints.
        md5: Of keras.applications' file.
        torchvision: (version, file name's ending, top-1, epsilon, input rule).
    """

    name: str
    width: float
    depth: float
    size: int
    crop: float
    dropout: float
    top1: float
    timm: tuple[tuple[str, str, float], ...]
    md5: str
    torchvision: tuple[tuple[str, str, float, float, Preprocessing], ...]


def _rule(size: int, crop: float, interpolation: str = "bicubic") -> Preprocessing:
    return dataclasses.replace(
        IMAGENET, size=size, crop=crop, interpolation=interpolation
    )


# fmt: off
VARIANTS = (
    Variant("b0", 1.0, 1.0, 224, 0.875, 0.2, 77.1, (
        ("tf_in1k", "-0af12548", 76.542),
        ("tf_aa_in1k", "_aa-827b6e33", 76.882),
        ("tf_ns_jft_in1k", "_ns-c0e6a31c", 78.68),
    ), "902e53a9f72be733fc0bcb005b3ebbac", (
        ("v1", "b0_rwightman-7f5810bc", 77.692, 1e-5, _rule(224, 224 / 256)),
    )),
    Variant("b1", 1.0, 1.1, 240, 0.882, 0.2, 79.1, (
        ("tf_in1k", "-5c1377c4", 78.546),
        ("tf_aa_in1k", "_aa-ea7a6ee0", 78.84),
        ("tf_ns_jft_in1k", "_ns-99dd0c41", 81.388),
    ), "1d254153d4ab51201f1646940f018540", (
        ("v1", "b1_rwightman-bac287d4", 78.642, 1e-5, _rule(240, 240 / 256)),
        ("v2", "b1-c27df63c", 79.838, 1e-5, _rule(240, 240 / 255, "bilinear")),
    )),
    Variant("b2", 1.1, 1.2, 260, 0.89, 0.3, 80.1, (
        ("tf_in1k", "-e393ef04", 79.612),
        ("tf_aa_in1k", "_aa-60c94f97", 80.074),
        ("tf_ns_jft_in1k", "_ns-00306e48", 82.412),
    ), "b15cce36ff4dcbd00b6dd88e7857a6ad", (
        ("v1", "b2_rwightman-c35c1473", 80.608, 1e-5, _rule(288, 1.0)),
    )),
    Variant("b3", 1.2, 1.4, 300, 0.904, 0.3, 81.6, (
        ("tf_in1k", "-e3bd6955", 80.878),
        ("tf_aa_in1k", "_aa-84b4657e", 81.648),
        ("tf_ns_jft_in1k", "_ns-9d44bf68", 84.054),
    ), "ffd1fdc53d0ce67064dc6a9c7960ede0", (
        ("v1", "b3_rwightman-b3899882", 82.008, 1e-5, _rule(300, 300 / 320)),
    )),
    Variant("b4", 1.4, 1.8, 380, 0.922, 0.4, 82.9, (
        ("tf_in1k", "-74ee3bed", 82.598),
        ("tf_aa_in1k", "_aa-818f208c", 83.04),
        ("tf_ns_jft_in1k", "_ns-d6313a46", 85.156),
    ), "18c95ad55216b8f92d7e70b3a046e2fc", (
        ("v1", "b4_rwightman-23ab8bcd", 83.384, 1e-5, _rule(380, 380 / 384)),
    )),
    Variant("b5", 1.6, 2.2, 456, 0.934, 0.4, 83.6, (
        ("tf_in1k", "-c6949ce9", 83.17),
        ("tf_aa_in1k", "_aa-99018a74", 83.696),
        ("tf_ns_jft_in1k", "_ns-6f26d0cf", 86.096),
    ), "ace28f2a6363774853a83a0b21b9421a", (
        ("v1", "b5_lukemelas-1a07897c", 83.444, 1e-3, _rule(456, 1.0)),
    )),
    Variant("b6", 1.8, 2.6, 528, 0.942, 0.5, 84.0, (
        ("tf_aa_in1k", "_aa-80ba17e4", 84.124),
        ("tf_ns_jft_in1k", "_ns-51548356", 86.476),
    ), "165f6e37dce68623721b423839de8be5", (
        ("v1", "b6_lukemelas-24a108a5", 84.008, 1e-3, _rule(528, 1.0)),
    )),
    Variant("b7", 2.0, 3.1, 600, 0.949, 0.5, 84.3, (
        ("tf_ra_in1k", "_ra-6c08e654", 84.926),
        ("tf_aa_in1k", "_aa-076e3472", 84.424),
        ("tf_ns_jft_in1k", "_ns-1dbc32de", 86.85),
    ), "8c03f828fec3ef71311cd463b6759d99", (
        ("v1", "b7_lukemelas-c5b4e57e", 84.122, 1e-3, _rule(600, 1.0)),
    )),
)
# fmt: on


def _spec(variant: Variant) -> EfficientNetSpec:
    name, rule = variant.name, _rule(variant.size, variant.crop)
    timm = tuple(
        _publishers.timm(
            tag,
            f"tf_efficientnet_{name}{ending}",
            rule,
            top1,
            source=_publishers.CONVERTED,
            host=TIMM,
        )
        for tag, ending, top1 in variant.timm
    )
    path = f"keras-applications/efficientnet{name}"
    converted = _publishers.keras(path, rule, variant.md5, variant.top1)
    torchvision = tuple(
        _publishers.torchvision(
            version,
            f"efficientnet_{ending}",
            torch_rule,
            top1,
            (("padding", "symmetric"), ("bn_epsilon", epsilon)),
        )
        for version, ending, top1, epsilon, torch_rule in variant.torchvision
    )
    return EfficientNetSpec(
        name=f"efficientnet_{name}",
        function=f"EfficientNet{name.upper()}",
        width=variant.width,
        depth=variant.depth,
        default_size=variant.size,
        dropout=variant.dropout,
        top1=variant.top1,
        weights=(*timm, converted, *torchvision),
    )


SPECS = tuple(_spec(variant) for variant in VARIANTS)


def build(spec: EfficientNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1280 x width)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    blocks = _blocks(spec)
    drops = [spec.drop_connect * i / len(blocks) for i in range(len(blocks))]
    sizes = [_sizes(spec, b, d) for b, d in zip(blocks, drops, strict=True)]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    x = layers.conv_bn(x, spec.channels(spec.top), 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def _sizes(
    spec: EfficientNetSpec, block: Block[ScaledRow], drop: float
) -> "layers.Bottleneck":
    return layers.Bottleneck(
        kernel=block.row.kernel,
        expand=block.channels * block.row.ratio,
        out=block.out,
        stride=block.stride,
        act=spec.act,
        # A quarter of the block's input, not of the expanded channels.
        squeeze=max(1, block.channels // 4),
        squeeze_act=spec.act,
        gate="sigmoid",
        drop=drop,
    )


def _blocks(spec: EfficientNetSpec) -> list[Block[ScaledRow]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[math.ceil(row.repeat * spec.depth) for row in spec.rows],
    )


def _timm(spec: EfficientNetSpec) -> dict[str, str]:
    names: dict[str, str] = {}
    for block in _blocks(spec):
        theirs = f"blocks.{block.index}.{block.repeat}."
        names |= timm_inverted(block.name, theirs, block.row.expanded, squeezed=True)
    return timm_network(names)


def _torchvision(spec: EfficientNetSpec) -> dict[str, str]:
    names = pairs("stem", "features.0.", {"conv": "0", "bn": "1"})
    for block in _blocks(spec):
        theirs = f"features.{block.index + 1}.{block.repeat}.block."
        names |= torchvision_inverted(block.name, theirs, block.row.expanded, True)
    last = f"features.{len(spec.rows) + 1}."
    names |= pairs("top", last, {"conv": "0", "bn": "1"})
    return names | {"top_classifier": "classifier.1"}


def _keras(spec: EfficientNetSpec) -> dict[str, str]:
    names = {"stem_conv": "stem_conv", "stem_bn": "stem_bn"}
    for block in _blocks(spec):
        parts = {"expand_conv": "expand_conv", "expand_bn": "expand_bn"}
        parts = parts if block.row.expanded else {}
        parts |= {"dw_conv": "dwconv", "dw_bn": "bn"}
        parts |= {"se_squeeze_conv": "se_reduce", "se_excite_conv": "se_expand"}
        parts |= {"project_conv": "project_conv", "project_bn": "project_bn"}
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

EfficientNetB0 = make_application(SPECS[0], FAMILY)
EfficientNetB1 = make_application(SPECS[1], FAMILY)
EfficientNetB2 = make_application(SPECS[2], FAMILY)
EfficientNetB3 = make_application(SPECS[3], FAMILY)
EfficientNetB4 = make_application(SPECS[4], FAMILY)
EfficientNetB5 = make_application(SPECS[5], FAMILY)
EfficientNetB6 = make_application(SPECS[6], FAMILY)
EfficientNetB7 = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
