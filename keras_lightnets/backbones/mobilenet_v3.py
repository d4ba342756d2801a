"""MobileNetV3: searched inverted residuals with squeeze-and-excite."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs, timm_inverted, torchvision_inverted
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "MobileNetV3Large",
    "MobileNetV3LargeMinimalistic",
    "MobileNetV3LargeW075",
    "MobileNetV3Small",
    "MobileNetV3SmallMinimalistic",
    "MobileNetV3SmallW050",
    "MobileNetV3SmallW075",
    "decode_predictions",
    "preprocess_input",
]

RE, HS = "relu", "hard_swish"


@dataclass(frozen=True)
class Row:
    """One line of the paper's tables 1 and 2 (before the width)."""

    stage: int
    kernel: int
    expand: int
    out: int
    se: bool
    act: str
    stride: int


# fmt: off
LARGE = (
    #   stage kernel expand  out  se     act stride
    Row(1,    3,      16,    16,  False, RE, 1),
    Row(2,    3,      64,    24,  False, RE, 2),
    Row(2,    3,      72,    24,  False, RE, 1),
    Row(3,    5,      72,    40,  True,  RE, 2),
    Row(3,    5,     120,    40,  True,  RE, 1),
    Row(3,    5,     120,    40,  True,  RE, 1),
    Row(4,    3,     240,    80,  False, HS, 2),
    Row(4,    3,     200,    80,  False, HS, 1),
    Row(4,    3,     184,    80,  False, HS, 1),
    Row(4,    3,     184,    80,  False, HS, 1),
    Row(4,    3,     480,   112,  True,  HS, 1),
    Row(4,    3,     672,   112,  True,  HS, 1),
    Row(5,    5,     672,   160,  True,  HS, 2),
    Row(5,    5,     960,   160,  True,  HS, 1),
    Row(5,    5,     960,   160,  True,  HS, 1),
)
SMALL = (
    Row(2,    3,      16,    16,  True,  RE, 2),
    Row(3,    3,      72,    24,  False, RE, 2),
    Row(3,    3,      88,    24,  False, RE, 1),
    Row(4,    5,      96,    40,  True,  HS, 2),
    Row(4,    5,     240,    40,  True,  HS, 1),
    Row(4,    5,     240,    40,  True,  HS, 1),
    Row(4,    5,     120,    48,  True,  HS, 1),
    Row(4,    5,     144,    48,  True,  HS, 1),
    Row(5,    5,     288,    96,  True,  HS, 2),
    Row(5,    5,     576,    96,  True,  HS, 1),
    Row(5,    5,     576,    96,  True,  HS, 1),
)
# fmt: on


def minimalistic(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return the rows with 3x3 kernels, ReLU and no squeeze-and-excite."""
    return tuple(dataclasses.replace(r, kernel=3, se=False, act=RE) for r in rows)


@dataclass(frozen=True, kw_only=True)
class MobileNetV3Spec(ModelSpec):
    """A MobileNetV3.

    Attributes:
        hidden: Channels of the layer before the classifier, multiplied only by
            widths above 1.
        stem: Channels of the stem, multiplied only by widths above 1.
        act: Activation of the stem and of the last layers.
        reduced_tail: Halve the channels of stage 5 and of what follows, as
            detection does (section 6.3 of the paper).
        reduced_expand: Halve the expansion of stage 5's first block too; with it the
            paper's segmenters have the parameters of its table 7.
        dilate_first: Dilate the very convolution that loses its stride to
            `output_stride`, as torchvision's segmentation does.
    """

    levels: tuple[Any, ...] = EXPANDED_LEVELS
    reference: str = "Howard et al. 2019, MobileNetV3, https://arxiv.org/abs/1905.02244"
    hidden: int
    stem: int = 16
    act: str = HS
    reduced_tail: bool = False
    reduced_expand: bool = False
    dilate_first: bool = False


KERAS = "tensorflow/keras-applications/mobilenet_v3"
TF_RULE = Preprocessing(interpolation="bilinear")
TORCH_RULE = Preprocessing(
    mean=IMAGENET.mean, std=IMAGENET.std, interpolation="bilinear"
)
# The second recipe evaluates on a 224 crop of a shortest side of 232.
TORCH_RULE_V2 = dataclasses.replace(TORCH_RULE, crop=224 / 232)


def _tf_weights(file: str, top1: float) -> Weights:
    source = _publishers.CONVERTED
    return _publishers.timm("tf_in1k", file, TF_RULE, top1, source=source)


def _timm_weights(tag: str, file: str, top1: float) -> Weights:
    changes = (("padding", "symmetric"), ("bn_epsilon", 1e-5))
    return _publishers.timm(tag, file, IMAGENET, top1, changes)


def _torchvision_weights(
    version: str, file: str, top1: float, rule: Preprocessing = TORCH_RULE
) -> Weights:
    changes = (("padding", "symmetric"),)
    return _publishers.torchvision(version, file, rule, top1, changes)


def _keras_weights(name: str, md5: str, top1: float) -> Weights:
    path = f"{KERAS}/weights_mobilenet_v3_{name}_float"
    return _publishers.keras(path, TF_RULE, md5, top1)


SPECS = (
    MobileNetV3Spec(
        name="mobilenet_v3_large",
        function="MobileNetV3Large",
        rows=LARGE,
        hidden=1280,
        top1=75.2,
        weights=(
            _tf_weights("tf_mobilenetv3_large_100-427764d5", 75.516),
            _torchvision_weights("v1", "mobilenet_v3_large-8738ca79", 74.042),
            _torchvision_weights(
                "v2", "mobilenet_v3_large-5c1a4163", 75.274, TORCH_RULE_V2
            ),
            _timm_weights("ra_in1k", "mobilenetv3_large_100_ra-f55367f5", 75.766),
            _keras_weights("large_224_1.0", "59e551e166be033d707958cf9e29a6a7", 75.6),
        ),
    ),
    MobileNetV3Spec(
        name="mobilenet_v3_large_075",
        function="MobileNetV3LargeW075",
        rows=LARGE,
        width=0.75,
        hidden=1280,
        top1=73.3,
        weights=(
            _tf_weights("tf_mobilenetv3_large_075-150ee8b0", 73.432),
            _keras_weights("large_224_0.75", "765b44a33ad4005b3ac83185abf1d0eb", 73.3),
        ),
    ),
    MobileNetV3Spec(
        name="mobilenet_v3_large_minimalistic",
        function="MobileNetV3LargeMinimalistic",
        rows=minimalistic(LARGE),
        hidden=1280,
        act=RE,
        top1=72.3,
        weights=(
            _tf_weights("tf_mobilenetv3_large_minimal_100-8596ae28", 72.258),
            _keras_weights(
                "large_minimalistic_224_1.0", "675e7b876c45c57e9e63e6d90a36599c", 72.3
            ),
        ),
    ),
    MobileNetV3Spec(
        name="mobilenet_v3_small",
        function="MobileNetV3Small",
        rows=SMALL,
        hidden=1024,
        top1=67.4,
        weights=(
            _tf_weights("tf_mobilenetv3_small_100-37f49e2b", 67.918),
            _torchvision_weights("v1", "mobilenet_v3_small-047dcff4", 67.668),
            _timm_weights("lamb_in1k", "mobilenetv3_small_100_lamb-266a294c", 67.656),
            _keras_weights("small_224_1.0", "8768d4c2e7dee89b9d02b2d03d65d862", 68.1),
        ),
    ),
    MobileNetV3Spec(
        name="mobilenet_v3_small_075",
        function="MobileNetV3SmallW075",
        rows=SMALL,
        width=0.75,
        hidden=1024,
        top1=65.4,
        weights=(
            _tf_weights("tf_mobilenetv3_small_075-da427f52", 65.728),
            _timm_weights("lamb_in1k", "mobilenetv3_small_075_lambc-384766db", 65.234),
            _keras_weights("small_224_0.75", "cb65d4e5be93758266aa0a7f2c6708b7", 65.4),
        ),
    ),
    MobileNetV3Spec(
        name="mobilenet_v3_small_050",
        function="MobileNetV3SmallW050",
        rows=SMALL,
        width=0.5,
        hidden=1024,
        weights=(
            _timm_weights("lamb_in1k", "mobilenetv3_small_050_lambc-4b7bbe87", 57.91),
        ),
    ),
    MobileNetV3Spec(
        name="mobilenet_v3_small_minimalistic",
        function="MobileNetV3SmallMinimalistic",
        rows=minimalistic(SMALL),
        hidden=1024,
        act=RE,
        top1=61.9,
        weights=(
            _tf_weights("tf_mobilenetv3_small_minimal_100-922a7843", 62.89),
            _keras_weights(
                "small_minimalistic_224_1.0", "99cd97fb2fcdad2bf028eb838de69e37", 61.9
            ),
        ),
    ),
)


def build(spec: MobileNetV3Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features".

    c5 is the 1x1 convolution before pooling (section 6.3), which include_top=False
    returns too.
    """
    stride = layers.DilatedStride(output_stride, eager=spec.dilate_first)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, _stem(spec), 3, spec, "stem", stride=step)
    c1 = x = layers.activate(x, spec.act, "stem")
    blocks = _blocks(spec)
    sizes = [_sizes(spec, block) for block in blocks]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    x = layers.conv_bn(x, 6 * x.shape[-1], 1, spec, "top")
    x = layers.activate(x, spec.act, "top")
    return {"c1": c1, **maps, "c5": x, "features": x}


def neck(spec: MobileNetV3Spec, x: Any) -> Any:
    """Widen the pooled features: 1x1 convolution with bias, activation."""
    hidden = spec.hidden // 2 if spec.reduced_tail else spec.hidden
    hidden = make_divisible(hidden * max(1.0, spec.width), spec.divisor)
    x = layers.bias_conv(x, hidden, "top_hidden")
    return layers.activate(x, spec.act, "top_hidden")


def _stem(spec: MobileNetV3Spec) -> int:
    return make_divisible(spec.stem * max(1.0, spec.width), spec.divisor)


def _sizes(spec: MobileNetV3Spec, block: Block[Row]) -> "layers.Bottleneck":
    row, expand = block.row, _expand(spec, block)
    return layers.Bottleneck(
        kernel=row.kernel,
        expand=expand,
        out=block.out,
        stride=block.stride,
        act=row.act,
        squeeze=make_divisible(expand / 4, spec.divisor) if row.se else 0,
    )


def _blocks(spec: MobileNetV3Spec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows, channels=_stem(spec), outs=[_out(spec, row) for row in spec.rows]
    )


def _out(spec: MobileNetV3Spec, row: Row) -> int:
    out = make_divisible(row.out * spec.width, spec.divisor)
    return out // 2 if spec.reduced_tail and row.stage == 5 else out


def _expand(spec: MobileNetV3Spec, block: Block[Row]) -> int:
    """Return the expanded channels; the width keeps their ratio, as in TensorFlow."""
    before = spec.rows[block.index - 1].out if block.index else spec.stem
    row, share = block.row, 1.0
    if spec.reduced_expand and row.stage == 5 and row.out != before:
        share = 0.5  # the first; the others' expansion follows their halved input
    return make_divisible(block.channels * row.expand * share / before, spec.divisor)


def _expanded(spec: MobileNetV3Spec, block: Block[Row]) -> bool:
    return _expand(spec, block) != block.channels


def _timm(spec: MobileNetV3Spec) -> dict[str, str]:
    """Name the layers as timm does, whose groups end where the channels change."""
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    group, index, out = -1, 0, 0
    for block in _blocks(spec):
        index = index + 1 if block.row.out == out else 0
        group, out = group + (index == 0), block.row.out
        theirs = f"blocks.{group}.{index}."
        names |= timm_inverted(block.name, theirs, _expanded(spec, block), block.row.se)
    names |= pairs("top", f"blocks.{group + 1}.0.", {"conv": "conv", "bn": "bn1"})
    return names | {"top_hidden_conv": "conv_head", "top_classifier": "classifier"}


def _torchvision(spec: MobileNetV3Spec) -> dict[str, str]:
    names = pairs("stem", "features.0.", {"conv": "0", "bn": "1"})
    blocks = _blocks(spec)
    for i, block in enumerate(blocks, start=1):
        theirs, expanded = f"features.{i}.block.", _expanded(spec, block)
        names |= torchvision_inverted(block.name, theirs, expanded, block.row.se)
    names |= pairs("top", f"features.{len(blocks) + 1}.", {"conv": "0", "bn": "1"})
    return names | {
        "top_hidden_conv": "classifier.0",
        "top_classifier": "classifier.3",
    }


def _keras(spec: MobileNetV3Spec) -> dict[str, str]:
    names = {"stem_conv": "conv", "stem_bn": "conv_bn"}
    for i, block in enumerate(_blocks(spec)):
        parts = {"expand_conv": "expand", "expand_bn": "expand_bn"}
        parts = parts if _expanded(spec, block) else {}
        parts |= {"dw_conv": "depthwise", "dw_bn": "depthwise_bn"}
        parts |= {"project_conv": "project", "project_bn": "project_bn"}
        if block.row.se:
            parts["se_squeeze_conv"] = "squeeze_excite_conv"
            parts["se_excite_conv"] = "squeeze_excite_conv_1"
        theirs = f"expanded_conv_{i}_" if i else "expanded_conv_"
        names |= pairs(block.name, theirs, parts)
    names |= {"top_conv": "conv_1", "top_bn": "conv_1_bn"}
    return names | {"top_hidden_conv": "conv_2", "top_classifier": "logits"}


TOP = ("top_hidden_conv", "top_classifier")
LAYOUTS = {
    "timm": Layout(names=_timm, top=TOP, preprocessing=TF_RULE),
    "torchvision": Layout(
        names=_torchvision,
        top=TOP,
        changes=(("padding", "symmetric"),),
        preprocessing=TORCH_RULE,
    ),
    "keras": Layout(names=_keras, kind="keras", top=TOP, preprocessing=TF_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, neck=neck)

MobileNetV3Large = make_application(SPECS[0], FAMILY)
MobileNetV3LargeW075 = make_application(SPECS[1], FAMILY)
MobileNetV3LargeMinimalistic = make_application(SPECS[2], FAMILY)
MobileNetV3Small = make_application(SPECS[3], FAMILY)
MobileNetV3SmallW075 = make_application(SPECS[4], FAMILY)
MobileNetV3SmallW050 = make_application(SPECS[5], FAMILY)
MobileNetV3SmallMinimalistic = make_application(SPECS[6], FAMILY)
preprocess_input = make_preprocess(SPECS)
