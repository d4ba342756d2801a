"""SENet: residual networks whose channels are weighed by their means."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._publishers import TIMM, pytorchcv
from keras_lightnets._residual import (
    TORCH_RULE,
    ResidualSpec,
    imagenet_rows,
    pytorchcv_names,
    torch_names,
)
from keras_lightnets._spec import IMAGENET, Weights

__all__ = [
    "SENet154",
    "SEResNeXt50",
    "SEResNeXt101",
    "SEResNet18",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "decode_predictions",
    "preprocess_input",
]

PYTORCHCV_CHANGES = (("stem_pool", (1, 1)),)


@dataclass(frozen=True, kw_only=True)
class SENetSpec(ResidualSpec):
    """A SENet, as the authors' Caffe files have it.

    Attributes:
        reduction: A unit's channels, in multiples of those between the gate's
            convolutions.
        act_first: Whether a basic unit is activated before it is weighed.
    """

    reduction: int = 16
    act_first: bool = False
    stem_pool: tuple[int, int] | None = (0, 1)
    exact_strides: bool = False
    flags_reason: str = "the stem's pool drops an odd row or column"
    reference: str = "Hu et al. 2017, SENet, https://arxiv.org/abs/1709.01507"


def _timm(folder: str, file: str, top1: float | None) -> Weights:
    return _publishers.timm(
        "in1k",
        file,
        IMAGENET if "seresnet18" in file else TORCH_RULE,
        top1,
        source="trained by Ross Wightman"
        if "seresnet18" in file
        else _publishers.CONVERTED,
        host=f"{TIMM}/{folder}",
    )


def _pytorchcv(release: str, file: str, sha1: str) -> Weights:
    return pytorchcv(release, file, sha1, TORCH_RULE, PYTORCHCV_CHANGES)


def _spec(
    end: str, repeats: tuple[int, ...], top1: float, weights: tuple[Weights, ...]
) -> SENetSpec:
    return SENetSpec(
        name=f"se_{end.lower()}",
        function=f"SE{end}",
        rows=imagenet_rows(repeats),
        stride_first=end.startswith("ResNet"),
        groups=32 if end.startswith("ResNeXt") else 1,
        base_width=4 if end.startswith("ResNeXt") else 64,
        top1=top1,
        weights=weights,
    )


# fmt: off
SPECS = (
    _spec("ResNet50", (3, 4, 6, 3), 77.63, (
        _timm("v0.1-cadene", "se_resnet50-ce0d4300", 77.63),
        _pytorchcv("v0.0.441", "seresnet50-0575",
                   "004bfde422c860c4f11b1e1190bb5a8db477d939"),
    )),
    _spec("ResNet101", (3, 4, 23, 3), 78.25, (
        _timm("v0.1-cadene", "se_resnet101-7e38fcc6", 78.25),
        _pytorchcv("v0.0.533", "seresnet101-0460",
                   "37851448605dae67bbf83ff8e7f7e7cc367e1746"),
    )),
    _spec("ResNet152", (3, 8, 36, 3), 78.66, (
        _timm("v0.1-cadene", "se_resnet152-d17c99b7", 78.66),
        _pytorchcv("v0.0.538", "seresnet152-0439",
                   "7a6b02ac25caccb0420eea542c625f9b0bfb3e03"),
    )),
    _spec("ResNeXt50", (3, 4, 6, 3), 79.03, (
        _timm("v0.1-weights", "legacy_se_resnext50_32x4d-f3651bad", 79.03),
        _pytorchcv("v0.0.505", "seresnext50_32x4d-0451",
                   "52029a7f6170873b2d50a7016fba053e98183f7b"),
    )),
    _spec("ResNeXt101", (3, 4, 23, 3), 80.19, (
        _timm("v0.1-weights", "legacy_se_resnext101_32x4d-37725eac", 80.19),
        _pytorchcv("v0.0.529", "seresnext101_32x4d-0467",
                   "c738e758c535fac87027fc4b9271a7cb95442505"),
    )),
    SENetSpec(
        name="senet154",
        function="SENet154",
        rows=imagenet_rows((3, 8, 36, 3)),
        groups=64,
        base_width=4,
        reduce_ratio=0.5,
        shortcut_kernel=3,
        stem=(64, 64, 128),
        dropout=0.2,
        top1=81.32,
        weights=(
            _timm("v0.1-weights", "legacy_senet154-e9eb9fe6", 81.32),
            _pytorchcv("v0.0.522", "senet154-0455",
                       "95dbccbe56dc93c4544e6d1c6673f09425a4cee2"),
        ),
    ),
    SENetSpec(
        name="se_resnet18",
        function="SEResNet18",
        rows=imagenet_rows((2, 2, 2, 2), (64, 128, 256, 512)),
        unit="basic",
        ratio=1,
        act_first=True,
        weights=(_timm("v0.1-weights", "seresnet18-4bb0ce65", None),),
    ),
)
# fmt: on


def build(spec: SENetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; c5 is also "features"."""
    return layers.residual_network(x, spec, output_stride, attend=_gate)


def _gate(x: Any, spec: SENetSpec, block: Block[StageRow]) -> Any:
    if spec.act_first:
        x = layers.activate(x, spec.act, f"{block.name}_second")
    reduced = block.out // spec.reduction
    return layers.squeeze_excite(x, reduced, f"{block.name}_se", gate="sigmoid")


def _timm_names(spec: SENetSpec) -> dict[str, str]:
    gate = {"se_squeeze_conv": "se_module.fc1", "se_excite_conv": "se_module.fc2"}
    names = torch_names(spec, lambda _: gate, "layer0.", "last_linear")
    if len(spec.stem) == 1:
        return names
    for i in (1, 2, 3):
        names[f"stem_{i}_conv"] = f"layer0.conv{i}"
        names[f"stem_{i}_bn"] = f"layer0.bn{i}"
    return names


def _pytorchcv_names(spec: SENetSpec) -> dict[str, str]:
    gate = {"se_squeeze_conv": "se.conv1", "se_excite_conv": "se.conv2"}
    top = "output" if len(spec.stem) == 1 else "output.fc"
    return pytorchcv_names(spec, lambda _: gate, top)


LAYOUTS = {
    "timm": Layout(names=_timm_names, preprocessing=TORCH_RULE),
    "pytorchcv": Layout(
        names=_pytorchcv_names, changes=PYTORCHCV_CHANGES, preprocessing=TORCH_RULE
    ),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

SEResNet50 = make_application(SPECS[0], FAMILY)
SEResNet101 = make_application(SPECS[1], FAMILY)
SEResNet152 = make_application(SPECS[2], FAMILY)
SEResNeXt50 = make_application(SPECS[3], FAMILY)
SEResNeXt101 = make_application(SPECS[4], FAMILY)
SENet154 = make_application(SPECS[5], FAMILY)
SEResNet18 = make_application(SPECS[6], FAMILY)
preprocess_input = make_preprocess(SPECS)
