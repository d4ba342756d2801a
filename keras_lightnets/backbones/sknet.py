"""SKNet: branches of different reach, weighed per channel."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._publishers import timm_hub
from keras_lightnets._residual import (
    TORCH_RULE,
    ResidualSpec,
    imagenet_rows,
    pytorchcv_names,
    torch_names,
)
from keras_lightnets._spec import IMAGENET, Weights

__all__ = [
    "SKNet50",
    "SKNet101",
    "SKNet152",
    "SKResNet18",
    "SKResNet34",
    "decode_predictions",
    "preprocess_input",
]

BASIC = (64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class SKNetSpec(ResidualSpec):
    """An SKNet; a branch's kernels reach further than those of the one before.

    Attributes:
        branches: Number of branches (the paper's M).
        reduction: Channels, in multiples of those between the gate's layers (r).
        least: The latter are rounded to a multiple of it (L).
        split: Whether the branches share the input's channels, as in timm's basic
            networks, which are not the paper's.
    """

    groups: int = 32
    base_width: int = 4
    branches: int = 2
    reduction: int = 16
    least: int = 32
    split: bool = False
    bias_exceptions: tuple[str, ...] = ("*_select_conv",)
    reference: str = "Li et al. 2019, SKNet, https://arxiv.org/abs/1903.06586"


def _spec(
    depth: int, repeats: tuple[int, ...], top1: float | None, *weights: Weights
) -> SKNetSpec:
    return SKNetSpec(
        name=f"sknet{depth}",
        function=f"SKNet{depth}",
        rows=imagenet_rows(repeats),
        top1=top1,
        weights=weights,
    )


def _timm_file(name: str, file: str) -> Weights:
    return timm_hub(f"{name}.ra_in1k", IMAGENET, file=f"v0.1-weights/{file}")


def _basic(depth: int, repeats: tuple[int, ...], file: str) -> SKNetSpec:
    return SKNetSpec(
        name=f"sk_resnet{depth}",
        function=f"SKResNet{depth}",
        rows=imagenet_rows(repeats, BASIC),
        unit="basic",
        ratio=1,
        groups=1,
        base_width=64,
        reduction=8,
        least=16,
        split=True,
        weights=(_timm_file(f"skresnet{depth}", file),),
    )


SPECS = (
    _spec(
        50,
        (3, 4, 6, 3),
        79.21,
        _timm_file("skresnext50_32x4d", "skresnext50_ra-f40e40bf"),
    ),
    _spec(101, (3, 4, 23, 3), 79.81),
    _spec(152, (3, 8, 36, 3), None),
    _basic(18, (2, 2, 2, 2), "skresnet18_ra-4eec2804"),
    _basic(34, (3, 4, 6, 3), "skresnet34_ra-bdc0ccde"),
)


def build(spec: SKNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; c5 is also "features"."""
    return layers.residual_network(x, spec, output_stride, convolve=_selective)


def _selective(x: Any, spec: SKNetSpec, conv: "layers.Spatial") -> Any:
    """Convolve in branches of growing dilation and weigh them (section 3.1)."""
    if conv.act == "linear":
        return layers.plain_spatial(x, spec, conv)
    share = x.shape[-1] // spec.branches
    branches = []
    for i in range(spec.branches):
        part = f"{conv.name}_branch{i + 1}"
        y = x
        if spec.split:
            y = layers.channel_slice(x, i * share, (i + 1) * share, part)
        y, stride, dilation = layers.thinned(
            y, conv.stride, conv.dilation * (i + 1), part
        )
        sizes = (stride, conv.groups, dilation)
        y = layers.conv_bn(y, conv.filters, 3, spec, part, *sizes)
        branches.append(layers.activate(y, conv.act, part))
    reduced = make_divisible(conv.filters / spec.reduction, spec.least)
    return layers.selective_kernel(branches, reduced, spec, conv.name)


def _pytorchcv(spec: SKNetSpec) -> dict[str, str]:
    inner = {"conv": "conv", "bn": "bn"}
    parts = pairs("spatial_squeeze", "body.conv2.fc1.", inner)
    for i in range(1, spec.branches + 1):
        parts |= pairs(
            f"spatial_branch{i}", f"body.conv2.branches.branch{i + 1}.", inner
        )
    parts["spatial_select_conv"] = "body.conv2.fc2"
    parts |= {"spatial_conv": "", "spatial_bn": ""}
    return pytorchcv_names(spec, lambda _: parts)


def _timm(spec: SKNetSpec) -> dict[str, str]:
    basic = spec.unit == "basic"
    place, theirs = ("first", "conv1") if basic else ("spatial", "conv2")
    others = {"second": "conv2"} if basic else {"reduce": "conv1", "expand": "conv3"}
    inner = {"conv": "conv", "bn": "bn"}
    parts = {f"{place}_conv": "", f"{place}_bn": ""}
    for i in range(1, spec.branches + 1):
        parts |= pairs(f"{place}_branch{i}", f"{theirs}.paths.{i - 1}.", inner)
    parts[f"{place}_squeeze_conv"] = f"{theirs}.attn.fc_reduce"
    parts[f"{place}_squeeze_bn"] = f"{theirs}.attn.bn"
    parts[f"{place}_select_conv"] = f"{theirs}.attn.fc_select"
    for ours, other in others.items():
        parts |= pairs(ours, f"{other}.", inner)

    def extra(_: Block[StageRow]) -> dict[str, str]:
        return parts

    return torch_names(spec, extra)


LAYOUTS = {
    "timm": Layout(names=_timm, preprocessing=IMAGENET),
    "pytorchcv": Layout(names=_pytorchcv, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

SKNet50 = make_application(SPECS[0], FAMILY)
SKNet101 = make_application(SPECS[1], FAMILY)
SKNet152 = make_application(SPECS[2], FAMILY)
SKResNet18 = make_application(SPECS[3], FAMILY)
SKResNet34 = make_application(SPECS[4], FAMILY)
preprocess_input = make_preprocess(SPECS)
