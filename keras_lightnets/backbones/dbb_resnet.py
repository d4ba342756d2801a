"""DBB-ResNet: ResNet whose 3x3 convolutions are diverse branch blocks."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._residual import (
    TORCH_RULE,
    ResidualSpec,
    imagenet_rows,
    resized,
)

__all__ = ["DBBResNet18", "DBBResNet50", "decode_predictions", "preprocess_input"]


@dataclass(frozen=True, kw_only=True)
class DBBResNetSpec(ResidualSpec):
    """A DBB-ResNet as it is trained; `tools.fuse` makes the deployed form.

    The deployed form is a plain ResNet. The authors' weights are in a folder that
    has no addresses of single files; `weights=` takes a downloaded one.
    """

    fusable: bool = True
    reference: str = (
        "Ding et al. 2021, Diverse Branch Block, https://arxiv.org/abs/2103.13425"
    )


R50 = DBBResNetSpec(
    name="dbb_resnet50",
    function="DBBResNet50",
    rows=imagenet_rows((3, 4, 6, 3)),
    top1=76.71,
)
SPECS = (
    dataclasses.replace(
        R50,
        name="dbb_resnet18",
        function="DBBResNet18",
        rows=imagenet_rows((2, 2, 2, 2), (64, 128, 256, 512)),
        unit="basic",
        ratio=1,
        top1=71.01,
    ),
    R50,
)


def build(spec: DBBResNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; the last is "features"."""
    return layers.residual_network(x, spec, output_stride, layers.diverse_spatial)


BRANCHES = {
    "origin_conv": "dbb_origin.conv",
    "origin_bn": "dbb_origin.bn",
    "point_conv": "dbb_1x1.conv",
    "point_bn": "dbb_1x1.bn",
    "mean_first_conv": "dbb_avg.conv",
    "mean_first_bn": "dbb_avg.bn.bn",
    "mean_bn": "dbb_avg.avgbn",
    "series_first_conv": "dbb_1x1_kxk.idconv1",
    "series_first_bn": "dbb_1x1_kxk.bn1.bn",
    "series_conv": "dbb_1x1_kxk.conv2",
    "series_bn": "dbb_1x1_kxk.bn2",
}


def _authors(spec: DBBResNetSpec) -> dict[str, str]:
    """Name the layers as DingXiaoH/DiverseBranchBlock does."""
    plain = {"conv": "conv", "bn": "bn"}
    names = pairs("stem", "stage0.conv1.", plain)
    basic = spec.unit == "basic"
    convs = ("first", "second") if basic else ("reduce", "spatial", "expand")
    for block in spec.blocks():
        parts = pairs("shortcut", "shortcut.", plain) if resized(block) else {}
        for i, part in enumerate(convs, 1):
            diverse = basic or part == "spatial"
            parts |= pairs(part, f"conv{i}.", BRANCHES if diverse else plain)
        prefix = f"stage{block.row.stage - 1}.{block.number - 1}."
        names |= pairs(block.name, prefix, parts)
    return names | {"top_classifier": "linear"}


LAYOUTS = {"dbb": Layout(names=_authors, preprocessing=TORCH_RULE)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

DBBResNet18 = make_application(SPECS[0], FAMILY)
DBBResNet50 = make_application(SPECS[1], FAMILY)
preprocess_input = make_preprocess(SPECS)
