"""MobileNetV2: inverted residuals with linear bottlenecks."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs, timm_inverted, timm_network
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    INCEPTION,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "ECAMobileNetV2",
    "MobileNetV2",
    "MobileNetV2W035",
    "MobileNetV2W050",
    "MobileNetV2W075",
    "MobileNetV2W140",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One line of the paper's table 2: t, c, n, s (before the width).

    `eca` is the kernel of ECA-Net's gates behind the projections; 0 for none.
    """

    stage: int
    ratio: int
    out: int
    repeat: int
    stride: int
    eca: int = 0


# fmt: off
ROWS = (
    #   stage ratio  out repeat stride
    Row(1,    1,      16, 1,    1),
    Row(2,    6,      24, 2,    2),
    Row(3,    6,      32, 3,    2),
    Row(4,    6,      64, 4,    2),
    Row(4,    6,      96, 3,    1),
    Row(5,    6,     160, 3,    2),
    Row(5,    6,     320, 1,    1),
)
# fmt: on
# ECA-Net's files: neighbours count from 96 channels on.
ECA_ROWS = tuple(dataclasses.replace(r, eca=1 if r.out < 96 else 3) for r in ROWS)


@dataclass(frozen=True, kw_only=True)
class MobileNetV2Spec(ModelSpec):
    """A MobileNetV2.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution, multiplied only by widths above 1.
        act: Activation.
        expand_first: Whether the first block, which does not widen, has an
            expansion convolution all the same.
    """

    rows: tuple[Row, ...] = ROWS
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    reference: str = (
        "Sandler et al. 2018, MobileNetV2, https://arxiv.org/abs/1801.04381"
    )
    stem: int = 32
    top: int = 1280
    act: str = "relu6"
    expand_first: bool = False


TORCH = (("padding", "symmetric"), ("bn_epsilon", 1e-5))
TORCHVISION = Preprocessing(
    mean=IMAGENET.mean, std=IMAGENET.std, interpolation="bilinear"
)
# The second recipe evaluates on a 224 crop of a shortest side of 232.
TORCHVISION_V2 = Preprocessing(
    mean=IMAGENET.mean, std=IMAGENET.std, crop=224 / 232, interpolation="bilinear"
)


def _torchvision_weights(
    version: str, sha256: str, rule: Preprocessing, top1: float
) -> Weights:
    file = f"mobilenet_v2-{sha256}"
    return _publishers.torchvision(version, file, rule, top1, TORCH)


def _timm_weights(tag: str, file: str, top1: float) -> Weights:
    return _publishers.timm(tag, file, IMAGENET, top1, TORCH)


def _keras_weights(width: float) -> Weights:
    stem = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels"
    path = f"tensorflow/keras-applications/mobilenet_v2/{stem}_{width}_224"
    return _publishers.keras(path, INCEPTION)


PYTORCHCV_WEIGHTS = _publishers.pytorchcv(
    "v0.0.213",
    "mobilenetv2_w1-0887",
    "13a021bca5b679b76156829743f7182da42e8bb6",
    IMAGENET,
    (*TORCH, ("expand_first", True), ("classifier_bias", False)),
)

SPECS = (
    MobileNetV2Spec(
        name="mobilenet_v2",
        function="MobileNetV2",
        top1=72.0,
        weights=(
            _torchvision_weights("v1", "b0353104", TORCHVISION, 71.878),
            _torchvision_weights("v2", "7ebf99e0", TORCHVISION_V2, 72.154),
            _timm_weights("ra_in1k", "mobilenetv2_100_ra-b33bc2c4", 72.976),
            _keras_weights(1.0),
            PYTORCHCV_WEIGHTS,
        ),
    ),
    MobileNetV2Spec(
        name="mobilenet_v2_140",
        function="MobileNetV2W140",
        width=1.4,
        top1=74.7,
        weights=(
            _timm_weights("ra_in1k", "mobilenetv2_140_ra-21a4e913", 76.52),
            _keras_weights(1.4),
        ),
    ),
    MobileNetV2Spec(
        name="mobilenet_v2_075",
        function="MobileNetV2W075",
        width=0.75,
        top1=69.8,
        weights=(_keras_weights(0.75),),
    ),
    MobileNetV2Spec(
        name="mobilenet_v2_050",
        function="MobileNetV2W050",
        width=0.5,
        top1=65.4,
        weights=(
            _timm_weights("lamb_in1k", "mobilenetv2_050-3d30d450", 65.95),
            _keras_weights(0.5),
        ),
    ),
    MobileNetV2Spec(
        name="mobilenet_v2_035",
        function="MobileNetV2W035",
        width=0.35,
        top1=60.3,
        weights=(_keras_weights(0.35),),
    ),
    MobileNetV2Spec(
        name="eca_mobilenet_v2",
        function="ECAMobileNetV2",
        rows=ECA_ROWS,
        padding="symmetric",
        bn_epsilon=1e-5,
        bn_momentum=0.9,
        bias_exceptions=("*_eca_conv",),
        top1=72.56,
        reference="Wang et al. 2020, ECA-Net, https://arxiv.org/abs/1910.03151",
    ),
)


def build(spec: MobileNetV2Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1280 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    blocks = _blocks(spec)
    sizes = [_sizes(spec, block) for block in blocks]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    top = make_divisible(spec.top * max(1.0, spec.width), spec.divisor)
    x = layers.conv_bn(x, top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def _sizes(spec: MobileNetV2Spec, block: Block[Row]) -> "layers.Bottleneck":
    return layers.Bottleneck(
        kernel=3,
        expand=block.channels * block.row.ratio,
        out=block.out,
        stride=block.stride,
        act=spec.act,
        always_expand=_expanded(spec, block.row),
        eca=block.row.eca,
    )


def _expanded(spec: MobileNetV2Spec, row: Row) -> bool:
    return row.ratio != 1 or spec.expand_first


def _blocks(spec: MobileNetV2Spec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


def _timm(spec: MobileNetV2Spec) -> dict[str, str]:
    names: dict[str, str] = {}
    for block in _blocks(spec):
        theirs = f"blocks.{block.index}.{block.repeat}."
        names |= timm_inverted(
            block.name, theirs, _expanded(spec, block.row), squeezed=False
        )
    return timm_network(names)


def _torchvision(spec: MobileNetV2Spec) -> dict[str, str]:
    names = pairs("stem", "features.0.", {"conv": "0", "bn": "1"})
    blocks = _blocks(spec)
    for i, block in enumerate(blocks, start=1):
        k = int(_expanded(spec, block.row))
        parts = {"expand_conv": "0.0", "expand_bn": "0.1"} if k else {}
        parts |= {"dw_conv": f"{k}.0", "dw_bn": f"{k}.1"}
        parts |= {"project_conv": f"{k + 1}", "project_bn": f"{k + 2}"}
        if block.row.eca:
            parts["eca_conv"] = f"{k + 3}.conv"
        names |= pairs(block.name, f"features.{i}.conv.", parts)
    names |= pairs("top", f"features.{len(blocks) + 1}.", {"conv": "0", "bn": "1"})
    return names | {"top_classifier": "classifier.1"}


def _pytorchcv(spec: MobileNetV2Spec) -> dict[str, str]:
    names = pairs("stem", "features.init_block.", {"conv": "conv", "bn": "bn"})
    for block in _blocks(spec):
        first = 0 if _expanded(spec, block.row) else 1
        for i, part in list(enumerate(("expand", "dw", "project"), start=1))[first:]:
            theirs = f"features.stage{block.row.stage}.unit{block.number}.conv{i}."
            names |= pairs(f"{block.name}_{part}", theirs, {"conv": "conv", "bn": "bn"})
    names |= pairs("top", "features.final_block.", {"conv": "conv", "bn": "bn"})
    return names | {"top_classifier": "output"}


def _keras(spec: MobileNetV2Spec) -> dict[str, str]:
    names = {"stem_conv": "Conv1", "stem_bn": "bn_Conv1"}
    for i, block in enumerate(_blocks(spec)):
        parts = {"expand_conv": "expand", "expand_bn": "expand_BN"}
        parts = parts if _expanded(spec, block.row) else {}
        parts |= {"dw_conv": "depthwise", "dw_bn": "depthwise_BN"}
        parts |= {"project_conv": "project", "project_bn": "project_BN"}
        names |= pairs(block.name, f"block_{i}_" if i else "expanded_conv_", parts)
    names |= {"top_conv": "Conv_1", "top_bn": "Conv_1_bn"}
    return names | {"top_classifier": "predictions"}


LAYOUTS = {
    "torchvision": Layout(names=_torchvision, changes=TORCH, preprocessing=TORCHVISION),
    "timm": Layout(names=_timm, changes=TORCH, preprocessing=IMAGENET),
    "keras": Layout(names=_keras, kind="keras", preprocessing=INCEPTION),
    "pytorchcv": Layout(
        names=_pytorchcv,
        changes=PYTORCHCV_WEIGHTS.changes,
        preprocessing=IMAGENET,
    ),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

MobileNetV2 = make_application(SPECS[0], FAMILY)
MobileNetV2W140 = make_application(SPECS[1], FAMILY)
MobileNetV2W075 = make_application(SPECS[2], FAMILY)
MobileNetV2W050 = make_application(SPECS[3], FAMILY)
MobileNetV2W035 = make_application(SPECS[4], FAMILY)
ECAMobileNetV2 = make_application(SPECS[5], FAMILY)
preprocess_input = make_preprocess(SPECS)
