"""VGG with batch normalisation: stacks of 3x3 convolutions, for ImageNet and CIFAR.

Those for CIFAR, on which pruning methods are compared, take images of 32 pixels and
have one dense layer; pass `classes=10` or `classes=100`.
"""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._publishers import pytorchcv, torchvision
from keras_lightnets._residual import CIFAR_RULE, TORCH_RULE
from keras_lightnets._spec import ModelSpec, Preprocessing

__all__ = [
    "VGG11BN",
    "VGG13BN",
    "VGG16BN",
    "VGG19BN",
    "VGGCifar11",
    "VGGCifar13",
    "VGGCifar16",
    "VGGCifar19",
    "decode_predictions",
    "preprocess_input",
]

OUTS = (64, 128, 256, 512, 512)
TORCH_CHANGES = (("conv_bias", True),)


@dataclass(frozen=True)
class Row:
    """Convolutions of one size; `stage` 1 stands at stride 1, before a pool."""

    stage: int
    out: int
    repeat: int


@dataclass(frozen=True, kw_only=True)
class VGGSpec(ModelSpec):
    """A VGG with batch normalisation.

    Attributes:
        hidden: Widths of the dense layers before the classifier.
        cells: Cells per side that the dense layers read.
    """

    rows: tuple[Row, ...]
    hidden: tuple[int, ...] = (4096, 4096)
    cells: int = 7
    output_strides: tuple[int, ...] = (32,)
    exact_strides: bool = False
    flags_reason: str = "pools drop an odd row or column"
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.5
    reference: str = "Simonyan and Zisserman 2014, VGG, https://arxiv.org/abs/1409.1556"

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation: ImageNet's, or CIFAR-10's for images of 32 pixels."""
        if self.weights:
            return self.weights[0].preprocessing
        return CIFAR_RULE if self.default_size == 32 else TORCH_RULE


REPEATS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def _rows(depth: int) -> tuple[Row, ...]:
    stages = zip(OUTS, REPEATS[depth], strict=True)
    return tuple(Row(i, out, count) for i, (out, count) in enumerate(stages, start=1))


def _imagenet(
    depth: int, digest: str, top1: float, release: str, end: str, sha1: str
) -> VGGSpec:
    file = f"vgg{depth}_bn-{digest}"
    return VGGSpec(
        name=f"vgg{depth}_bn",
        function=f"VGG{depth}BN",
        rows=_rows(depth),
        weights=(
            torchvision("v1", file, TORCH_RULE, top1, TORCH_CHANGES),
            pytorchcv(release, f"bn_vgg{depth}-{end}", sha1, TORCH_RULE),
        ),
    )


def _cifar(depth: int) -> VGGSpec:
    return VGGSpec(
        name=f"vgg_cifar_{depth}",
        function=f"VGGCifar{depth}",
        rows=_rows(depth),
        default_size=32,
        hidden=(),
        cells=1,
        dropout=0.0,
    )


# fmt: off
SPECS = (
    _imagenet(16, "6c64b313", 73.36, "v0.0.359", "0779",
              "0f570b928b180f909fa39df3924f89c746816722"),
    _imagenet(11, "6002323d", 70.37, "v0.0.339", "0961",
              "10f01fba064ec168df074b98d59ae7b82b1207d4"),
    _imagenet(13, "abd245e5", 71.586, "v0.0.353", "0913",
              "b1acd7158e6e9973ce9e274c65ceb64a244f9967"),
    _imagenet(19, "c79401a0", 74.218, "v0.0.360", "0712",
              "3f286cbd2a57abb4c516425c5e095c2cfc8d54e3"),
    _cifar(11), _cifar(13), _cifar(16), _cifar(19),
)
# fmt: on


def build(spec: VGGSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c4 before the pools, c5 behind the last of them."""
    maps = {}
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            name = f"stage{row.stage}_block{number}"
            x = layers.conv_bn(x, spec.channels(row.out), 3, spec, name)
            x = layers.activate(x, "relu", name)
        if row.stage > 1:
            maps[f"c{row.stage - 1}"] = x
        x = layers.max_pool(x, 2, 2, (0, 0), name)
    return {**maps, "c5": x, "features": x}


def classify(spec: VGGSpec, x: Any, classes: int) -> Any:
    """Make the logits: dense layers with ReLU, or one on the means."""
    if not spec.hidden:
        return layers.dense_classifier(layers.global_pool(x), classes, spec.dropout)
    x = layers.adaptive_pool(x, spec.cells, "top")
    drops = (0.0, *(spec.dropout for _ in spec.hidden))
    return layers.hidden_classifier(x, spec.hidden, classes, drops)


def _names(
    spec: VGGSpec, unit: tuple[str, str], dense: tuple[str, ...], only: str = ""
) -> dict[str, str]:
    """Name the layers; a unit's patterns have places for a count, stage, number.

    The count is that of PyTorch's modules; `only` is the classifier of a network
    with one dense layer.
    """
    names, place = {}, 0
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            name = f"stage{row.stage}_block{number}"
            for part, pattern in zip(("conv", "bn"), unit, strict=True):
                names[f"{name}_{part}"] = pattern.format(place, row.stage, number)
                place += 1
            place += 1
        place += 1
    if not spec.hidden:
        return names | {"top_classifier": only or dense[-1]}
    for i, key in enumerate(dense[:-1], start=1):
        names[f"top_hidden{i}_classifier"] = key
    return names | {"top_classifier": dense[-1]}


def _torchvision(spec: VGGSpec) -> dict[str, str]:
    dense = ("classifier.0", "classifier.3", "classifier.6")
    return _names(spec, ("features.{0}", "features.{0}"), dense, "classifier")


def _pytorchcv(spec: VGGSpec) -> dict[str, str]:
    unit = "features.stage{1}.unit{2}."
    dense = ("output.fc1.fc", "output.fc2.fc", "output.fc3")
    return _names(spec, (f"{unit}conv", f"{unit}bn"), dense)


_TOP = ("top_hidden1_classifier", "top_hidden2_classifier", "top_classifier")
LAYOUTS = {
    "torchvision": Layout(
        names=_torchvision, top=_TOP, changes=TORCH_CHANGES, preprocessing=TORCH_RULE
    ),
    "pytorchcv": Layout(names=_pytorchcv, top=_TOP, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, classifier=classify)

VGG16BN = make_application(SPECS[0], FAMILY)
VGG11BN = make_application(SPECS[1], FAMILY)
VGG13BN = make_application(SPECS[2], FAMILY)
VGG19BN = make_application(SPECS[3], FAMILY)
VGGCifar11 = make_application(SPECS[4], FAMILY)
VGGCifar13 = make_application(SPECS[5], FAMILY)
VGGCifar16 = make_application(SPECS[6], FAMILY)
VGGCifar19 = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
