"""CondenseNet: a DenseNet whose 1x1 convolutions learn which inputs to read."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, Level, ModelSpec, Preprocessing

__all__ = [
    "CondenseNet74C4G4",
    "CondenseNet74C8G8",
    "CondenseNetCifar50",
    "CondenseNetCifar74",
    "CondenseNetCifar86",
    "CondenseNetCifar98",
    "CondenseNetCifar110",
    "CondenseNetCifar122",
    "CondenseNetCifar182",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One dense block of the paper's table 2, numbered after its map."""

    stage: int
    repeat: int
    growth: int


# fmt: off
ROWS = (
    #   stage repeat growth
    Row(1,  4,   8),
    Row(2,  6,  16),
    Row(3,  8,  32),
    Row(4, 10,  64),
    Row(5,  8, 128),
)
# fmt: on


def _cifar_rows(repeat: int, growth: int = 8) -> tuple[Row, ...]:
    return tuple(Row(i, repeat, growth * 2**i) for i in range(3))


@dataclass(frozen=True, kw_only=True)
class CondenseNetSpec(ModelSpec):
    """A CondenseNet.

    Attributes:
        groups: Groups of all convolutions behind the stem (G).
        condense: Condensation factor (C): a group of a 1x1 convolution reads one in
            C of the inputs.
        bottleneck: Width of the 1x1 convolutions, in multiples of the growth.
        stem_stride: Stride of the stem; 1 for CIFAR.
        kept: Share of the features that the classifier reads.
        learned: Whether this is the form for training, with learned group
            convolutions and a full classifier; `tools.condense` turns it into the
            deployed form after training with `layers.Condensation`.
        lasso: Factor of the group lasso, in the form for training.
    """

    rows: tuple[Row, ...] = ROWS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    dynamic_size: bool = False
    exact_strides: bool = False
    flags_reason: str = (
        "the channel shuffle needs a known size; pools drop an odd row or column"
    )
    bias_exceptions: tuple[str, ...] = ("stem_conv",)
    reference: str = "Huang et al. 2018, CondenseNet, https://arxiv.org/abs/1711.09224"
    groups: int = 4
    condense: int = 4
    bottleneck: int = 4
    stem_stride: int = 2
    kept: float = 0.5
    learned: bool = False
    lasso: float = 0.0

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation: ImageNet's, or CIFAR-10's for the nets of 32 pixels."""
        return CIFAR_RULE if self.default_size == 32 else RULE


CIFAR_LEVELS = tuple(Level(name=f"c{i}", stride=2**i) for i in range(3))


@dataclass(frozen=True, kw_only=True)
class CondenseNetCifarSpec(CondenseNetSpec):
    """A CondenseNet for CIFAR, which ends at stride 4."""

    default_size: int = 32
    stem_stride: int = 1
    levels: tuple[Level, ...] = tuple(
        Level(name=f"c{i}", stride=2**i) for i in range(3)
    )
    output_strides: tuple[int, ...] = (32,)


RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
CIFAR_RULE = Preprocessing(
    mean=(125.307, 122.961, 113.8575),
    std=(63.0105, 62.0925, 66.708),
    size=32,
    crop=1.0,
    interpolation="bilinear",
)
CONVERTED = "converted from the authors' checkpoint"

SPECS: tuple[CondenseNetSpec, ...] = (
    CondenseNetSpec(
        name="condensenet_74_c4_g4",
        function="CondenseNet74C4G4",
        top1=73.8,
        weights=(
            _publishers.pytorchcv(
                "v0.0.4",
                "condensenet74_c4_g4-0828",
                "5ba550494cae7081d12c14b02b2a02365539d377",
                RULE,
                source=CONVERTED,
            ),
        ),
    ),
    CondenseNetSpec(
        name="condensenet_74_c8_g8",
        function="CondenseNet74C8G8",
        groups=8,
        condense=8,
        top1=71.0,
        weights=(
            _publishers.pytorchcv(
                "v0.0.4",
                "condensenet74_c8_g8-1006",
                "3574d874fefc3307f241690bad51f20e61be1542",
                RULE,
                source=CONVERTED,
            ),
        ),
    ),
    *(
        CondenseNetCifarSpec(
            name=f"condensenet_cifar_{depth}",
            function=f"CondenseNetCifar{depth}",
            rows=_cifar_rows((depth - 2) // 6, growth),
        )
        for depth, growth in (
            *((50, 8), (74, 8), (86, 8), (98, 8), (110, 8), (122, 8)),
            (182, 12),
        )
    ),
)


def build(spec: CondenseNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: a map per dense block, and "features" (normalised)."""
    stride = layers.DilatedStride(output_stride)
    step, dilation = stride.step(spec.stem_stride)
    x = layers.padded_conv(x, 2 * spec.rows[0].growth, 3, spec, "stem", step)
    maps = {}
    for index, row in enumerate(spec.rows):
        if index:
            step, dilation = stride.step(2)
            # Behind a dilated pool the window's second cell lies further away.
            pad = (0, 0) if step == 2 else (0, 1)
            name = f"stage{row.stage}_block0"
            x = layers.avg_pool(x, 2, step, pad, name, dilation)
        _, dilation = stride.step(1)
        for number in range(1, row.repeat + 1):
            x = _unit(x, row, spec, f"stage{row.stage}_block{number}", dilation)
        maps[f"c{row.stage}"] = x
    x = layers.activate(layers.normalise(x, spec, "top"), "relu", "top")
    return {**maps, "features": x}


def _unit(x: Any, row: Row, spec: CondenseNetSpec, name: str, dilation: int) -> Any:
    """Add `growth` channels: condensed 1x1, then grouped 3x3, each behind ReLU."""
    shortcut, part = x, f"{name}_reduce"
    width = spec.bottleneck * row.growth
    if spec.learned:
        x = layers.activate(layers.normalise(x, spec, part), "relu", part)
        x = layers.learned_group_conv(
            x, width, spec.groups, spec.condense, part, spec.lasso
        )
    else:
        count = x.shape[-1] * spec.groups // spec.condense
        x = layers.SelectChannels(count=count, name=f"{part}_select")(x)
        x = layers.activate(layers.normalise(x, spec, part), "relu", part)
        x = layers.padded_conv(x, width, 1, spec, part, 1, spec.groups)
        x = layers.channel_shuffle(x, spec.groups, part)
    part = f"{name}_conv"
    x = layers.activate(layers.normalise(x, spec, part), "relu", part)
    x = layers.padded_conv(x, row.growth, 3, spec, part, 1, spec.groups, dilation)
    return layers.concat([shortcut, x], name)


def classify(spec: CondenseNetSpec, x: Any, classes: int) -> Any:
    """Make the logits of a part of the features."""
    x = layers.global_pool(x)
    if not spec.learned and spec.kept < 1:
        count = int(x.shape[-1] * spec.kept)
        x = layers.SelectChannels(count=count, name="top_select")(x)
    return layers.dense_classifier(x, classes, spec.dropout)


_TOP = ("top_select", "top_classifier")


def _names(
    spec: CondenseNetSpec, stem: str, unit: str, norm: str, top: dict[str, str]
) -> dict[str, str]:
    """Name the layers; `unit` has places for the dense block and the unit."""
    names = {"stem_conv": stem}
    for index, row in enumerate(spec.rows, start=1):
        for number in range(1, row.repeat + 1):
            ours = f"stage{row.stage}_block{number}"
            theirs = unit.format(index, number)
            select = {} if spec.learned else {"select": "1"}
            for part, place in (("reduce", "1"), ("conv", "2")):
                inner = {"bn": f"{place}.{norm}", "conv": f"{place}.conv"}
                names |= pairs(f"{ours}_{part}", theirs, select | inner)
                select = {}
    names |= {f"top_{key}": value for key, value in top.items()}
    if spec.learned or spec.kept == 1:
        names.pop("top_select")
    return names


def _pytorchcv(spec: CondenseNetSpec) -> dict[str, str]:
    """Name the layers as pytorchcv does."""
    top = {"bn": "features.post_activ.bn", "select": "output"}
    top |= {"classifier": "output.linear"}
    unit = "features.stage{}.unit{}.conv"
    return _names(spec, "features.init_block.conv", unit, "bn", top)


def _authors(spec: CondenseNetSpec) -> dict[str, str]:
    """Name the layers as the authors' converted networks do."""
    top = {"bn": "features.norm_last", "select": "classifier"}
    top |= {"classifier": "classifier.linear"}
    unit = "features.denseblock_{}.denselayer_{}.conv_"
    return _names(spec, "features.init_conv", unit, "norm", top)


LAYOUTS = {
    "pytorchcv": Layout(names=_pytorchcv, top=_TOP, preprocessing=RULE),
    "authors": Layout(names=_authors, top=_TOP),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, classifier=classify)

CondenseNet74C4G4 = make_application(SPECS[0], FAMILY)
CondenseNet74C8G8 = make_application(SPECS[1], FAMILY)
CondenseNetCifar50 = make_application(SPECS[2], FAMILY)
CondenseNetCifar74 = make_application(SPECS[3], FAMILY)
CondenseNetCifar86 = make_application(SPECS[4], FAMILY)
CondenseNetCifar98 = make_application(SPECS[5], FAMILY)
CondenseNetCifar110 = make_application(SPECS[6], FAMILY)
CondenseNetCifar122 = make_application(SPECS[7], FAMILY)
CondenseNetCifar182 = make_application(SPECS[8], FAMILY)
preprocess_input = make_preprocess(SPECS)
