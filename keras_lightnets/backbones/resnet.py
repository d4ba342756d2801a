"""ResNet: the residual network, for ImageNet and for CIFAR.

The networks named V1 stride in the first 1x1 convolution, as the paper's do; the
others in the 3x3 one, as torchvision's do (often called v1.5). Those for CIFAR take
images of 32 pixels and end at stride 4; pass `classes=10` or `classes=100`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
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
from keras_lightnets._spec import Preprocessing, Weights

__all__ = [
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet50V1",
    "ResNet101",
    "ResNet101V1",
    "ResNet152",
    "ResNet152V1",
    "ResNetCifar20",
    "ResNetCifar20Projection",
    "ResNetCifar32",
    "ResNetCifar32Projection",
    "ResNetCifar44",
    "ResNetCifar44Projection",
    "ResNetCifar56",
    "ResNetCifar56Projection",
    "ResNetCifar110",
    "ResNetCifar110Projection",
    "decode_predictions",
    "preprocess_input",
]

BASIC = (64, 128, 256, 512)
# The caffe files are for images whose channel means alone are subtracted.
CAFFE_RULE = Preprocessing(
    mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), interpolation="bilinear"
)
KERAS_CHANGES = (("bn_epsilon", 1.001e-5), ("bn_momentum", 0.99), ("conv_bias", True))
AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master"


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(ResidualSpec):
    """A ResNet."""

    reference: str = "He et al. 2015, ResNet, https://arxiv.org/abs/1512.03385"


def _torchvision(depth: int, digest: str, top1: float, version: str = "v1") -> Weights:
    rule = TORCH_RULE if version == "v1" else TORCH_RULE_232
    return torchvision(version, f"resnet{depth}-{digest}", rule, top1)


def _pytorchcv(depth: int, release: str, error: str, sha1: str) -> Weights:
    return pytorchcv(release, f"resnet{depth}-{error}", sha1, TORCH_RULE)


def _keras(depth: int, md5: str) -> Weights:
    file = f"resnet{depth}_weights_tf_dim_ordering_tf_kernels"
    path = f"tensorflow/keras-applications/resnet/{file}"
    return _publishers.keras(path, CAFFE_RULE, md5, changes=KERAS_CHANGES)


def _imagenet(
    depth: int, repeats: tuple[int, ...], top1: float, weights: tuple[Weights, ...]
) -> ResNetSpec:
    return ResNetSpec(
        name=f"resnet{depth}",
        function=f"ResNet{depth}",
        rows=imagenet_rows(repeats),
        top1=top1,
        weights=weights,
    )


def _basic(*facts: Any) -> ResNetSpec:
    spec = _imagenet(*facts)
    rows = imagenet_rows(tuple(row.repeat for row in spec.rows), BASIC)
    return dataclasses.replace(spec, rows=rows, unit="basic", ratio=1)


def _first(spec: ResNetSpec, weights: tuple[Weights, ...]) -> ResNetSpec:
    """Return the paper's form, which strides in the first 1x1 convolution."""
    return dataclasses.replace(
        spec,
        name=f"{spec.name}_v1",
        function=f"{spec.function}V1",
        stride_first=True,
        weights=weights,
    )


def _cifar(depth: int, digest: str) -> ResNetSpec:
    """Return a network for CIFAR with shortcuts without weights (option A)."""
    weights = Weights(
        tag="akamaster_cifar10",
        url=f"{AKAMASTER}/pretrained_models/resnet{depth}-{digest}.th",
        hash=f"sha256:{digest}",
        format="pth",
        layout="akamaster",
        licence="BSD-2-Clause",
        preprocessing=dataclasses.replace(TORCH_RULE, size=32, crop=1.0),
        source="akamaster/pytorch_resnet_cifar10, trained on CIFAR-10",
    )
    return ResNetSpec(
        name=f"resnet_cifar_{depth}",
        function=f"ResNetCifar{depth}",
        rows=cifar_rows((depth - 2) // 6, (16, 32, 64)),
        unit="basic",
        ratio=1,
        shortcut="pad",
        weights=(weights,),
        **CIFAR,
    )


def _projection(spec: ResNetSpec, error: str = "", sha1: str = "") -> ResNetSpec:
    """Return the network for CIFAR with 1x1 convolutions as shortcuts (option B)."""
    file = f"resnet{spec.name.rpartition('_')[2]}_cifar10-{error}"
    weights = pytorchcv("v0.0.163", file, sha1, CIFAR_RULE, tag="pytorchcv_cifar10")
    return dataclasses.replace(
        spec,
        name=f"{spec.name}_projection",
        function=f"{spec.function}Projection",
        shortcut="projection",
        weights=(weights,) if sha1 else (),
    )


# fmt: off
R18 = _basic(18, (2, 2, 2, 2), 69.57, (
    _torchvision(18, "f37072fd", 69.758),
    _pytorchcv(18, "v0.0.478", "0896", "77a56f155214819bfc79ff09795370f955b20e6d"),
))
R34 = _basic(34, (3, 4, 6, 3), 73.3, (
    _torchvision(34, "b627a593", 73.314),
    _pytorchcv(34, "v0.0.291", "0780", "3f775482a327e5fc4850fbb77785bfc55e171e5f"),
))
R50 = _imagenet(50, (3, 4, 6, 3), 75.3, (
    _torchvision(50, "0676ba61", 76.13),
    _torchvision(50, "11ad3fa6", 80.858, "v2"),
))
R101 = _imagenet(101, (3, 4, 23, 3), 76.4, (
    _torchvision(101, "63fe2227", 77.374),
    _torchvision(101, "cd907fc2", 81.886, "v2"),
))
R152 = _imagenet(152, (3, 8, 36, 3), 77.0, (
    _torchvision(152, "394f9c45", 78.312),
    _torchvision(152, "f82ba261", 82.284, "v2"),
))
R50V1 = _first(R50, (
    _pytorchcv(50, "v0.0.329", "0633", "b00d1c8e52aa7a2badc705b1545aaf6ccece6ce9"),
    _keras(50, "2cb95161c43110f7111970584f804107"),
))
R101V1 = _first(R101, (
    _pytorchcv(101, "v0.0.499", "0540", "65faf44721096a75fa72b875efb416513f864078"),
    _keras(101, "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
))
R152V1 = _first(R152, (
    _pytorchcv(152, "v0.0.518", "0468", "d46977ddb5660bb523e9f2de50e5d16cef8e3027"),
    _keras(152, "100835be76be38e30d865e96f2aaae62"),
))
C20, C32, C44, C56, C110 = (
    _cifar(20, "12fca82f"),
    _cifar(32, "d509ac18"),
    _cifar(44, "014dd654"),
    _cifar(56, "4bfd9763"),
    _cifar(110, "1d1ed7c2"),
)
# fmt: on

SPECS = (
    *(R50, R18, R34, R101, R152, R50V1, R101V1, R152V1),
    *(C20, C32, C44, C56, C110),
    _projection(C20, "0597", "9b0024ac4c2f374cde2c5052e0d0344a75871cdb"),
    _projection(C32),
    _projection(C44),
    _projection(C56, "0452", "628c42a26fe347b84060136212e018df2bb35e0f"),
    _projection(C110, "0369", "4d6ca1fc02eaeed724f4f596011e391528536049"),
)


def build(spec: ResNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5, or c0..c2 for CIFAR; the last is "features"."""
    return layers.residual_network(x, spec, output_stride)


def _akamaster(spec: ResNetSpec) -> dict[str, str]:
    return torch_names(spec, classifier="linear", shortcut="shortcut")


def _keras_names(spec: ResNetSpec) -> dict[str, str]:
    """Name the layers as keras.applications does, which knows bottlenecks only."""
    names = {"stem_conv": "conv1_conv", "stem_bn": "conv1_bn"}
    for block in spec.blocks():
        parts: dict[str, str] = {}
        for i, part in enumerate(("shortcut", "reduce", "spatial", "expand")):
            if i or resized(block):
                parts |= {f"{part}_conv": f"{i}_conv", f"{part}_bn": f"{i}_bn"}
        theirs = f"conv{block.row.stage}_block{block.number}_"
        names |= pairs(block.name, theirs, parts)
    return names | {"top_classifier": "predictions"}


LAYOUTS = {
    "torchvision": Layout(names=torch_names, preprocessing=TORCH_RULE),
    "pytorchcv": Layout(names=pytorchcv_names, preprocessing=TORCH_RULE),
    "akamaster": Layout(names=_akamaster, preprocessing=TORCH_RULE),
    "keras": Layout(
        names=_keras_names,
        kind="keras",
        bgr="stem_conv",
        changes=KERAS_CHANGES,
        preprocessing=CAFFE_RULE,
    ),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

ResNet50 = make_application(SPECS[0], FAMILY)
ResNet18 = make_application(SPECS[1], FAMILY)
ResNet34 = make_application(SPECS[2], FAMILY)
ResNet101 = make_application(SPECS[3], FAMILY)
ResNet152 = make_application(SPECS[4], FAMILY)
ResNet50V1 = make_application(SPECS[5], FAMILY)
ResNet101V1 = make_application(SPECS[6], FAMILY)
ResNet152V1 = make_application(SPECS[7], FAMILY)
ResNetCifar20 = make_application(SPECS[8], FAMILY)
ResNetCifar32 = make_application(SPECS[9], FAMILY)
ResNetCifar44 = make_application(SPECS[10], FAMILY)
ResNetCifar56 = make_application(SPECS[11], FAMILY)
ResNetCifar110 = make_application(SPECS[12], FAMILY)
ResNetCifar20Projection = make_application(SPECS[13], FAMILY)
ResNetCifar32Projection = make_application(SPECS[14], FAMILY)
ResNetCifar44Projection = make_application(SPECS[15], FAMILY)
ResNetCifar56Projection = make_application(SPECS[16], FAMILY)
ResNetCifar110Projection = make_application(SPECS[17], FAMILY)
preprocess_input = make_preprocess(SPECS)
