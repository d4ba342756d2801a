"""RMNeXt: residual units of grouped convolutions that deploy without additions."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._residual import TORCH_RULE
from keras_lightnets._spec import ModelSpec, Preprocessing

__all__ = [
    "RMNeXt41E5W16",
    "RMNeXt50E5W32",
    "RMNeXt50E6W32",
    "RMNeXt101E6W16",
    "RMNeXt152E6W32",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True, kw_only=True)
class RMNeXtSpec(ModelSpec):
    """An RMNeXt as it is trained.

    `tools.fuse.reserve.merge_residuals` makes the deployed form, whose units have
    `expand` times their output channels within.

    Attributes:
        stem: Channels of both strided blocks of the stem.
        expand: Channels within a deployed unit, in multiples of its output; those
            that carry its input are left out here.
        group: Channels per group of the first stage; doubles with the channels.
    """

    rows: tuple[StageRow, ...]
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    fusable: bool = True
    reference: str = "Meng et al. 2021, RMNet, https://arxiv.org/abs/2111.00687"
    stem: int = 64
    expand: int = 5
    group: int = 16

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, the authors'."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE


def _spec(
    depth: int, repeats: tuple[int, ...], expand: int, group: int, top1: float
) -> RMNeXtSpec:
    """Describe a variant; the authors' weights are in a folder without addresses."""
    rows = tuple(
        StageRow(i + 2, 64 * 2**i, repeat, 1 if i == 0 else 2)
        for i, repeat in enumerate(repeats)
    )
    return RMNeXtSpec(
        name=f"rmnext{depth}_{expand}x{group}",
        function=f"RMNeXt{depth}E{expand}W{group}",
        rows=rows,
        expand=expand,
        group=group,
        top1=top1,
    )


SPECS = (
    _spec(41, (2, 3, 5, 3), 5, 16, 78.498),
    _spec(50, (3, 4, 6, 3), 5, 32, 79.076),
    _spec(50, (3, 4, 6, 3), 6, 32, 79.57),
    _spec(101, (3, 4, 23, 3), 6, 16, 80.07),
    _spec(152, (3, 8, 36, 3), 6, 32, 80.356),
)


def build(spec: RMNeXtSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; the last is "features"."""
    stride = layers.DilatedStride(output_stride)
    maps: dict[str, Any] = {}
    for i in (1, 2):
        step, _ = stride.step(2)
        name, count = f"stem_{i}", spec.channels(spec.stem)
        x = layers.rep_conv(x, count, spec, name, step)
        x = maps[f"c{i}"] = layers.activate(x, "relu", f"{name}_add")
    for block in _blocks(spec):
        x = maps[f"c{block.row.stage}"] = _unit(x, block, spec, stride)
    return {**maps, "features": x}


def _unit(
    x: Any, block: Block[StageRow], spec: RMNeXtSpec, stride: layers.DilatedStride
) -> Any:
    name, shortcut, mid = block.name, x, block.out * (spec.expand - 1)
    step, dilation = stride.step(block.stride)
    groups = mid // (spec.group * 2 ** (block.row.stage - 2))
    x = layers.conv_bn(x, mid, 1, spec, f"{name}_reduce")
    x = layers.activate(x, "relu", f"{name}_reduce")
    part = f"{name}_spatial"
    x = layers.conv_bn(x, mid, 3, spec, part, step, groups, dilation)
    x = layers.activate(x, "relu", part)
    x = layers.conv_bn(x, block.out, 1, spec, f"{name}_expand")
    if _resized(block):
        shortcut = layers.conv_bn(
            shortcut, block.out, 1, spec, f"{name}_shortcut", step
        )
    return layers.activate(layers.residual(x, shortcut, name), "relu", f"{name}_add")


def _resized(block: Block[StageRow]) -> bool:
    return block.stride > 1 or block.channels != block.out


def _blocks(spec: RMNeXtSpec) -> list[Block[StageRow]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


_STEM = {
    "dense_conv": "conv33",
    "dense_bn": "bn33",
    "point_conv": "conv11",
    "point_bn": "bn11",
}


def _authors(spec: RMNeXtSpec) -> dict[str, str]:
    """Name the layers as fxmeng/RMNet does."""
    names: dict[str, str] = {}
    for i in (0, 1):
        names |= pairs(f"stem_{i + 1}", f"layer0.{i}.", _STEM)
    for block in _blocks(spec):
        parts: dict[str, str] = {}
        for i, part in enumerate(("reduce", "spatial", "expand"), 1):
            parts |= {f"{part}_conv": f"conv{i}", f"{part}_bn": f"bn{i}"}
        if _resized(block):
            parts |= {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
        prefix = f"layer{block.row.stage - 1}.{block.number - 1}."
        names |= pairs(block.name, prefix, parts)
    return names | {"top_classifier": "fc"}


LAYOUTS = {
    # `running1` and `running2` only record statistics of a unit's ends.
    "rmnet": Layout(names=_authors, unused=("*.running?",), preprocessing=TORCH_RULE)
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

RMNeXt41E5W16 = make_application(SPECS[0], FAMILY)
RMNeXt50E5W32 = make_application(SPECS[1], FAMILY)
RMNeXt50E6W32 = make_application(SPECS[2], FAMILY)
RMNeXt101E6W16 = make_application(SPECS[3], FAMILY)
RMNeXt152E6W32 = make_application(SPECS[4], FAMILY)
preprocess_input = make_preprocess(SPECS)
