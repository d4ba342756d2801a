"""RMNet's RepVGG: deep stacks of 3x3 convolutions that carry channels past others."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._repvgg import RepStackSpec, has_identity
from keras_lightnets._residual import TORCH_RULE

__all__ = [
    "RMRepVGG21",
    "RMRepVGG21R025",
    "RMRepVGG37",
    "RMRepVGG37R025",
    "RMRepVGG69",
    "RMRepVGG69R050",
    "RMRepVGG133",
    "RMRepVGG133R075",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True, kw_only=True)
class RMRepVGGSpec(RepStackSpec):
    """A stack of RepVGG blocks as it is trained.

    Every second block behind a strided one hands some of its input's channels on as
    they are. `tools.fuse.reserve.merge_residuals` makes the deployed form, whose
    blocks are one 3x3 convolution each.

    Attributes:
        carried: Share of the channels that such a block hands on.
    """

    reference: str = "Meng et al. 2021, RMNet, https://arxiv.org/abs/2111.00687"
    carried: float = 0.0


def _spec(pairs_per_stage: int, carried: float, top1: float) -> RMRepVGGSpec:
    """Describe a variant; the authors' weights are in a folder without addresses."""
    repeat = 1 + 2 * pairs_per_stage
    depth, share = 1 + 4 * repeat, round(100 * carried)
    return RMRepVGGSpec(
        name=f"rm_repvgg_{depth}" + (f"_r{share:03}" if share else ""),
        function=f"RMRepVGG{depth}" + (f"R{share:03}" if share else ""),
        rows=tuple(StageRow(i + 2, 64 * 2**i, repeat) for i in range(4)),
        carried=carried,
        top1=top1,
    )


SPECS = (
    _spec(2, 0.0, 72.508),
    _spec(2, 0.25, 72.59),
    _spec(4, 0.0, 74.408),
    _spec(4, 0.25, 74.478),
    _spec(8, 0.0, 74.526),
    _spec(8, 0.5, 75.088),
    _spec(16, 0.0, 70.912),
    _spec(16, 0.75, 74.56),
)


def build(spec: RMRepVGGSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; the last is "features"."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.rep_conv(x, spec.channels(spec.stem), spec, "stem", step)
    maps = {"c1": layers.activate(x, "relu", "stem_add")}
    x = maps["c1"]
    for block in spec.blocks:
        step, dilation = stride.step(block.stride)
        x = _block(x, block, spec, step, dilation)
        maps[f"c{block.row.stage}"] = x
    return {**maps, "features": x}


def _block(
    x: Any, block: Block[StageRow], spec: RMRepVGGSpec, stride: int, dilation: int
) -> Any:
    name, carried = block.name, _carried(spec, block)
    identity = x if has_identity(block) else None
    if not carried:
        x = layers.rep_conv(x, block.out, spec, name, stride, 1, dilation, identity)
        return layers.activate(x, "relu", f"{name}_add")
    kept = layers.channel_slice(x, 0, carried, f"{name}_carried")
    rest = layers.channel_slice(x, carried, block.out, f"{name}_rest")
    count = block.out - carried
    x = layers.rep_conv(x, count, spec, name, stride, 1, dilation, rest)
    x = layers.concat([kept, x], name)
    return layers.activate(x, "relu", f"{name}_concat")


def _carried(spec: RMRepVGGSpec, block: Block[StageRow]) -> int:
    """Return how many channels a block hands on."""
    return int(block.out * spec.carried) if block.number % 2 == 0 else 0


_PARTS = {
    "dense_conv": "conv33",
    "dense_bn": "bn33",
    "point_conv": "conv11",
    "point_bn": "bn11",
}


def _authors(spec: RMRepVGGSpec) -> dict[str, str]:
    """Name the layers as fxmeng/RMNet does: one list of blocks, from the stem on."""
    names = pairs("stem", "feature.0.", _PARTS)
    for i, block in enumerate(spec.blocks, start=1):
        identity = {"identity_bn": "bn00"} if has_identity(block) else {}
        names |= pairs(block.name, f"feature.{i}.", {**_PARTS, **identity})
    return names | {"top_classifier": "fc"}


LAYOUTS = {"rmnet": Layout(names=_authors, preprocessing=TORCH_RULE)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

RMRepVGG21 = make_application(SPECS[0], FAMILY)
RMRepVGG21R025 = make_application(SPECS[1], FAMILY)
RMRepVGG37 = make_application(SPECS[2], FAMILY)
RMRepVGG37R025 = make_application(SPECS[3], FAMILY)
RMRepVGG69 = make_application(SPECS[4], FAMILY)
RMRepVGG69R050 = make_application(SPECS[5], FAMILY)
RMRepVGG133 = make_application(SPECS[6], FAMILY)
RMRepVGG133R075 = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
