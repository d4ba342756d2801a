"""ResNeXt: residual units whose 3x3 convolutions are grouped.

Those for CIFAR take images of 32 pixels and end at stride 4; pass `classes=10` or
`classes=100`.
"""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._publishers import pytorchcv, torchvision
from keras_lightnets._residual import (
    CIFAR,
    CIFAR_RULE,
    TORCH_RULE,
    TORCH_RULE_232,
    ResidualSpec,
    cifar_rows,
    imagenet_rows,
    pytorchcv_names,
    torch_names,
)
from keras_lightnets._spec import IMAGENET, Weights

__all__ = [
    "ResNeXt50G32W4",
    "ResNeXt101G32W4",
    "ResNeXt101G32W8",
    "ResNeXt101G64W4",
    "ResNeXtCifar29G16W64",
    "ResNeXtCifar29G32W4",
    "decode_predictions",
    "preprocess_input",
]

GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download"


@dataclass(frozen=True, kw_only=True)
class ResNeXtSpec(ResidualSpec):
    """A ResNeXt; `groups` is the paper's cardinality, `base_width` its d."""

    groups: int = 32
    base_width: int = 4
    reference: str = "Xie et al. 2016, ResNeXt, https://arxiv.org/abs/1611.05431"


def _imagenet(
    depth: int,
    groups: int,
    width: int,
    top1: float | None,
    weights: tuple[Weights, ...],
) -> ResNeXtSpec:
    repeats = (3, 4, 6 if depth == 50 else 23, 3)
    return ResNeXtSpec(
        name=f"resnext{depth}_{groups}x{width}d",
        function=f"ResNeXt{depth}G{groups}W{width}",
        rows=imagenet_rows(repeats),
        groups=groups,
        base_width=width,
        top1=top1,
        weights=weights,
    )


def _cifar(groups: int, width: int, release: str, end: str, sha1: str) -> ResNeXtSpec:
    file = f"resnext29_{groups}x{width}d_cifar10-{end}"
    return ResNeXtSpec(
        name=f"resnext_cifar_29_{groups}x{width}d",
        function=f"ResNeXtCifar29G{groups}W{width}",
        rows=cifar_rows(3, (256, 512, 1024)),
        groups=groups,
        base_width=width,
        weights=(pytorchcv(release, file, sha1, CIFAR_RULE, tag="pytorchcv_cifar10"),),
        **{**CIFAR, "stem": (64,)},
    )


# fmt: off
SPECS = (
    _imagenet(50, 32, 4, 77.8, (
        torchvision("v1", "resnext50_32x4d-7cdf4587", TORCH_RULE, 77.618),
        torchvision("v2", "resnext50_32x4d-1a0047aa", TORCH_RULE_232, 81.198),
        pytorchcv("v0.0.498", "resnext50_32x4d-0560",
                  "d7976503d13734114364e0dfef1d22f6d76546d9", TORCH_RULE),
    )),
    _imagenet(101, 32, 4, 78.8, (
        _publishers.timm("gluon_in1k", "gluon_resnext101_32x4d-b253c8c4", IMAGENET,
                         None, source="converted from GluonCV", host=f"{GLUON}/v0.1"),
        pytorchcv("v0.0.530", "resnext101_32x4d-0434",
                  "5ac165981bac62627719b3362b31b456cba05df4", TORCH_RULE),
    )),
    _imagenet(101, 64, 4, 79.6, (
        torchvision("v1", "resnext101_64x4d-173b62eb", TORCH_RULE_232, 83.246),
        pytorchcv("v0.0.544", "resnext101_64x4d-0452",
                  "60d1913ec591af7786056b1d87b3add07fdcf2e1", TORCH_RULE),
    )),
    _imagenet(101, 32, 8, None, (
        torchvision("v1", "resnext101_32x8d-8ba56ff5", TORCH_RULE, 79.312),
        torchvision("v2", "resnext101_32x8d-110c445d", TORCH_RULE_232, 82.834),
    )),
    _cifar(16, 64, "v0.0.176", "0241", "4133d3d04f9b10b132dcb959601d36f10123f8c2"),
    _cifar(32, 4, "v0.0.169", "0315", "30413525cd4466dbef759294eda9b702bc39648f"),
)
# fmt: on


def build(spec: ResNeXtSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5, or c0..c2 for CIFAR; the last is "features"."""
    return layers.residual_network(x, spec, output_stride)


LAYOUTS = {
    "torchvision": Layout(names=torch_names, preprocessing=TORCH_RULE),
    "timm": Layout(names=torch_names, preprocessing=IMAGENET),
    "pytorchcv": Layout(names=pytorchcv_names, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

ResNeXt50G32W4 = make_application(SPECS[0], FAMILY)
ResNeXt101G32W4 = make_application(SPECS[1], FAMILY)
ResNeXt101G64W4 = make_application(SPECS[2], FAMILY)
ResNeXt101G32W8 = make_application(SPECS[3], FAMILY)
ResNeXtCifar29G16W64 = make_application(SPECS[4], FAMILY)
ResNeXtCifar29G32W4 = make_application(SPECS[5], FAMILY)
preprocess_input = make_preprocess(SPECS)
