"""GhostNet: half of the features from cheap depthwise operations."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    IMAGENET,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "GhostNet",
    "GhostNetW050",
    "GhostNetW130",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One line of the paper's table 7 (sizes before the width multiplier)."""

    stage: int
    kernel: int
    expand: int
    out: int
    se: bool
    stride: int


# fmt: off
ROWS = (
    #   stage kernel expand  out  se     stride
    Row(1,    3,      16,    16,  False, 1),
    Row(2,    3,      48,    24,  False, 2),
    Row(2,    3,      72,    24,  False, 1),
    Row(3,    5,      72,    40,  True,  2),
    Row(3,    5,     120,    40,  True,  1),
    Row(4,    3,     240,    80,  False, 2),
    Row(4,    3,     200,    80,  False, 1),
    Row(4,    3,     184,    80,  False, 1),
    Row(4,    3,     184,    80,  False, 1),
    Row(4,    3,     480,   112,  True,  1),
    Row(4,    3,     672,   112,  True,  1),
    Row(5,    5,     672,   160,  True,  2),
    Row(5,    5,     960,   160,  False, 1),
    Row(5,    5,     960,   160,  True,  1),
    Row(5,    5,     960,   160,  False, 1),
    Row(5,    5,     960,   160,  True,  1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class GhostNetSpec(ModelSpec):
    """A GhostNet.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution before pooling.
        hidden: Channels of the layer before the classifier, not multiplied.
    """

    rows: tuple[Row, ...] = ROWS
    divisor: int = 4
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    reference: str = "Han et al. 2020, GhostNet, https://arxiv.org/abs/1911.11907"
    stem: int = 16
    top: int = 960
    hidden: int = 1280

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, the authors' for every width."""
        return self.weights[0].preprocessing if self.weights else IMAGENET


HUGGINGFACE = "https://huggingface.co/timm"
HUAWEI = "https://github.com/huawei-noah/CV-Backbones/releases/download"

WEIGHTS = (
    Weights(
        tag="timm_in1k",
        url=f"{HUGGINGFACE}/ghostnet_100.in1k/resolve/main/model.safetensors",
        layout="timm",
        licence="Apache-2.0",
        preprocessing=IMAGENET,
        top1=73.98,
        source="timm ghostnet_100.in1k, converted from Huawei Noah's Ark Lab",
    ),
    Weights(
        tag="huawei_in1k",
        url=f"{HUAWEI}/ghostnet_pth/ghostnet_1x.pth",
        format="pth",
        layout="timm",
        licence="Apache-2.0",
        preprocessing=IMAGENET,
        top1=73.98,
        source="Huawei Noah's Ark Lab, the authors",
    ),
)

SPECS = (
    GhostNetSpec(name="ghostnet", function="GhostNet", top1=73.9, weights=WEIGHTS),
    GhostNetSpec(name="ghostnet_050", function="GhostNetW050", width=0.5, top1=66.2),
    GhostNetSpec(name="ghostnet_130", function="GhostNetW130", width=1.3, top1=75.7),
)


def build(spec: GhostNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (960 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, _channels(spec, spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps: dict[str, Any] = {}
    for block in _blocks(spec):
        x, expanded = _bottleneck(x, block, spec, stride)
        maps[f"c{block.row.stage}"] = x
        if block.row.stage == 5:
            maps.setdefault("c4_expand", expanded)
    x = layers.conv_bn(x, _channels(spec, spec.top), 1, spec, "top")
    return {**maps, "features": layers.activate(x, "relu", "top")}


def neck(spec: GhostNetSpec, x: Any) -> Any:
    """Widen the pooled features: 1x1 convolution with bias, ReLU."""
    return layers.activate(
        layers.bias_conv(x, spec.hidden, "top_hidden"), "relu", "top_hidden"
    )


def _bottleneck(
    x: Any, block: Block[Row], spec: GhostNetSpec, stride: Any
) -> tuple[Any, Any]:
    """Ghost module, strided depthwise convolution, squeeze, linear ghost module.

    Returns the output and the expanded input.
    """
    row, name, out = block.row, block.name, block.out
    shortcut, mid = x, _channels(spec, row.expand)
    before = stride.dilation
    step, dilation = stride.step(row.stride)
    x = expanded = _ghost(x, mid, spec, f"{name}_expand", "relu", before)
    if row.stride > 1:
        x = layers.depthwise_bn(x, row.kernel, spec, f"{name}_dw", step, dilation)
    if row.se:
        x = layers.squeeze_excite(x, make_divisible(mid / 4, 4), f"{name}_se")
    x = _ghost(x, out, spec, f"{name}_project", "linear", stride.dilation)
    if row.stride > 1 or block.channels != out:
        part = f"{name}_shortcut"
        shortcut = layers.depthwise_bn(
            shortcut, row.kernel, spec, f"{part}_dw", step, dilation
        )
        shortcut = layers.conv_bn(shortcut, out, 1, spec, part)
    return layers.residual(x, shortcut, name), expanded


def _ghost(
    x: Any, filters: int, spec: GhostNetSpec, name: str, act: str, dilation: int
) -> Any:
    """Ghost module (section 3.1): half the maps by 1x1, half from those by 3x3."""
    half = filters // 2
    x = layers.activate(layers.conv_bn(x, half, 1, spec, name), act, name)
    cheap = layers.depthwise_bn(x, 3, spec, f"{name}_cheap", dilation=dilation)
    cheap = layers.activate(cheap, act, f"{name}_cheap")
    return layers.concat([x, cheap], name)


def _channels(spec: GhostNetSpec, count: int) -> int:
    return make_divisible(count * spec.width, spec.divisor)


def _blocks(spec: GhostNetSpec) -> list[Block[Row]]:
    outs = [_channels(spec, row.out) for row in spec.rows]
    return expand_rows(spec.rows, channels=_channels(spec, spec.stem), outs=outs)


_GHOST = {
    "conv": "primary_conv.0",
    "bn": "primary_conv.1",
    "cheap_conv": "cheap_operation.0",
    "cheap_bn": "cheap_operation.1",
}


def _timm(spec: GhostNetSpec) -> dict[str, str]:
    """Name the layers as timm and the authors do.

    Their `blocks` are numbered by runs: a strided block is a run of its own.
    """
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    index, run = 0, -1
    previous: Row | None = None
    for block in _blocks(spec):
        row, ours = block.row, block.name
        after_stride = previous is not None and previous.stride > 1
        new = previous is None or row.stride > 1 or after_stride
        run, index, previous = run + new, 0 if new else index + 1, row
        theirs = f"blocks.{run}.{index}."
        names |= pairs(f"{ours}_expand", f"{theirs}ghost1.", _GHOST)
        names |= pairs(f"{ours}_project", f"{theirs}ghost2.", _GHOST)
        parts: dict[str, str] = {}
        if row.stride > 1:
            parts |= {"dw_conv": "conv_dw", "dw_bn": "bn_dw"}
        if row.se:
            parts["se_squeeze_conv"] = "se.conv_reduce"
            parts["se_excite_conv"] = "se.conv_expand"
        if row.stride > 1 or block.channels != block.out:
            parts |= {"shortcut_dw_conv": "shortcut.0", "shortcut_dw_bn": "shortcut.1"}
            parts |= {"shortcut_conv": "shortcut.2", "shortcut_bn": "shortcut.3"}
        names |= pairs(ours, theirs, parts)
    names |= pairs("top", f"blocks.{run + 1}.0.", {"conv": "conv", "bn": "bn1"})
    return names | {"top_hidden_conv": "conv_head", "top_classifier": "classifier"}


LAYOUTS = {"timm": Layout(names=_timm, top=("top_hidden_conv", "top_classifier"))}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, neck=neck)

GhostNet = make_application(SPECS[0], FAMILY)
GhostNetW050 = make_application(SPECS[1], FAMILY)
GhostNetW130 = make_application(SPECS[2], FAMILY)
preprocess_input = make_preprocess(SPECS)
