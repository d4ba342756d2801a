"""PeleeNet: a dense net of ordinary convolutions with two-way layers."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing, Weights

__all__ = ["PeleeNet", "decode_predictions", "preprocess_input"]


@dataclass(frozen=True)
class Row:
    """One stage of the paper's table 1.

    `mid` is the channels of the layers' bottlenecks.
    """

    stage: int
    repeat: int
    mid: int


# fmt: off
ROWS = (
    #   stage repeat mid
    Row(2,    3,     16),
    Row(3,    4,     32),
    Row(4,    8,     64),
    Row(5,    6,     64),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class PeleeNetSpec(ModelSpec):
    """A PeleeNet.

    Attributes:
        stem: Channels of the stem.
        growth: Channels that each layer adds, half of them per way.
        pool_first: Whether the pooled half leads the stem's concat, as in the
            authors' code; the other order only permutes weights.
        round_up: Whether the average pools round odd sides up, as the authors'
            detector does; its maps are then of exact strides.
    """

    rows: tuple[Row, ...] = ROWS
    stem: int = 32
    growth: int = 32
    pool_first: bool = True
    round_up: bool = False
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.05
    exact_strides: bool = False
    flags_reason: str = "its average pools round odd sides down"
    reference: str = "Wang et al. 2018, Pelee, https://arxiv.org/abs/1804.06882"

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE


TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
PYTORCHCV = (("pool_first", False),)

WEIGHTS = (
    Weights(
        tag="pytorchcv_in1k",
        url=(
            "https://github.com/osmr/imgclsmob/releases/download/v0.0.496/"
            "peleenet-1004-5107a95d.pth.zip"
        ),
        hash="sha1:5107a95d09d062cb152986169aa5b6f8f08afa47",
        format="pth.zip",
        layout="pytorchcv",
        licence="MIT",
        preprocessing=TORCH_RULE,
        changes=PYTORCHCV,
        source="pytorchcv (osmr/imgclsmob)",
    ),
    Weights(
        tag="authors_in1k",
        url=(
            "https://github.com/Robert-JunWang/PeleeNet/raw/"
            "05e928adb7387d54b48373583ee4430a28966599/weights/peleenet_acc7208.pth.tar"
        ),
        hash="git:e1500c6ebf591dc7cabe9b59852a686b160e8692",
        format="pth",
        layout="authors",
        licence="Apache-2.0",
        preprocessing=TORCH_RULE,
        top1=72.08,
        source="Robert-JunWang/PeleeNet, the authors",
    ),
)

SPECS = (
    PeleeNetSpec(name="peleenet", function="PeleeNet", top1=72.6, weights=WEIGHTS),
)


def build(spec: PeleeNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c5 behind each stage's transition.

    The average pool between two stages is the next stage's; "features" is c5.
    """
    stride = layers.DilatedStride(output_stride)
    x, first = _stem(x, spec, stride)
    maps = {"c1": first}
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            x = _dense(x, row.mid, spec, stride, f"stage{row.stage}_block{number}")
        name = f"stage{row.stage}_block{row.repeat + 1}"
        x = _conv(x, x.shape[-1], 1, spec, name)
        maps[f"c{row.stage}"] = x
        if row is not spec.rows[-1]:
            step, dilation = stride.step(2)
            if spec.round_up and step == 2:
                x = layers.avg_pool_up(x, 2, step, name)
                continue
            # Undilated, odd sides lose a pixel; dilated, the side stays.
            pad = (0, 0) if step == 2 else (0, 1)
            x = layers.avg_pool(x, 2, step, pad, name, dilation)
    return {**maps, "features": x}


def _stem(x: Any, spec: PeleeNetSpec, stride: Any) -> tuple[Any, Any]:
    """Stride 4 by two ways (figure 1); returns the output and the map at stride 2."""
    step, _ = stride.step(2)
    first = _conv(x, spec.stem, 3, spec, "stem", step)
    step, _ = stride.step(2)
    # Rounds odd sides up, as the convolution beside it.
    pooled = layers.max_pool(first, 2, step, (0, 1), "stem")
    x = _conv(first, spec.stem // 2, 1, spec, "stem_reduce")
    x = _conv(x, spec.stem, 3, spec, "stem_down", step)
    x = layers.concat([pooled, x] if spec.pool_first else [x, pooled], "stem")
    return _conv(x, spec.stem, 1, spec, "stem_merge"), first


def _dense(x: Any, mid: int, spec: PeleeNetSpec, stride: Any, name: str) -> Any:
    """Add one 3x3 and two stacked 3x3 convolutions of the input (figure 2)."""
    out = spec.growth // 2
    _, dilation = stride.step(1)
    short = _conv(x, mid, 1, spec, f"{name}_short_reduce")
    short = _conv(short, out, 3, spec, f"{name}_short", dilation=dilation)
    far = _conv(x, mid, 1, spec, f"{name}_far_reduce")
    far = _conv(far, out, 3, spec, f"{name}_far_first", dilation=dilation)
    far = _conv(far, out, 3, spec, f"{name}_far", dilation=dilation)
    return layers.concat([x, short, far], name)


def _conv(
    x: Any,
    filters: int,
    kernel: int,
    spec: PeleeNetSpec,
    name: str,
    step: int = 1,
    dilation: int = 1,
) -> Any:
    x = layers.conv_bn(x, filters, kernel, spec, name, stride=step, dilation=dilation)
    return layers.activate(x, "relu", name)


def _authors(spec: PeleeNetSpec) -> dict[str, str]:
    block = {"conv": "conv", "bn": "norm"}
    stem = "features.stemblock."
    names = pairs("stem", f"{stem}stem1.", block)
    names |= pairs("stem_reduce", f"{stem}stem2a.", block)
    names |= pairs("stem_down", f"{stem}stem2b.", block)
    names |= pairs("stem_merge", f"{stem}stem3.", block)
    parts = {"short_reduce": "branch1a", "short": "branch1b", "far_reduce": "branch2a"}
    parts |= {"far_first": "branch2b", "far": "branch2c"}
    for i, row in enumerate(spec.rows, start=1):
        for number in range(1, row.repeat + 1):
            for ours, theirs in parts.items():
                place = f"features.denseblock{i}.denselayer{number}.{theirs}."
                names |= pairs(f"stage{row.stage}_block{number}_{ours}", place, block)
        last = f"stage{row.stage}_block{row.repeat + 1}"
        names |= pairs(last, f"features.transition{i}.", block)
    return names | {"top_classifier": "classifier"}


def _pytorchcv(spec: PeleeNetSpec) -> dict[str, str]:
    block = {"conv": "conv", "bn": "bn"}
    stem = "features.init_block."
    names = pairs("stem", f"{stem}first_conv.", block)
    names |= pairs("stem_reduce", f"{stem}branches.branch1.conv1.", block)
    names |= pairs("stem_down", f"{stem}branches.branch1.conv2.", block)
    names |= pairs("stem_merge", f"{stem}last_conv.", block)
    parts = {"short_reduce": "branch1.conv1", "short": "branch1.conv2"}
    parts |= {"far_reduce": "branch2.conv1", "far_first": "branch2.conv2"}
    parts |= {"far": "branch2.conv3"}
    for i, row in enumerate(spec.rows, start=1):
        for number in range(1, row.repeat + 1):
            for ours, theirs in parts.items():
                place = f"features.stage{i}.unit{number}.{theirs}."
                names |= pairs(f"stage{row.stage}_block{number}_{ours}", place, block)
        last = f"stage{row.stage}_block{row.repeat + 1}"
        # The transition belongs to the next stage there.
        place = f"features.stage{i + 1}.trans{i + 1}.conv."
        if row is spec.rows[-1]:
            place = "features.final_block."
        names |= pairs(last, place, block)
    return names | {"top_classifier": "output.fc"}


LAYOUTS = {
    "pytorchcv": Layout(names=_pytorchcv, changes=PYTORCHCV, preprocessing=TORCH_RULE),
    "authors": Layout(names=_authors, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

PeleeNet = make_application(SPECS[0], FAMILY)
preprocess_input = make_preprocess(SPECS)
