"""Wide ResNet: fewer layers, more channels, for ImageNet and for CIFAR.

Those for CIFAR normalise before they convolve, take images of 32 pixels and end at
stride 4; pass `classes=10` or `classes=100`.
"""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
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
    resized,
    torch_names,
)
from keras_lightnets._spec import Weights

__all__ = [
    "WideResNet50x2",
    "WideResNet101x2",
    "WideResNetCifar16x8",
    "WideResNetCifar16x10",
    "WideResNetCifar28x10",
    "WideResNetCifar40x4",
    "WideResNetCifar40x8",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True, kw_only=True)
class WideResNetSpec(ResidualSpec):
    """A Wide ResNet.

    Attributes:
        preactivated: Whether normalisation and activation stand before the
            convolutions, as in the paper's networks for CIFAR.
        unit_dropout: Rate between a unit's convolutions (section 2.4).
    """

    base_width: int = 128
    preactivated: bool = False
    unit_dropout: float = 0.0
    reference: str = (
        "Zagoruyko and Komodakis 2016, Wide ResNet, https://arxiv.org/abs/1605.07146"
    )


def _imagenet(
    depth: int,
    repeats: tuple[int, ...],
    files: tuple[tuple[str, float], ...],
    top1: float | None,
) -> WideResNetSpec:
    rules = (TORCH_RULE, TORCH_RULE_232)
    return WideResNetSpec(
        name=f"wide_resnet{depth}_2",
        function=f"WideResNet{depth}x2",
        rows=imagenet_rows(repeats),
        top1=top1,
        weights=tuple(
            torchvision(f"v{i}", f"wide_resnet{depth}_2-{digest}", rule, accuracy)
            for i, ((digest, accuracy), rule) in enumerate(
                zip(files, rules, strict=True), start=1
            )
        ),
    )


def _cifar(depth: int, factor: int, *files: tuple[str, str, str]) -> WideResNetSpec:
    """Return a network for CIFAR; files are (release, classes and error, sha1)."""
    weights: list[Weights] = []
    for release, end, sha1 in files:
        tag = f"pytorchcv_{end.partition('-')[0]}"
        file = f"wrn{depth}_{factor}_{end}"
        weights.append(pytorchcv(release, file, sha1, CIFAR_RULE, tag=tag))
    return WideResNetSpec(
        name=f"wide_resnet_cifar_{depth}_{factor}",
        function=f"WideResNetCifar{depth}x{factor}",
        rows=cifar_rows((depth - 4) // 6, tuple(factor * n for n in (16, 32, 64))),
        unit="basic",
        ratio=1,
        preactivated=True,
        bias_exceptions=("stem_conv", "*_shortcut_conv"),
        weights=tuple(weights),
        **CIFAR,
    )


# fmt: off
SPECS = (
    _imagenet(50, (3, 4, 6, 3), (("95faca4d", 78.468), ("9ba9bcbe", 81.602)), 78.1),
    _imagenet(101, (3, 4, 23, 3), (("32ee1156", 78.848), ("d733dc28", 82.51)), None),
    _cifar(16, 8),
    _cifar(16, 10,
        ("v0.0.166", "cifar10-0293", "ce810d8a17a2deb73eddb5bec8709f93278bc53e"),
        ("v0.0.204", "cifar100-1895", "bef9809c845deb1b2bb0c9aaaa7c58bd97740504")),
    _cifar(28, 10,
        ("v0.0.166", "cifar10-0239", "fe97dcd6d0dd8dda8e9e38e6cfa320cffb9955ce"),
        ("v0.0.320", "cifar100-1788", "8c3fe8185d3af9cc3813fe376cab895f6780ac18")),
    _cifar(40, 4),
    _cifar(40, 8,
        ("v0.0.166", "cifar10-0237", "8dc84ec730f35c4b8968a022bc045c0665410840"),
        ("v0.0.321", "cifar100-1803", "0d18bfbff85951d88a881dc6a15ad46f56ea8c28")),
)
# fmt: on


def build(spec: WideResNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5, or c0..c2 for CIFAR.

    "features" is the last of them, normalised and activated where that stands first.
    """
    if not spec.preactivated:
        return layers.residual_network(x, spec, output_stride)
    stride = layers.DilatedStride(output_stride)
    filters = spec.channels(spec.stem[0])
    x = layers.padded_conv(x, filters, spec.stem_kernel, spec, "stem")
    maps = {}
    for block in spec.blocks():
        x = maps[f"c{block.row.stage}"] = _unit(x, block, spec, stride)
    return {**maps, "features": _ready(x, spec, "top")}


def _ready(x: Any, spec: WideResNetSpec, name: str) -> Any:
    return layers.activate(layers.normalise(x, spec, name), spec.act, name)


def _unit(x: Any, block: Block[StageRow], spec: WideResNetSpec, stride: Any) -> Any:
    """Two 3x3 convolutions behind normalisation and activation (figure 1, d)."""
    name, shortcut = block.name, x
    step, dilation = stride.step(block.stride)
    x = _ready(x, spec, f"{name}_first")
    if resized(block):
        part = f"{name}_shortcut"
        shortcut = layers.padded_conv(x, block.out, 1, spec, part, step)
    x = layers.padded_conv(x, block.out, 3, spec, f"{name}_first", step, 1, dilation)
    x = _ready(x, spec, f"{name}_second")
    x = layers.drop(x, spec.unit_dropout, name)
    dilation = stride.dilation
    x = layers.padded_conv(x, block.out, 3, spec, f"{name}_second", 1, 1, dilation)
    return layers.residual(x, shortcut, name)


def _preactivated(spec: WideResNetSpec) -> dict[str, str]:
    """Name the layers of a network for CIFAR as pytorchcv does."""
    names = {"stem_conv": "features.init_block"}
    for block in spec.blocks():
        stage = block.row.stage - spec.rows[0].stage + 1
        theirs = f"features.stage{stage}.unit{block.number}."
        parts: dict[str, str] = {}
        for i, part in enumerate(("first", "second"), start=1):
            parts |= pairs(part, f"body.conv{i}.", {"bn": "bn", "conv": "conv"})
        if resized(block):
            parts["shortcut_conv"] = "identity_conv"
        names |= pairs(block.name, theirs, parts)
    return names | {"top_bn": "features.post_activ.bn", "top_classifier": "output"}


def _torchvision(spec: WideResNetSpec) -> dict[str, str]:
    """Name the layers as torchvision does, or would where it has no such network."""
    names = torch_names(spec)
    if not spec.preactivated:
        return names
    top = names.pop("top_classifier")
    kept = {k: v for k, v in names.items() if "shortcut_bn" not in k}
    return kept | {"top_bn": kept.pop("stem_bn"), "top_classifier": top}


def _pytorchcv(spec: WideResNetSpec) -> dict[str, str]:
    return _preactivated(spec) if spec.preactivated else pytorchcv_names(spec)


LAYOUTS = {
    "torchvision": Layout(names=_torchvision, preprocessing=TORCH_RULE),
    "pytorchcv": Layout(names=_pytorchcv, preprocessing=CIFAR_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

WideResNet50x2 = make_application(SPECS[0], FAMILY)
WideResNet101x2 = make_application(SPECS[1], FAMILY)
WideResNetCifar16x8 = make_application(SPECS[2], FAMILY)
WideResNetCifar16x10 = make_application(SPECS[3], FAMILY)
WideResNetCifar28x10 = make_application(SPECS[4], FAMILY)
WideResNetCifar40x4 = make_application(SPECS[5], FAMILY)
WideResNetCifar40x8 = make_application(SPECS[6], FAMILY)
preprocess_input = make_preprocess(SPECS)
