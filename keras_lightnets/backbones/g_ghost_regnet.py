"""G-Ghost-RegNet: stages whose features partly come from their first block."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing, Weights

__all__ = [
    "GGhostRegNetX002",
    "GGhostRegNetX004",
    "GGhostRegNetX006",
    "GGhostRegNetX008",
    "GGhostRegNetX016",
    "GGhostRegNetX032",
    "GGhostRegNetX040",
    "GGhostRegNetX064",
    "GGhostRegNetX080",
    "GGhostRegNetX120",
    "GGhostRegNetX160",
    "decode_predictions",
    "preprocess_input",
]

HUAWEI = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download"
TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")


@dataclass(frozen=True, kw_only=True)
class GGhostRegNetSpec(ModelSpec):
    """A G-Ghost-RegNetX.

    Attributes:
        stem: Channels of the stem.
        group_width: Channels per group of the 3x3 convolutions.
        ghost_share: Share of the group width in a ghost stage's chain.
        cheap_share: Share of a ghost stage's channels that are cheap, at least.
    """

    stem: int = 32
    group_width: int
    ghost_share: float = 0.75
    cheap_share: float = 0.5
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dynamic_size: bool = False
    flags_reason: str = "the channel split needs a known size"
    reference: str = "Han et al. 2022, GhostNets, https://arxiv.org/abs/2201.03297"

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, the authors' for every variant."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE


def _spec(
    size: str,
    group_width: int,
    repeats: tuple[int, ...],
    outs: tuple[int, ...],
    file: str = "",
) -> GGhostRegNetSpec:
    """Describe a network of the authors' file; `file` names its checkpoint."""
    top1 = float(file.rpartition("_")[2]) if file else None
    weights = Weights(
        tag="huawei_in1k",
        url=f"{HUAWEI}/g_ghost_regnet/g_ghost_regnet_{file}.pth",
        format="pth",
        layout="huawei",
        licence="Apache-2.0",
        preprocessing=TORCH_RULE,
        top1=top1,
        source="Huawei Noah's Ark Lab, the authors",
    )
    stages = zip(outs, repeats, strict=True)
    return GGhostRegNetSpec(
        name=f"g_ghost_regnetx_{size}",
        function=f"GGhostRegNetX{size}",
        rows=tuple(StageRow(i, out, count) for i, (out, count) in enumerate(stages, 2)),
        group_width=group_width,
        top1=top1,
        weights=(weights,) if file else (),
    )


SPECS = (
    _spec("002", 8, (1, 1, 4, 7), (24, 56, 152, 368)),
    _spec("004", 16, (1, 2, 7, 12), (32, 64, 160, 384)),
    _spec("006", 24, (1, 3, 5, 7), (48, 96, 240, 528)),
    _spec("008", 16, (1, 3, 7, 5), (64, 128, 288, 672)),
    _spec("016", 24, (2, 4, 10, 2), (72, 168, 408, 912)),
    _spec("032", 48, (2, 6, 15, 2), (96, 192, 432, 1008), "3.2g_77.8"),
    _spec("040", 40, (2, 5, 14, 2), (80, 240, 560, 1360), "4.0g_78.6"),
    _spec("064", 56, (2, 4, 10, 1), (168, 392, 784, 1624)),
    _spec("080", 120, (2, 5, 15, 1), (80, 240, 720, 1920), "8.0g_79.0"),
    _spec("120", 112, (2, 5, 11, 1), (224, 448, 896, 2240)),
    _spec("160", 128, (2, 6, 13, 1), (256, 512, 896, 2048), "16.0g_79.9"),
)


def build(spec: GGhostRegNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; c5 is also "features"."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    maps = {"c1": layers.activate(x, "relu", "stem")}
    x = maps["c1"]
    for row in spec.rows:
        stage = _ghost_stage if _is_ghost(row) else _plain_stage
        x = maps[f"c{row.stage}"] = stage(x, row, spec, stride)
    return {**maps, "features": x}


def _plain_stage(x: Any, row: StageRow, spec: GGhostRegNetSpec, stride: Any) -> Any:
    for number in range(1, row.repeat + 1):
        step = stride.step(row.stride if number == 1 else 1)
        x = _block(x, row.out, spec.group_width, spec, _name(row, number), step)
    return x


def _ghost_stage(x: Any, row: StageRow, spec: GGhostRegNetSpec, stride: Any) -> Any:
    """First block; a chain on its lower channels; cheap upper ones; last block.

    The cheap channels come from the first block's, by a 1x1 convolution, and from
    the means of every block's output (section 4.2).
    """
    width = spec.group_width
    step = stride.step(row.stride)
    x = _block(x, row.out, width, spec, _name(row, 1), step)
    # The chain's groups are narrower, and it has whole groups.
    narrow = int(width * spec.ghost_share)
    raw = int(row.out * (1 - spec.cheap_share) / narrow) * narrow
    outputs = [x]
    chain, cheap = layers.channel_split(x, _name(row, 1), left=raw)
    for number in range(2, row.repeat):
        step = (1, stride.dilation)
        chain = _block(chain, raw, narrow, spec, _name(row, number), step)
        outputs.append(chain)
    name = _name(row, row.repeat)
    part = f"{name}_cheap"
    cheap = layers.conv_bn(cheap, row.out - raw, 1, spec, part)
    cheap = layers.residual(_mix(outputs, row.out - raw, spec, name), cheap, part)
    x = layers.concat([chain, layers.activate(cheap, "relu", part)], name)
    return _block(x, row.out, width, spec, name, (1, stride.dilation))


def _mix(outputs: list[Any], filters: int, spec: GGhostRegNetSpec, name: str) -> Any:
    """Return one value per cheap channel, from the means of all outputs."""
    part = f"{name}_mix"
    means = [layers.global_pool(x, f"{part}{i}") for i, x in enumerate(outputs, 1)]
    x = layers.concat(means, part)
    x = layers.conv_bn(x, filters, 1, spec, f"{part}_squeeze")
    x = layers.activate(x, "relu", f"{part}_squeeze")
    return layers.conv_bn(x, filters, 1, spec, f"{part}_excite")


def _block(
    x: Any,
    out: int,
    group_width: int,
    spec: GGhostRegNetSpec,
    name: str,
    step: tuple[int, int],
) -> Any:
    """RegNet's block: 1x1, grouped 3x3, linear 1x1, shortcut, ReLU."""
    stride, dilation = step
    shortcut = x
    if stride > 1 or x.shape[-1] != out:
        shortcut = layers.conv_bn(x, out, 1, spec, f"{name}_shortcut", stride)
    x = layers.conv_bn(x, out, 1, spec, f"{name}_reduce")
    x = layers.activate(x, "relu", f"{name}_reduce")
    groups = out // min(out, group_width)
    part = f"{name}_group"
    x = layers.conv_bn(x, out, 3, spec, part, stride, groups, dilation)
    x = layers.activate(x, "relu", part)
    x = layers.conv_bn(x, out, 1, spec, f"{name}_expand")
    return layers.activate(layers.residual(x, shortcut, name), "relu", f"{name}_add")


def _is_ghost(row: StageRow) -> bool:
    """Whether the stage is long enough for a chain between first and last block."""
    return row.repeat > 2


def _name(row: StageRow, number: int) -> str:
    return f"stage{row.stage}_block{number}"


_BLOCK = {
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
    "reduce_conv": "conv1",
    "reduce_bn": "bn1",
    "group_conv": "conv2",
    "group_bn": "bn2",
    "expand_conv": "conv3",
    "expand_bn": "bn3",
}
_GHOST = {
    "cheap_conv": "cheap.0",
    "cheap_bn": "cheap.1",
    "mix_squeeze_conv": "merge.1",
    "mix_squeeze_bn": "merge.2",
    "mix_excite_conv": "merge.4",
    "mix_excite_bn": "merge.5",
}


def _huawei(spec: GGhostRegNetSpec) -> dict[str, str]:
    """Name the layers as the authors do: base, layers, cheap, merge, end."""
    names = {"stem_conv": "conv1", "stem_bn": "bn1"}
    for row in spec.rows:
        stage = f"layer{row.stage - 1}."
        for number in range(1, row.repeat + 1):
            place = f"{number - 1}"
            if _is_ghost(row):
                ends = {1: "base", row.repeat: "end"}
                place = ends.get(number, f"layers.{number - 2}")
            first = number == 1
            parts = {k: v for k, v in _BLOCK.items() if first or "shortcut" not in k}
            if _is_ghost(row) and number == row.repeat:
                names |= pairs(_name(row, number), stage, _GHOST)
            names |= pairs(_name(row, number), f"{stage}{place}.", parts)
    return names | {"top_classifier": "fc"}


LAYOUTS = {"huawei": Layout(names=_huawei)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

GGhostRegNetX002 = make_application(SPECS[0], FAMILY)
GGhostRegNetX004 = make_application(SPECS[1], FAMILY)
GGhostRegNetX006 = make_application(SPECS[2], FAMILY)
GGhostRegNetX008 = make_application(SPECS[3], FAMILY)
GGhostRegNetX016 = make_application(SPECS[4], FAMILY)
GGhostRegNetX032 = make_application(SPECS[5], FAMILY)
GGhostRegNetX040 = make_application(SPECS[6], FAMILY)
GGhostRegNetX064 = make_application(SPECS[7], FAMILY)
GGhostRegNetX080 = make_application(SPECS[8], FAMILY)
GGhostRegNetX120 = make_application(SPECS[9], FAMILY)
GGhostRegNetX160 = make_application(SPECS[10], FAMILY)
preprocess_input = make_preprocess(SPECS)
