"""ECA-Net: residual networks whose channels are weighed by their neighbours' means."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._publishers import TIMM
from keras_lightnets._residual import (
    TORCH_RULE,
    ResidualSpec,
    imagenet_rows,
    torch_names,
)
from keras_lightnets._spec import IMAGENET, Preprocessing, Weights

__all__ = [
    "ECAResNet18",
    "ECAResNet26T",
    "ECAResNet34",
    "ECAResNet50",
    "ECAResNet50D",
    "ECAResNet50T",
    "ECAResNet101",
    "ECAResNet101D",
    "ECAResNet152",
    "ECAResNetLight",
    "decode_predictions",
    "preprocess_input",
]

BASIC = (64, 128, 256, 512)
HUB = "https://github.com/huggingface/pytorch-image-models/releases/download"


@dataclass(frozen=True, kw_only=True)
class ECANetSpec(ResidualSpec):
    """An ECA-Net.

    Attributes:
        kernels: Sides of the gates' kernels in stages 2 to 5; 0 for the adaptive
            rule, `layers.eca_kernel`.
    """

    kernels: tuple[int, int, int, int] = (0, 0, 0, 0)
    bias_exceptions: tuple[str, ...] = ("*_eca_conv",)
    reference: str = "Wang et al. 2020, ECA-Net, https://arxiv.org/abs/1910.03151"


def _authors(
    depth: int,
    repeats: tuple[int, ...],
    kernels: tuple[int, int, int, int],
    top1: float,
) -> ECANetSpec:
    """Return a network of the paper; the authors' files have no stable address."""
    basic = depth < 50
    return ECANetSpec(
        name=f"eca_resnet{depth}",
        function=f"ECAResNet{depth}",
        rows=imagenet_rows(repeats, BASIC) if basic else imagenet_rows(repeats),
        unit="basic" if basic else "bottleneck",
        ratio=1 if basic else 4,
        kernels=kernels,
        top1=top1,
    )


def _timm(
    end: str, repeats: tuple[int, ...], stem: tuple[int, ...], weights: Weights
) -> ECANetSpec:
    """Return a network of timm: ResNet-D's shortcuts, the adaptive rule."""
    return ECANetSpec(
        name=f"eca_resnet{end.lower()}",
        function=f"ECAResNet{end}",
        rows=imagenet_rows(repeats),
        stem=stem,
        shortcut="pool",
        output_strides=(32,),
        default_size=weights.preprocessing.size,
        weights=(weights,),
    )


def _rule(size: int, crop: float = 0.875) -> Preprocessing:
    return dataclasses.replace(IMAGENET, size=size, crop=crop)


def _file(
    tag: str, host: str, file: str, rule: Preprocessing = IMAGENET, source: str = ""
) -> Weights:
    text = source or "trained by Ross Wightman"
    return _publishers.timm(tag, file, rule, None, source=text, host=host)


MIIL = "trained by Alibaba's MIIL group"
# fmt: off
SPECS = (
    _authors(50, (3, 4, 6, 3), (3, 5, 5, 7), 77.42),
    _authors(18, (2, 2, 2, 2), (3, 5, 7, 7), 70.92),
    _authors(34, (3, 4, 6, 3), (3, 3, 5, 7), 74.21),
    _authors(101, (3, 4, 23, 3), (3, 3, 5, 7), 78.65),
    _authors(152, (3, 8, 36, 3), (3, 3, 5, 7), 78.92),
    _timm("26T", (2, 2, 2, 2), (24, 32, 64), _file(
        "ra2_in1k", f"{TIMM}/v0.1-weights", "ecaresnet26t_ra2-46609757", _rule(256))),
    _timm("50T", (3, 4, 6, 3), (24, 32, 64), _file(
        "a1_in1k", f"{HUB}/v0.1-rsb-weights", "ecaresnet50t_a1_0-99bd76a8",
        _rule(224, 0.95))),
    _timm("50D", (3, 4, 6, 3), (32, 32, 64), _file(
        "miil_in1k", f"{TIMM}/v0.1-tresnet", "ecaresnet50d-93c81e3b", source=MIIL)),
    _timm("101D", (3, 4, 23, 3), (32, 32, 64), _file(
        "miil_in1k", f"{TIMM}/v0.1-tresnet", "ecaresnet101d-153dad65", source=MIIL)),
    _timm("Light", (1, 1, 11, 3), (64,), _file(
        "miil_in1k", f"{TIMM}/v0.1-tresnet", "ecaresnetlight-75a9c627", source=MIIL)),
)
# fmt: on


def build(spec: ECANetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; c5 is also "features"."""
    return layers.residual_network(x, spec, output_stride, attend=_gate)


def _gate(x: Any, spec: ECANetSpec, block: Block[StageRow]) -> Any:
    kernel = spec.kernels[block.row.stage - 2]
    return layers.efficient_attention(x, f"{block.name}_eca", kernel)


def _authors_names(spec: ECANetSpec) -> dict[str, str]:
    return torch_names(spec, lambda _: {"eca_conv": "eca.conv"})


def _timm_names(spec: ECANetSpec) -> dict[str, str]:
    return torch_names(spec, lambda _: {"eca_conv": "se.conv"})


LAYOUTS = {
    "authors": Layout(names=_authors_names, preprocessing=TORCH_RULE),
    "timm": Layout(names=_timm_names, preprocessing=IMAGENET),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

ECAResNet50 = make_application(SPECS[0], FAMILY)
ECAResNet18 = make_application(SPECS[1], FAMILY)
ECAResNet34 = make_application(SPECS[2], FAMILY)
ECAResNet101 = make_application(SPECS[3], FAMILY)
ECAResNet152 = make_application(SPECS[4], FAMILY)
ECAResNet26T = make_application(SPECS[5], FAMILY)
ECAResNet50T = make_application(SPECS[6], FAMILY)
ECAResNet50D = make_application(SPECS[7], FAMILY)
ECAResNet101D = make_application(SPECS[8], FAMILY)
ECAResNetLight = make_application(SPECS[9], FAMILY)
preprocess_input = make_preprocess(SPECS)
