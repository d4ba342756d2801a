"""SqueezeNet: fire modules, a few 1x1 convolutions in front of 1x1 and 3x3."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import (
    IMAGENET,
    LEVELS,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = ["SqueezeNet10", "SqueezeNet11", "decode_predictions", "preprocess_input"]


@dataclass(frozen=True)
class Row:
    """Fire modules of the paper's table 1 with the same channels.

    `expand` is the channels of each of the two expanding convolutions.
    """

    stage: int
    squeeze: int
    expand: int
    repeat: int


# A max pool stands before the first row of each stage.
# fmt: off
V10 = (
    #   stage squeeze expand repeat
    Row(2,    16,      64,   2),
    Row(2,    32,     128,   1),
    Row(3,    32,     128,   1),
    Row(3,    48,     192,   2),
    Row(3,    64,     256,   1),
    Row(4,    64,     256,   1),
)
V11 = (
    Row(2,    16,      64,   2),
    Row(3,    32,     128,   2),
    Row(4,    48,     192,   2),
    Row(4,    64,     256,   2),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class SqueezeNetSpec(ModelSpec):
    """A SqueezeNet, without normalisation, so every convolution has a bias.

    Attributes:
        stem: Channels of the stem.
        stem_kernel: Side of the stem's kernel.
    """

    rows: tuple[Row, ...] = V10
    levels: tuple[Any, ...] = LEVELS[:4]
    padding: str = "symmetric"
    dropout: float = 0.5
    exact_strides: bool = False
    flags_reason: str = "stem and pools are not padded"
    reference: str = "Iandola et al. 2016, SqueezeNet, https://arxiv.org/abs/1602.07360"
    stem: int = 96
    stem_kernel: int = 7

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE


TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")


def _weights(
    file: str, top1: float, release: str, name: str, sha1: str
) -> tuple[Weights, ...]:
    host = "https://github.com/osmr/imgclsmob/releases/download"
    return (
        Weights(
            tag="torchvision_v1",
            url=f"https://download.pytorch.org/models/{file}.pth",
            hash=f"sha256:{file.rpartition('-')[2]}",
            format="pth",
            layout="torchvision",
            licence="BSD-3-Clause",
            preprocessing=TORCH_RULE,
            top1=top1,
            source="torchvision",
        ),
        Weights(
            tag="pytorchcv_in1k",
            url=f"{host}/{release}/{name}-{sha1[:8]}.pth.zip",
            hash=f"sha1:{sha1}",
            format="pth.zip",
            layout="pytorchcv",
            licence="MIT",
            preprocessing=TORCH_RULE,
            source="pytorchcv (osmr/imgclsmob)",
        ),
    )


SPECS = (
    SqueezeNetSpec(
        name="squeezenet_1_0",
        function="SqueezeNet10",
        top1=57.5,
        weights=_weights(
            "squeezenet1_0-b66bff10",
            58.092,
            "v0.0.128",
            "squeezenet_v1_0-1766",
            "afdbcf1aef39237300656d2c5a7dba19230e29fc",
        ),
    ),
    SqueezeNetSpec(
        name="squeezenet_1_1",
        function="SqueezeNet11",
        rows=V11,
        stem=64,
        stem_kernel=3,
        top1=57.5,
        weights=_weights(
            "squeezenet1_1-b8a52dc0",
            58.178,
            "v0.0.88",
            "squeezenet_v1_1-1772",
            "25b77bc39e35612abbe7c2344d2c3e1e6756c2f8",
        ),
    ),
)


def build(spec: SqueezeNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c4; "features" is c4, at stride 16."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.bias_conv(x, spec.stem, "stem", kernel=spec.stem_kernel, stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {"c1": x}
    for row, name, first in _fires(spec):
        if first:
            step, _ = stride.step(2)
            # Without padding, but sides round up: floor(side / 2) in all.
            x = layers.max_pool(x, 3, step, (0, 1), name)
        x = _fire(x, row, stride.dilation, name)
        maps[f"c{row.stage}"] = x
    return {**maps, "features": x}


def classifier(spec: SqueezeNetSpec, x: Any, classes: int) -> Any:
    """Make the logits: dropout, 1x1 convolution, ReLU, mean."""
    return layers.conv_classifier(x, classes, spec.dropout)


def _fire(x: Any, row: Row, dilation: int, name: str) -> Any:
    """Fire module (section 3.2): squeeze, then expand by 1x1 and by 3x3."""
    part = f"{name}_squeeze"
    x = layers.activate(layers.bias_conv(x, row.squeeze, part), "relu", part)
    ways = []
    for kernel, part in ((1, f"{name}_expand1"), (3, f"{name}_expand3")):
        rate = dilation if kernel == 3 else 1
        y = layers.bias_conv(x, row.expand, part, kernel=kernel, dilation=rate)
        ways.append(layers.activate(y, "relu", part))
    return layers.concat(ways, name)


def _fires(spec: SqueezeNetSpec) -> list[tuple[Row, str, bool]]:
    """Return each module's row, name, and whether it is the first of its stage."""
    fires: list[tuple[Row, str, bool]] = []
    for row in spec.rows:
        for _ in range(row.repeat):
            number = 1 + sum(other.stage == row.stage for other, _, _ in fires)
            fires.append((row, f"stage{row.stage}_block{number}", number == 1))
    return fires


def _torchvision(spec: SqueezeNetSpec) -> dict[str, str]:
    names, index = {"stem_conv": "features.0"}, 1
    parts = {"squeeze_conv": "squeeze", "expand1_conv": "expand1x1"}
    parts |= {"expand3_conv": "expand3x3"}
    for _, name, first in _fires(spec):
        index += 2 if first else 1
        names |= pairs(name, f"features.{index}.", parts)
    return names | {"top_classifier": "classifier.1"}


def _pytorchcv(spec: SqueezeNetSpec) -> dict[str, str]:
    names = {"stem_conv": "features.init_block.conv"}
    parts = {"squeeze_conv": "squeeze.conv", "expand1_conv": "expand1x1.conv"}
    parts |= {"expand3_conv": "expand3x3.conv"}
    for _, name, _ in _fires(spec):
        stage, number = name.removeprefix("stage").split("_block")
        theirs = f"features.stage{int(stage) - 1}.unit{number}."
        names |= pairs(name, theirs, parts)
    return names | {"top_classifier": "output.final_conv"}


LAYOUTS = {
    "torchvision": Layout(names=_torchvision, preprocessing=TORCH_RULE),
    "pytorchcv": Layout(names=_pytorchcv, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, classifier=classifier)

SqueezeNet10 = make_application(SPECS[0], FAMILY)
SqueezeNet11 = make_application(SPECS[1], FAMILY)
preprocess_input = make_preprocess(SPECS)
