"""RepGhostNet: ghost features that are added, and merged for deployment."""

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
    "RepGhostNet",
    "RepGhostNetW050",
    "RepGhostNetW058",
    "RepGhostNetW080",
    "RepGhostNetW111",
    "RepGhostNetW130",
    "RepGhostNetW150",
    "RepGhostNetW200",
    "decode_predictions",
    "preprocess_input",
]


# fmt: off
ROWS = (  # the paper's table 2
    #   stage kernel expand  out  se     stride
    Row(1,    3,       8,    16,  False, 1),
    Row(2,    3,      24,    24,  False, 2),
    Row(2,    3,      36,    24,  False, 1),
    Row(3,    5,      36,    40,  True,  2),
    Row(3,    5,      60,    40,  True,  1),
    Row(4,    3,     120,    80,  False, 2),
    Row(4,    3,     100,    80,  False, 1),
    Row(4,    3,     120,    80,  False, 1),
    Row(4,    3,     120,    80,  False, 1),
    Row(4,    3,     240,   112,  True,  1),
    Row(4,    3,     336,   112,  True,  1),
    Row(5,    5,     336,   160,  True,  2),
    Row(5,    5,     480,   160,  False, 1),
    Row(5,    5,     480,   160,  True,  1),
    Row(5,    5,     480,   160,  False, 1),
    Row(5,    5,     480,   160,  True,  1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class RepGhostNetSpec(GhostSpec):
    """A RepGhostNet as it is trained; `tools.fuse` makes the deployed form."""

    rows: tuple[Row, ...] = ROWS
    fusable: bool = True
    reference: str = "Chen et al. 2022, RepGhost, https://arxiv.org/abs/2211.06088"


def _spec(width: float, top1: float) -> RepGhostNetSpec:
    """Describe a width; the unmarked names are those of width 1."""
    digits = f"{round(width * 100):03d}"
    name, function = "repghostnet", "RepGhostNet"
    file = f"{name}_{digits}.in1k"
    weights = Weights(
        tag="timm_in1k",
        url=f"https://huggingface.co/timm/{file}/resolve/main/model.safetensors",
        layout="timm",
        licence="MIT",
        preprocessing=IMAGENET,
        top1=top1,
        source=f"timm {file}, converted from the authors' checkpoint",
    )
    return RepGhostNetSpec(
        name=name if width == 1.0 else f"{name}_{digits}",
        function=function if width == 1.0 else f"{function}W{digits}",
        width=width,
        top1=round(top1, 1),
        weights=(weights,),
    )


SPECS = (
    _spec(1.0, 74.22),
    _spec(0.5, 66.95),
    _spec(0.58, 68.94),
    _spec(0.8, 72.24),
    _spec(1.11, 75.07),
    _spec(1.3, 76.37),
    _spec(1.5, 77.45),
    _spec(2.0, 78.81),
)


def build(spec: RepGhostNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (960 channels)."""
    return layers.ghost_stages(x, spec.blocks, spec, output_stride, _repghost)


def neck(spec: RepGhostNetSpec, x: Any) -> Any:
    """Widen the pooled features: 1x1 convolution with bias, ReLU."""
    return layers.ghost_neck(spec, x)


def _repghost(
    x: Any, filters: int, spec: RepGhostNetSpec, name: str, act: str, dilation: int
) -> Any:
    """RepGhost module (figure 3c): maps by 1x1, plus a 3x3 and a BN branch of them.

    Both branches are linear in the same maps, so that deployment has one 3x3.
    """
    x = layers.activate(layers.conv_bn(x, filters, 1, spec, name), act, name)
    cheap = layers.depthwise_bn(x, 3, spec, f"{name}_cheap", dilation=dilation)
    fusion = layers.BatchNormalization(
        epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, name=f"{name}_fusion_bn"
    )(x)
    x = layers.residual(fusion, cheap, name)
    return layers.activate(x, act, f"{name}_add")


_MODULE = {
    "conv": "primary_conv.0",
    "bn": "primary_conv.1",
    "cheap_conv": "cheap_operation.0",
    "cheap_bn": "cheap_operation.1",
    "fusion_bn": "fusion_bn.0",
}


def _timm(spec: RepGhostNetSpec) -> dict[str, str]:
    """Name the layers as timm and the authors do."""
    return timm_ghost(spec.blocks, _MODULE)


LAYOUTS = {"timm": Layout(names=_timm, top=("top_hidden_conv", "top_classifier"))}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, neck=neck)

RepGhostNet = make_application(SPECS[0], FAMILY)
RepGhostNetW050 = make_application(SPECS[1], FAMILY)
RepGhostNetW058 = make_application(SPECS[2], FAMILY)
RepGhostNetW080 = make_application(SPECS[3], FAMILY)
RepGhostNetW111 = make_application(SPECS[4], FAMILY)
RepGhostNetW130 = make_application(SPECS[5], FAMILY)
RepGhostNetW150 = make_application(SPECS[6], FAMILY)
RepGhostNetW200 = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
