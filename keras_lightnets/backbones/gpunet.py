"""GPUNet-P0 and P1: the published networks of PruNet's tiered pruning search."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import EXPANDED_LEVELS, IMAGENET, Level, ModelSpec, Weights

__all__ = ["GPUNetP0", "GPUNetP1", "decode_predictions", "preprocess_input"]


@dataclass(frozen=True)
class Row:
    """One line of the published configuration: one block.

    A ratio of 0 is a plain convolution with normalisation and activation.
    """

    stage: int
    kernel: int
    ratio: float
    out: int
    stride: int


# fmt: off
P0 = (
    #   stage kernel ratio out  stride
    Row(1,    3,     0,     32, 1),
    Row(1,    3,     0,     32, 1),
    Row(2,    3,     0,     64, 2),
    Row(3,    3,     8,     96, 2),
    Row(3,    3,     7.67,  96, 1),
    Row(3,    3,     7.67,  96, 1),
    Row(4,    3,     7.67, 256, 2),
    Row(4,    5,     4.25, 256, 1),
    Row(4,    3,     4.75, 256, 1),
    Row(5,    3,     8,    704, 2),
    Row(5,    5,     3.82, 704, 1),
    Row(5,    3,     3.36, 704, 1),
    Row(5,    3,     2.55, 704, 1),
    Row(6,    3,     5.73, 704, 2),
)
P1 = (
    Row(1,    3,     0,     32, 1),
    Row(1,    3,     0,     32, 1),
    Row(2,    5,     0,     64, 2),
    Row(2,    3,     8,     64, 1),
    Row(2,    3,     8,     64, 1),
    Row(3,    5,     8,     96, 2),
    Row(3,    5,     8,     96, 1),
    Row(4,    5,     8,    256, 2),
    Row(4,    5,     7.5,  256, 1),
    Row(4,    3,     7.88, 256, 1),
    Row(5,    5,     7.88, 704, 2),
    Row(5,    5,     8,    704, 1),
    Row(5,    3,     7.41, 704, 1),
    Row(5,    5,     8,    704, 1),
    Row(6,    5,     7.95, 704, 2),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class GPUNetSpec(ModelSpec):
    """A GPUNet.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution.
        act: Activation.
    """

    rows: tuple[Row, ...] = P0
    levels: tuple[Any, ...] = (*EXPANDED_LEVELS, Level(name="c6", stride=64))
    padding: str = "symmetric"
    bn_momentum: float = 0.9
    reference: str = (
        "Kwon et al. 2022, Tiered Pruning for Efficient Differentiable "
        "Inference-Aware NAS, https://arxiv.org/abs/2209.11785"
    )
    stem: int = 32
    top: int = 1984
    act: str = "relu"


def _weights(name: str, top1: float) -> tuple[Weights, ...]:
    host = "https://api.ngc.nvidia.com/v2/models/nvidia/dle"
    return (
        Weights(
            tag="nvidia_in1k",
            url=f"{host}/gpunet_{name}_pyt_ckpt/versions/21.12.0_amp/zip",
            format="pth.zip",
            layout="nvidia",
            licence="NVIDIA NGC terms of use (code: Apache-2.0)",
            preprocessing=dataclasses.replace(IMAGENET, interpolation="bicubic"),
            top1=top1,
            source="NVIDIA DeepLearningExamples, the authors",
        ),
    )


SPECS = (
    GPUNetSpec(
        name="gpunet_p0",
        function="GPUNetP0",
        top1=80.3,
        weights=_weights("p0", 80.3),
    ),
    GPUNetSpec(
        name="gpunet_p1",
        function="GPUNetP1",
        rows=P1,
        top1=81.1,
        weights=_weights("p1", 81.1),
    ),
)


def build(spec: GPUNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c6, c4_expand and "features" (1984 channels).

    The published network halves the map once more behind c5, so it ends at stride
    64; a smaller output stride holds for c6 as well.
    """
    stride = layers.DilatedStride(64 if output_stride == 32 else output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    maps: dict[str, Any] = {}
    for block in _blocks(spec):
        row, name = block.row, block.name
        sizes = layers.Bottleneck(
            kernel=row.kernel,
            expand=make_divisible(block.channels * row.ratio) if row.ratio else 0,
            out=row.out,
            stride=row.stride,
            act=spec.act,
            always_expand=True,
        )
        if row.ratio:
            x, expanded = layers.inverted_residual(x, sizes, spec, stride, name)
            if row.stage == 5:
                maps.setdefault("c4_expand", expanded)
        else:
            step, dilation = stride.step(row.stride)
            x = layers.conv_bn(
                x, row.out, row.kernel, spec, name, stride=step, dilation=dilation
            )
            x = layers.activate(x, spec.act, name)
        maps[f"c{row.stage}"] = x
    x = layers.conv_bn(x, spec.top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, spec.act, "top")}


def _blocks(spec: GPUNetSpec) -> list[Block[Row]]:
    outs = [row.out for row in spec.rows]
    return expand_rows(spec.rows, channels=spec.stem, outs=outs)


def _nvidia(spec: GPUNetSpec) -> dict[str, str]:
    """Name the layers as NVIDIA: by stage and place in the configuration."""
    names = pairs("stem", "network.head: 2.net.", {"conv": "0", "bn": "1"})
    plain = {"conv": "conv", "bn": "bn1"}
    parts = {"expand_conv": "conv_pw", "expand_bn": "bn1", "dw_conv": "conv_dw"}
    parts |= {"dw_bn": "bn2", "project_conv": "conv_pwl", "project_bn": "bn3"}
    for block in _blocks(spec):
        theirs = f"network.stage: {block.row.stage} layer{block.index + 3}."
        names |= pairs(block.name, theirs, parts if block.row.ratio else plain)
    last = f"network. layer{len(spec.rows) + 3}.net."
    names |= pairs("top", last, {"conv": "0", "bn": "1"})
    return names | {"top_classifier": f"{last}6"}


LAYOUTS = {"nvidia": Layout(names=_nvidia)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

GPUNetP0 = make_application(SPECS[0], FAMILY)
GPUNetP1 = make_application(SPECS[1], FAMILY)
preprocess_input = make_preprocess(SPECS)
