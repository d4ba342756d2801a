"""IGCV1: interleaved group convolutions in a residual network of 18 layers."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import ModelSpec, Preprocessing, Weights

__all__ = [
    "IGCV1L4M32",
    "IGCV1L16M16",
    "IGCV1L100M2",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One stage: channels and partitions (L) of the primary convolution.

    The secondary convolution has M = out / primary partitions.
    """

    stage: int
    out: int
    primary: int
    repeat: int
    stride: int


# fmt: off
L4M32 = (
    #   stage out primary repeat stride
    Row(2,   128,   4, 2, 1),
    Row(3,   256,   4, 2, 2),
    Row(4,   512,   4, 2, 2),
    Row(5,  1024,   4, 2, 2),
)
L16M16 = (
    Row(2,   256,  16, 2, 1),
    Row(3,   512,  16, 2, 2),
    Row(4,  1024,  16, 2, 2),
    Row(5,  2048,  16, 2, 2),
)
L100M2 = (
    Row(2,   200, 100, 2, 1),
    Row(3,   400, 200, 2, 2),
    Row(4,   800, 400, 2, 2),
    Row(5,  1600, 800, 2, 2),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class IGCV1Spec(ModelSpec):
    """An IGC network of the ImageNet experiments, with identity shortcuts.

    Attributes:
        stem: Channels of the stem.
    """

    dynamic_size: bool = False
    flags_reason: str = "the channel shuffle needs a known size"
    padding: str = "symmetric"
    bn_epsilon: float = 2e-5
    bn_momentum: float = 0.9
    # Only the pair of convolutions is normalised.
    bias_exceptions: tuple[str, ...] = ("*_primary_conv",)
    dropout: float = 0.0
    reference: str = (
        "Zhang et al. 2017, Interleaved group convolutions, "
        "https://arxiv.org/abs/1707.02725"
    )
    stem: int

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation of the authors' training script."""
        return RULE


RULE = Preprocessing(
    mean=(123.37, 112.757, 99.406),
    std=(68.998, 66.093, 68.292),
    interpolation="bilinear",
)

# One commit, and the names of its objects, since the authors give no hash.
HOST = (
    "https://raw.githubusercontent.com/hellozting/InterleavedGroupConvolutions/"
    "2871fdbd2343982ea1ee2460fc26bccba7d40ec9/models"
)
OBJECTS = {
    "L100M2": "1dee63a039d71a5bbe0ada0343372534538e7bd8",
    "L16M16": "a96f44a0f7ae49241351efc451195e4fdf4d0bfc",
    "L4M32": "e13f33740800f06378006b90da35d8edc971eabf",
}


def _spec(
    partitions: str, stem: int, rows: tuple[Row, ...], number: int, top1: float
) -> IGCV1Spec:
    file = f"resnet_gcwf_noshare_imagenet_d18b{number}-0095.params"
    weights = Weights(
        tag="authors_in1k",
        url=f"{HOST}/IGC-{partitions}_ImageNet/{file}",
        hash=f"git:{OBJECTS[partitions]}",
        format="params",
        layout="mxnet",
        licence="none stated",
        preprocessing=RULE,
        top1=top1,
        source="hellozting/InterleavedGroupConvolutions, the authors",
    )
    return IGCV1Spec(
        name=f"igcv1_{partitions.lower()}",
        function=f"IGCV1{partitions}",
        rows=rows,
        stem=stem,
        top1=top1,
        weights=(weights,),
    )


SPECS = (
    _spec("L100M2", 100, L100M2, 100, 73.05),
    _spec("L16M16", 256, L16M16, 16, 70.6),
    _spec("L4M32", 128, L4M32, 4, 69.23),
)


def build(spec: IGCV1Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c5; "features" is c5."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 7, spec, "stem", stride=step)
    maps = {"c1": layers.activate(x, "relu", "stem")}
    step, _ = stride.step(2)
    x = layers.max_pool(maps["c1"], 3, step, (1, 1), "stem")
    for block in _blocks(spec):
        x = maps[f"c{block.row.stage}"] = _residual(x, block, spec, stride)
    return {**maps, "features": x}


def _residual(
    x: Any, block: Block[Row], spec: IGCV1Spec, stride: layers.DilatedStride
) -> Any:
    """Two interleaved group convolutions and the shortcut."""
    name, row = block.name, block.row
    step, dilation = stride.step(block.stride)
    shortcut = x
    if block.channels != block.out:
        part, groups = f"{name}_shortcut", row.primary
        shortcut = layers.conv_bn(x, row.out, 1, spec, part, stride=step, groups=groups)
    x = _interleaved(x, row, spec, f"{name}_first", (step, dilation))
    x = layers.activate(x, "relu", f"{name}_first")
    x = _interleaved(x, row, spec, f"{name}_second", stride.step(1))
    return layers.activate(layers.residual(x, shortcut, name), "relu", name)


def _interleaved(
    x: Any, row: Row, spec: IGCV1Spec, name: str, step: tuple[int, int]
) -> Any:
    """Convolve in L groups, shuffle, mix 1x1 in out / L groups, shuffle back.

    Channel i of primary group g becomes channel g of secondary group i, so that one
    path joins every input and output channel (section 3.1).
    """
    stride, dilation = step
    x = layers.padded_conv(
        x, row.out, 3, spec, f"{name}_primary", stride, row.primary, dilation
    )
    x = layers.channel_shuffle(x, row.primary, f"{name}_there")
    groups = row.out // row.primary
    x = layers.padded_conv(x, row.out, 1, spec, f"{name}_secondary", groups=groups)
    x = layers.channel_shuffle(x, groups, f"{name}_back")
    return layers.normalise(x, spec, f"{name}_secondary")


def _blocks(spec: IGCV1Spec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=spec.stem,
        outs=[row.out for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


def _mxnet(spec: IGCV1Spec) -> dict[str, str]:
    names = pairs("stem", "g0_", {"conv": "conv", "bn": "bn"})
    for block in _blocks(spec):
        parts = {}
        if block.channels != block.out:
            parts = {"shortcut_conv": "proj_conv", "shortcut_bn": "proj_bn"}
        for i, ours in enumerate(("first", "second"), start=1):
            parts[f"{ours}_primary_conv"] = f"conv{i}_conv1"
            parts[f"{ours}_secondary_conv"] = f"conv{i}_conv2"
            parts[f"{ours}_secondary_bn"] = f"conv{i}_bn"
        theirs = f"g{block.row.stage - 1}_b{block.number}_"
        names |= pairs(block.name, theirs, parts)
    return names | {"top_classifier": "fc_score"}


LAYOUTS = {"mxnet": Layout(names=_mxnet, preprocessing=RULE)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

IGCV1L100M2 = make_application(SPECS[0], FAMILY)
IGCV1L16M16 = make_application(SPECS[1], FAMILY)
IGCV1L4M32 = make_application(SPECS[2], FAMILY)
preprocess_input = make_preprocess(SPECS)
