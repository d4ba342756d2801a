"""ChannelNets: convolutions along the channels between grouped ones."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._errors import unknown
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing

__all__ = [
    "ChannelNetV1",
    "ChannelNetV2",
    "ChannelNetV3",
    "decode_predictions",
    "preprocess_input",
]

KINDS = ("separable", "group", "channelwise_group", "channelwise")
JOINS = ("", "add", "concat")


@dataclass(frozen=True)
class Row:
    """One block.

    Attributes:
        stage: Number of the stage.
        kind: "separable": per channel, then 1x1. "group": separable ones in groups
            (GM). "channelwise_group": the same behind a convolution along the
            channels (GCWM). "channelwise": per channel, then along the channels.
        out: Output channels.
        stride: Stride of the first convolution.
        join: How the block's input joins its output: "", "add" or "concat".
    """

    stage: int
    kind: str
    out: int
    stride: int
    join: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of block", self.kind, KINDS)
        if self.join not in JOINS:
            raise unknown("join of a block", self.join, JOINS)


# fmt: off
BODY = (
    #   stage kind                out stride join
    Row(1, "separable",           64, 1, "concat"),
    Row(2, "separable",          128, 2),
    Row(2, "separable",          128, 1, "concat"),
    Row(3, "separable",          256, 2),
    Row(3, "separable",          256, 1, "concat"),
    Row(4, "separable",          512, 2),
    Row(4, "group",              512, 1, "add"),
    Row(4, "channelwise_group",  512, 1),
    Row(4, "channelwise_group",  512, 1, "add"),
    Row(5, "separable",         1024, 2),
)
V1 = (*BODY, Row(5, "separable", 1024, 1))
V2 = (*BODY, Row(5, "channelwise", 1024, 1))
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ChannelNetSpec(ModelSpec):
    """A ChannelNet, as the authors' code has it.

    That code joins input and output of three early blocks by concatenation, and so
    has more parameters and multiply-adds than the paper gives (v1 3.88 M and 535 M
    for 3.7 M and 407 M; 3.70 M and 468 M without these joins).
    The last block of v2 and v3 is the paper's: one kernel of 64 for all places, where
    that code has a convolution of 64 x 49 x 49 weights.

    Attributes:
        stem: Channels of the stem.
        groups: Groups of the modules of stage 4.
        repeat: Separable convolutions of such a module.
        channel_kernel: Channels that the convolution of the "channelwise" block
            sees.
        channelwise_top: Whether a 3-D convolution classifies (v3), in place of mean
            and dense layer.
    """

    dynamic_size: bool = False
    flags_reason: str = "convolutions along the channels need a known size"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    # Nothing follows these but a convolution or the classifier.
    bias_exceptions: tuple[str, ...] = ("*_dw_conv", "*_channelwise_conv")
    dropout: float = 0.0
    reference: str = "Gao et al. 2018, ChannelNets, https://arxiv.org/abs/1809.01330"
    stem: int = 32
    groups: int = 2
    repeat: int = 2
    channel_kernel: int = 64
    channelwise_top: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's for every variant."""
        return IMAGENET


SPECS = (
    ChannelNetSpec(name="channelnet_v1", function="ChannelNetV1", rows=V1, top1=70.5),
    ChannelNetSpec(name="channelnet_v2", function="ChannelNetV2", rows=V2, top1=69.5),
    ChannelNetSpec(
        name="channelnet_v3",
        function="ChannelNetV3",
        rows=V2,
        channelwise_top=True,
        top1=66.7,
    ),
)


def build(spec: ChannelNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5; "features" is c5."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    maps = {}
    for name, row in _named(spec):
        before = x
        step, dilation = stride.step(row.stride)
        x = _block(x, row, spec, name, (step, dilation))
        if row.join == "add":
            x = layers.residual(x, before, name)
        elif row.join == "concat":
            x = layers.concat([before, x], name)
        maps[f"c{row.stage}"] = x
    return {**maps, "features": x}


def _block(
    x: Any, row: Row, spec: ChannelNetSpec, name: str, step: tuple[int, int]
) -> Any:
    stride, dilation = step
    if row.kind == "separable":
        return _separable(x, row.out, spec, name, (stride, dilation))
    if row.kind == "channelwise":
        x = layers.padded_depthwise(x, 3, spec, f"{name}_dw", stride, dilation)
        return layers.channelwise_conv(x, spec.channel_kernel, 1, name)
    if row.kind == "channelwise_group":
        # As many kernels as groups, and steps: the channels stay the same.
        x = layers.channelwise_conv(x, 4 * spec.groups, spec.groups, name)
    for i in range(1, spec.repeat + 1):
        x = _separable(x, row.out, spec, f"{name}_{i}", step, spec.groups)
    return x


def _separable(
    x: Any,
    out: int,
    spec: ChannelNetSpec,
    name: str,
    step: tuple[int, int],
    groups: int = 1,
) -> Any:
    """Convolve per channel, then 1x1; one normalisation and ReLU6 behind both."""
    x = layers.padded_depthwise(x, 3, spec, f"{name}_dw", *step)
    x = layers.conv_bn(x, out, 1, spec, f"{name}_pw", groups=groups)
    return layers.activate(x, "relu6", f"{name}_pw")


def classifier(spec: ChannelNetSpec, x: Any, classes: int) -> Any:
    """Return the logits of the last feature map."""
    if not spec.channelwise_top:
        x = layers.global_pool(x)
        return layers.dense_classifier(x, classes, spec.dropout, spec.classifier_bias)
    x = layers.padded_depthwise(x, 3, spec, "top_dw")
    return layers.channelwise_classifier(x, classes)


def _named(spec: ChannelNetSpec) -> list[tuple[str, Row]]:
    names = []
    for i, row in enumerate(spec.rows):
        number = 1 + sum(r.stage == row.stage for r in spec.rows[:i])
        names.append((f"stage{row.stage}_block{number}", row))
    return names


def _pytorchcv(spec: ChannelNetSpec) -> dict[str, str]:
    """Name the layers as pytorchcv; what only v2 and v3 have is named alike."""
    names = pairs(
        "stem", "features.stage1.unit1.blocks.block1.", {"conv": "conv", "bn": "bn"}
    )
    one = {"dw_conv": "dw_conv", "pw_conv": "pw_conv.conv", "pw_bn": "pw_conv.bn"}
    for name, row in _named(spec):
        # Two blocks are a unit there, and the stem is the first of stage 1.
        number = int(name.rpartition("block")[2]) - (row.stage > 1)
        unit, block = number // 2 + 1, number % 2 + 1
        theirs = f"features.stage{row.stage}.unit{unit}.blocks.block{block}."
        if row.kind == "separable":
            names |= pairs(name, theirs, one)
            continue
        if row.kind == "channelwise":
            parts = {"dw_conv": "dw_conv", "channelwise_conv": "conv.conv"}
            names |= pairs(name, theirs, parts)
            continue
        if row.kind == "channelwise_group":
            names |= pairs(name, theirs, {"channelwise_conv": "conv.conv"})
            theirs += "block."
        for i in range(1, spec.repeat + 1):
            names |= pairs(f"{name}_{i}", f"{theirs}blocks.block{i}.", one)
    if spec.channelwise_top:
        parts = {"dw_conv": "dw_conv", "channelwise_conv": "conv"}
        return names | pairs("top", "output.", parts)
    return names | {"top_classifier": "output"}


PYTORCHCV = (("padding", "symmetric"),)
LAYOUTS = {
    "pytorchcv": Layout(
        names=_pytorchcv,
        changes=PYTORCHCV,
        preprocessing=IMAGENET,
        top=("top_dw_conv", "top_channelwise_conv", "top_classifier"),
    )
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, classifier=classifier)

ChannelNetV1 = make_application(SPECS[0], FAMILY)
ChannelNetV2 = make_application(SPECS[1], FAMILY)
ChannelNetV3 = make_application(SPECS[2], FAMILY)
preprocess_input = make_preprocess(SPECS)
