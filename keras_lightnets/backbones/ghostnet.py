"""GhostNet: half of the features from cheap depthwise operations."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._ghost import GhostSpec, Row
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, timm_ghost
from keras_lightnets._spec import (
    IMAGENET,
    Weights,
)

__all__ = [
    "GhostNet",
    "GhostNetW050",
    "GhostNetW130",
    "decode_predictions",
    "preprocess_input",
]


# fmt: off
ROWS = (  # the paper's table 7
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
class GhostNetSpec(GhostSpec):
    """A GhostNet."""

    rows: tuple[Row, ...] = ROWS
    reference: str = "Han et al. 2020, GhostNet, https://arxiv.org/abs/1911.11907"


HUGGINGFACE = "https://huggingface.co/timm"
# The authors' file as their repository holds it, whose object's name is its hash, and
# as they released it earlier.
HUAWEI = (
    "https://github.com/huawei-noah/Efficient-AI-Backbones/raw/"
    "f90e129b645c3b1684fe07cd361cd557d0ad71f7/"
    "ghostnet_pytorch/models/state_dict_73.98.pth",
    "https://github.com/huawei-noah/CV-Backbones/releases/download/"
    "ghostnet_pth/ghostnet_1x.pth",
)

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
        url=" | ".join(HUAWEI),
        hash="git:26da9f2807cd5ba95c607cec01ceb9700d94e0ae | ",
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
    return layers.ghost_stages(x, spec.blocks, spec, output_stride, _ghost)


def neck(spec: GhostNetSpec, x: Any) -> Any:
    """Widen the pooled features: 1x1 convolution with bias, ReLU."""
    return layers.ghost_neck(spec, x)


def _ghost(
    x: Any, filters: int, spec: GhostNetSpec, name: str, act: str, dilation: int
) -> Any:
    """Ghost module (section 3.1): half the maps by 1x1, half from those by 3x3."""
    half = filters // 2
    x = layers.activate(layers.conv_bn(x, half, 1, spec, name), act, name)
    cheap = layers.depthwise_bn(x, 3, spec, f"{name}_cheap", dilation=dilation)
    cheap = layers.activate(cheap, act, f"{name}_cheap")
    return layers.concat([x, cheap], name)


_GHOST = {
    "conv": "primary_conv.0",
    "bn": "primary_conv.1",
    "cheap_conv": "cheap_operation.0",
    "cheap_bn": "cheap_operation.1",
}


def _timm(spec: GhostNetSpec) -> dict[str, str]:
    """Name the layers as timm and the authors do."""
    return timm_ghost(spec.blocks, _GHOST)


LAYOUTS = {"timm": Layout(names=_timm, top=("top_hidden_conv", "top_classifier"))}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, neck=neck)

GhostNet = make_application(SPECS[0], FAMILY)
GhostNetW050 = make_application(SPECS[1], FAMILY)
GhostNetW130 = make_application(SPECS[2], FAMILY)
preprocess_input = make_preprocess(SPECS)
