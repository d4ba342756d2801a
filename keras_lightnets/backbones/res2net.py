"""Res2Net: residual units whose 3x3 convolutions form a hierarchy of scales."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._publishers import CONVERTED, timm_hub
from keras_lightnets._residual import (
    TORCH_RULE,
    ResidualSpec,
    imagenet_rows,
    torch_names,
)

__all__ = [
    "Res2NeXt50",
    "Res2Net50S2W48",
    "Res2Net50S4W26",
    "Res2Net50S6W26",
    "Res2Net50S8W14",
    "Res2Net50S8W26",
    "Res2Net50V1B",
    "Res2Net101S4W26",
    "Res2Net101V1B",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True, kw_only=True)
class Res2NetSpec(ResidualSpec):
    """A Res2Net.

    Attributes:
        scale: Pieces of the channels between the 1x1 convolutions (s), each as
            wide as `base_width` says (w).
    """

    scale: int = 4
    base_width: int = 26
    reference: str = "Gao et al. 2019, Res2Net, https://arxiv.org/abs/1904.01169"


# Network -> file of timm's release.
RELEASED = {
    "res2net50_26w_4s": "res2net50_26w_4s-06e79181",
    "res2net50_48w_2s": "res2net50_48w_2s-afed724a",
    "res2net50_14w_8s": "res2net50_14w_8s-6527dddc",
    "res2net50_26w_6s": "res2net50_26w_6s-19041792",
    "res2net50_26w_8s": "res2net50_26w_8s-2c7c9f12",
    "res2net101_26w_4s": "res2net101_26w_4s-02a759a1",
    "res2next50": "res2next50_4s-6ef7e7bf",
}


def _spec(
    name: str, function: str, file: str, top1: float, **fields: Any
) -> Res2NetSpec:
    depth, release = (23 if "101" in name else 6), RELEASED.get(file, "")
    weights = timm_hub(
        f"{file}.in1k",
        TORCH_RULE,
        "none stated",
        top1,
        CONVERTED,
        file=f"v0.1-res2net/{release}" if release else "",
    )
    return Res2NetSpec(
        name=name,
        function=function,
        rows=imagenet_rows((3, 4, depth, 3)),
        top1=top1,
        weights=(weights,),
        reduce_ratio=float(fields.get("scale", 4)),
        **fields,
    )


def _split(depth: int, width: int, scale: int, top1: float) -> Res2NetSpec:
    return _spec(
        f"res2net{depth}_{width}w{scale}s",
        f"Res2Net{depth}S{scale}W{width}",
        f"res2net{depth}_{width}w_{scale}s",
        top1,
        base_width=width,
        scale=scale,
    )


# ResNet-D's stem and shortcuts (https://arxiv.org/abs/1812.01187).
V1B: dict[str, Any] = {
    "stem": (32, 32, 64),
    "shortcut": "pool",
    "output_strides": (32,),
}
SPECS = (
    _split(50, 26, 4, 77.99),
    _split(50, 48, 2, 77.32),
    _split(50, 14, 8, 78.14),
    _split(50, 26, 6, 78.58),
    _split(50, 26, 8, 79.2),
    _split(101, 26, 4, 79.19),
    _spec("res2next50", "Res2NeXt50", "res2next50", 78.24, base_width=4, groups=8),
    _spec("res2net50_v1b", "Res2Net50V1B", "res2net50d", 80.27, **V1B),
    _spec("res2net101_v1b", "Res2Net101V1B", "res2net101d", 81.23, **V1B),
)


def build(spec: Res2NetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; c5 is also "features"."""
    return layers.residual_network(x, spec, output_stride, layers.multi_scale)


def _timm(spec: Res2NetSpec) -> dict[str, str]:
    parts = {"spatial_conv": "", "spatial_bn": ""}
    for i in range(spec.scale - 1):
        parts[f"spatial_scale{i + 1}_conv"] = f"convs.{i}"
        parts[f"spatial_scale{i + 1}_bn"] = f"bns.{i}"

    def extra(_: Block[StageRow]) -> dict[str, str]:
        return parts

    return torch_names(spec, extra)


LAYOUTS = {"timm": Layout(names=_timm, preprocessing=TORCH_RULE)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

Res2Net50S4W26 = make_application(SPECS[0], FAMILY)
Res2Net50S2W48 = make_application(SPECS[1], FAMILY)
Res2Net50S8W14 = make_application(SPECS[2], FAMILY)
Res2Net50S6W26 = make_application(SPECS[3], FAMILY)
Res2Net50S8W26 = make_application(SPECS[4], FAMILY)
Res2Net101S4W26 = make_application(SPECS[5], FAMILY)
Res2NeXt50 = make_application(SPECS[6], FAMILY)
Res2Net50V1B = make_application(SPECS[7], FAMILY)
Res2Net101V1B = make_application(SPECS[8], FAMILY)
preprocess_input = make_preprocess(SPECS)
