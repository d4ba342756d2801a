"""MicroNet: factorised convolutions and Dynamic Shift-Max for a few million MAdds."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing, Weights

__all__ = [
    "MicroNetM0",
    "MicroNetM1",
    "MicroNetM2",
    "MicroNetM3",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One block of the authors' tables.

    Attributes:
        stage: Stage, named after its map.
        stride: Stride of the separable convolution.
        out: Output channels.
        kernel: Length of both parts of the separable convolution.
        expand: Channel factors of its two parts; in blocks that expand by a
            convolution, their product is that convolution's factor.
        groups: (of the expanding 1x1 convolution, of the channels behind it). The
            first is 0 where the separable convolution expands (Micro-Block-A).
        out_groups: (of the last 1x1 convolution, of the channels behind it); zeros
            where the block ends after its expansion.
        halving: Factor of the squeeze inside Dynamic Shift-Max.
    """

    stage: int
    stride: int
    out: int
    kernel: int
    expand: tuple[int, int]
    groups: tuple[int, int]
    out_groups: tuple[int, int]
    halving: int = 1


# fmt: off
M0 = (
    #   stage stride out kernel expand groups    out_groups halving
    Row(2, 2,   8, 3, (2, 2), (0,   4), (2,  2)),
    Row(3, 2,  12, 3, (2, 2), (0,   8), (4,  4)),
    Row(4, 2,  16, 5, (2, 2), (0,  12), (4,  4)),
    Row(4, 1,  32, 5, (1, 4), (4,   4), (4,  4)),
    Row(5, 2,  64, 5, (1, 4), (8,   8), (8,  8)),
    Row(5, 1,  96, 3, (1, 4), (8,   8), (8,  8), 2),
    Row(5, 1, 384, 3, (1, 4), (12, 12), (0,  0), 2),
)
M1 = (
    Row(2, 2,   8, 3, (2, 2), (0,   6), (2,  2)),
    Row(3, 2,  16, 3, (2, 2), (0,   8), (4,  4)),
    Row(4, 2,  16, 5, (2, 2), (0,  16), (4,  4)),
    Row(4, 1,  32, 5, (1, 6), (4,   4), (4,  4)),
    Row(5, 2,  64, 5, (1, 6), (8,   8), (8,  8)),
    Row(5, 1,  96, 3, (1, 6), (8,   8), (8,  8), 2),
    Row(5, 1, 576, 3, (1, 6), (12, 12), (0,  0), 2),
)
M2 = (
    Row(2, 2,  12, 3, (2, 2), (0,   8), (4,  4)),
    Row(3, 2,  16, 3, (2, 2), (0,  12), (4,  4)),
    Row(3, 1,  24, 3, (2, 2), (0,  16), (4,  4)),
    Row(4, 2,  32, 5, (1, 6), (6,   6), (4,  4)),
    Row(4, 1,  32, 5, (1, 6), (8,   8), (4,  4), 2),
    Row(4, 1,  64, 5, (1, 6), (8,   8), (8,  8), 2),
    Row(5, 2,  96, 5, (1, 6), (8,   8), (8,  8), 2),
    Row(5, 1, 128, 3, (1, 6), (12, 12), (8,  8), 2),
    Row(5, 1, 768, 3, (1, 6), (16, 16), (0,  0), 2),
)
M3 = (
    Row(2, 2,  16, 3, (2, 2), (0,  12), (4,  4)),
    Row(3, 2,  24, 3, (2, 2), (0,  16), (4,  4)),
    Row(3, 1,  24, 3, (2, 2), (0,  24), (4,  4)),
    Row(4, 2,  32, 5, (1, 6), (6,   6), (4,  4)),
    Row(4, 1,  32, 5, (1, 6), (8,   8), (4,  4), 2),
    Row(4, 1,  64, 5, (1, 6), (8,   8), (8,  8), 2),
    Row(4, 1,  80, 5, (1, 6), (8,   8), (8,  8), 2),
    Row(4, 1,  80, 5, (1, 6), (10, 10), (8,  8), 2),
    Row(5, 2, 120, 5, (1, 6), (10, 10), (10, 10), 2),
    Row(5, 1, 120, 5, (1, 6), (12, 12), (10, 10), 2),
    Row(5, 1, 144, 3, (1, 6), (12, 12), (12, 12), 2),
    Row(5, 1, 864, 3, (1, 6), (12, 12), (0,  0), 2),
)
# fmt: on
REDUCTION = 8


@dataclass(frozen=True, kw_only=True)
class MicroNetSpec(ModelSpec):
    """A MicroNet.

    Attributes:
        stem: (filters of the stem's vertical part, factor of its horizontal part).
        hidden: Units before the classifier.
        first_mixes: Whether Dynamic Shift-Max follows the first block's separable
            convolution; ReLU6 else.
        mixes: Whether it follows every 1x1 convolution (M0 to M2), or only the
            separable ones (M3).
        start: Centres of its factors a1, b1, a2, b2.
    """

    rows: tuple[Row, ...] = M0
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.05
    dynamic_size: bool = False
    flags_reason: str = "the channel shuffle needs a known size"
    bias_exceptions: tuple[str, ...] = ("top_conv",)
    reference: str = "Li et al. 2021, MicroNet, https://arxiv.org/abs/2108.05894"
    stem: tuple[int, int] = (2, 2)
    hidden: int = 640
    first_mixes: bool = False
    mixes: bool = True
    start: tuple[float, float, float, float] = (1.0, 0.0, 1.0, 0.0)

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's."""
        return RULE


RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")


def _weights(name: str, top1: float) -> Weights:
    return Weights(
        tag="authors_in1k",
        # The authors link it by http, which nothing would protect: no hash is given.
        url=f"https://www.svcl.ucsd.edu/projects/micronet/assets/micronet-{name}.pth",
        format="pth",
        layout="authors",
        licence="MIT",
        preprocessing=RULE,
        top1=top1,
        source="liyunsheng13/micronet, the authors",
    )


SPECS = (
    MicroNetSpec(
        name="micronet_m0",
        function="MicroNetM0",
        top1=46.6,
        weights=(_weights("m0", 46.6),),
    ),
    MicroNetSpec(
        name="micronet_m1",
        function="MicroNetM1",
        rows=M1,
        stem=(3, 2),
        hidden=960,
        top1=51.4,
        weights=(_weights("m1", 51.4),),
    ),
    MicroNetSpec(
        name="micronet_m2",
        function="MicroNetM2",
        rows=M2,
        stem=(4, 2),
        hidden=1024,
        dropout=0.1,
        top1=59.4,
        weights=(_weights("m2", 59.4),),
    ),
    MicroNetSpec(
        name="micronet_m3",
        function="MicroNetM3",
        rows=M3,
        stem=(4, 3),
        hidden=1024,
        dropout=0.1,
        first_mixes=True,
        mixes=False,
        start=(1.0, 0.0, 0.5, 0.5),
        top1=62.5,
        weights=(_weights("m3", 62.5),),
    ),
)


def build(spec: MicroNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c5 and "features" (ReLU6 of c5)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    first, factor = spec.stem
    x = layers.conv_bn(x, first, (3, 1), spec, "stem_rows", (step, 1))
    x = layers.conv_bn(x, first * factor, (1, 3), spec, "stem_cols", (1, step), first)
    x = layers.channel_shuffle(x, first, "stem")
    maps = {"c1": layers.activate(x, "relu6", "stem")}
    x = maps["c1"]
    for block in _blocks(spec):
        x = _BLOCKS[_kind(block.row)](x, block, spec, stride)
        maps[f"c{block.row.stage}"] = x
    return {**maps, "features": layers.activate(x, "relu6", "top")}


def _blocks(spec: MicroNetSpec) -> list[Block[Row]]:
    outs = [row.out for row in spec.rows]
    return expand_rows(spec.rows, spec.stem[0] * spec.stem[1], outs)


def _kind(row: Row) -> str:
    if row.groups[0] == 0:
        return "separable_expands"
    return "inverted" if row.out_groups[0] else "expands"


def _separable_expands(x: Any, block: Block[Row], spec: MicroNetSpec, s: Any) -> Any:
    """Expand by the separable convolution, compress by a 1x1 (Micro-Block-A)."""
    row, name, shortcut = block.row, block.name, x
    mixes = spec.first_mixes or block.index > 0
    x = _separable(x, row, spec, s, name)
    x = _mix(x, row.groups[1], spec.start if mixes else (), row, f"{name}_dw")
    x = layers.channel_shuffle(x, row.groups[1], f"{name}_dw")
    if mixes:
        x = layers.channel_shuffle(x, x.shape[-1] // 2, f"{name}_pairs")
    return _project(x, shortcut, block, spec)


def _inverted(x: Any, block: Block[Row], spec: MicroNetSpec, s: Any) -> Any:
    """Expand by a 1x1, convolve separably, compress (Micro-Block-B and -C)."""
    row, name, shortcut = block.row, block.name, x
    x = _expand(x, row, spec, name)
    x = _mix(x, row.groups[1], spec.start if spec.mixes else (), row, f"{name}_expand")
    x = layers.channel_shuffle(x, row.groups[1], f"{name}_expand")
    width = x.shape[-1]
    x = _separable(x, dataclasses.replace(row, expand=(1, 1)), spec, s, name)
    x = _mix(x, width // row.groups[1], spec.start, row, f"{name}_dw")
    x = layers.channel_shuffle(x, width // (4 if spec.mixes else 2), f"{name}_pairs")
    return _project(x, shortcut, block, spec)


def _expands(x: Any, block: Block[Row], spec: MicroNetSpec, s: Any) -> Any:
    """Expand by a 1x1 convolution and end there (the last row)."""
    name = block.name
    start = (1.0, 0.0) if spec.mixes else ()
    x = _expand(x, block.row, spec, name)
    if not start:
        return x
    return _mix(x, block.row.groups[1], start, block.row, f"{name}_expand")


_BLOCKS = {
    "separable_expands": _separable_expands,
    "inverted": _inverted,
    "expands": _expands,
}


def _expand(x: Any, row: Row, spec: MicroNetSpec, name: str) -> Any:
    width = x.shape[-1] * row.expand[0] * row.expand[1]
    return layers.conv_bn(x, width, 1, spec, f"{name}_expand", groups=row.groups[0])


def _separable(x: Any, row: Row, spec: MicroNetSpec, stride: Any, name: str) -> Any:
    """Convolve each channel by a column, then by a row."""
    step, dilation = stride.step(row.stride)
    parts = (
        ("rows", (row.kernel, 1), (step, 1), row.expand[0]),
        ("cols", (1, row.kernel), (1, step), row.expand[1]),
    )
    for part, kernel, steps, factor in parts:
        name_ = f"{name}_dw_{part}"
        channels = x.shape[-1]
        if row.stride == 1 and factor == 1:
            x = layers.depthwise_bn(x, kernel, spec, name_, 1, dilation)
        else:
            # Keras' depthwise layer strides alike in both directions.
            x = layers.conv_bn(
                x, channels * factor, kernel, spec, name_, steps, channels, dilation
            )
    return x


def _project(x: Any, shortcut: Any, block: Block[Row], spec: MicroNetSpec) -> Any:
    row, name, wide = block.row, f"{block.name}_project", x.shape[-1]
    x = layers.conv_bn(x, row.out, 1, spec, name, groups=row.out_groups[0])
    if spec.mixes:
        # The squeeze is wider behind a compression.
        fewer = 2 if row.out < wide or row.groups[0] == 0 else 1
        x = _mix(x, row.out_groups[1], (1.0, 0.0), row, name, fewer)
    x = layers.channel_shuffle(x, row.out_groups[1], name)
    if spec.mixes:
        x = layers.channel_shuffle(x, row.out // 2, f"{name}_pairs")
    if block.stride == 1 and block.channels == row.out:
        x = layers.residual(x, shortcut, block.name)
    return x


def _mix(
    x: Any, groups: int, start: tuple[float, ...], row: Row, name: str, fewer: int = 1
) -> Any:
    """Apply Dynamic Shift-Max, or ReLU6 where there is no `start`."""
    if not start:
        return layers.activate(x, "relu6", name)
    part = x.shape[-1] // (REDUCTION * row.halving // fewer)
    reduced = make_divisible(part, 4)
    return layers.dynamic_shift_max(x, groups, reduced, start, name)


def classify(spec: MicroNetSpec, x: Any, classes: int) -> Any:
    """Make the logits: two dense layers, each with normalisation and hard swish."""
    x = layers.activate(layers.global_pool(x), "hard_swish", "top_pool")
    x = layers.normalise(layers.bias_conv(x, spec.hidden, "top"), spec, "top")
    x = layers.activate(x, "hard_swish", "top_hidden")
    x = layers.dense_classifier(x, classes, spec.dropout)
    x = layers.normalise(x, spec, "top_classifier")
    return layers.activate(x, "hard_swish", "top_classifier")


_SEPARABLE = {"rows_conv": "0", "rows_bn": "1", "cols_conv": "2", "cols_bn": "3"}
_GROUPED = {"conv": "conv.0", "bn": "conv.1"}
_MIX = {"squeeze_conv": "fc.0", "excite_conv": "fc.2"}


def _authors(spec: MicroNetSpec) -> dict[str, str]:
    """Name the layers as the authors' files do."""
    names = pairs("stem", "features.0.stem.0.conv.", _SEPARABLE)
    for block in _blocks(spec):
        names |= _authors_block(spec, block)
    hidden = {"conv": "0", "bn": "1"}
    last = {"classifier": "0", "classifier_bn": "1"}
    names |= pairs("top", "classifier.0.linear.", hidden)
    return names | pairs("top", "classifier.2.linear.", last)


def _authors_block(spec: MicroNetSpec, block: Block[Row]) -> dict[str, str]:
    """Name a block; its places count activations and shuffles, absent ones too."""
    name, there = block.name, f"features.{block.index + 1}.layers."
    kind = _kind(block.row)
    names: dict[str, str] = {}
    separable, middle, last = (0, 1, 4) if kind == "separable_expands" else (3, 5, 7)
    if kind != "separable_expands":
        names |= pairs(f"{name}_expand", f"{there}0.", _GROUPED)
        if spec.mixes:
            names |= pairs(f"{name}_expand", f"{there}1.", _MIX)
    if kind == "expands":
        return names
    names |= pairs(f"{name}_dw", f"{there}{separable}.conv.", _SEPARABLE)
    if spec.first_mixes or block.index:
        names |= pairs(f"{name}_dw", f"{there}{middle}.", _MIX)
    names |= pairs(f"{name}_project", f"{there}{last}.", _GROUPED)
    if spec.mixes:
        names |= pairs(f"{name}_project", f"{there}{last + 1}.", _MIX)
    return names


LAYOUTS = {
    "authors": Layout(
        names=_authors,
        top=("top_conv", "top_bn", "top_classifier", "top_classifier_bn"),
        preprocessing=RULE,
    )
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, classifier=classify)

MicroNetM0 = make_application(SPECS[0], FAMILY)
MicroNetM1 = make_application(SPECS[1], FAMILY)
MicroNetM2 = make_application(SPECS[2], FAMILY)
MicroNetM3 = make_application(SPECS[3], FAMILY)
preprocess_input = make_preprocess(SPECS)
