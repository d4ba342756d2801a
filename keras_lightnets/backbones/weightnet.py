"""WeightNet on ShuffleNetV2: convolutions with a kernel per image."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import ModelSpec, Preprocessing

__all__ = [
    "WeightNetShuffleNetV2",
    "WeightNetShuffleNetV2X4",
    "WeightNetShuffleNetV2W050",
    "WeightNetShuffleNetV2W050X8",
    "WeightNetShuffleNetV2W150",
    "WeightNetShuffleNetV2W150X4",
    "WeightNetShuffleNetV2W200",
    "WeightNetShuffleNetV2W200X4",
    "decode_predictions",
    "preprocess_input",
]


# Slightly narrower than ShuffleNetV2, for the cost of making kernels.
# fmt: off
X050 = (StageRow(3,  48, 4), StageRow(4,  96, 8), StageRow(5, 192, 4))
X100 = (StageRow(3, 112, 4), StageRow(4, 224, 8), StageRow(5, 448, 4))
X150 = (StageRow(3, 176, 4), StageRow(4, 352, 8), StageRow(5, 704, 4))
X200 = (StageRow(3, 248, 4), StageRow(4, 496, 8), StageRow(5, 992, 4))
# fmt: on


@dataclass(frozen=True, kw_only=True)
class WeightNetSpec(ModelSpec):
    """A ShuffleNetV2 whose units' convolutions have a kernel per image.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution.
        units: Sigmoid units per output channel (the paper's M). Its ratio to
            `kernel_groups` is the multiplier of the weights: 1x, 4x, 8x.
        kernel_groups: Groups per output channel (G).
    """

    rows: tuple[StageRow, ...] = X100
    stem: int = 24
    top: int = 1024
    units: int = 2
    kernel_groups: int = 2
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    conv_bias: bool = True
    dropout: float = 0.0
    dynamic_size: bool = False
    int8_ok: bool = False
    flags_reason: str = (
        "the channel shuffle needs a known size, and int8 convolutions a constant "
        "kernel"
    )
    bias_exceptions: tuple[str, ...] = ("stem_conv", "top_conv", "*_kernel_conv")
    reference: str = "Ma et al. 2020, WeightNet, https://arxiv.org/abs/2007.11823"

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation: none."""
        return RULE


RULE = Preprocessing(
    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear"
)


# The authors give M and G of the 1x networks only; those of the others are the ones
# whose parameters come closest to their table.
SPECS = (
    WeightNetSpec(
        name="weightnet_shufflenet_v2", function="WeightNetShuffleNetV2", top1=71.2
    ),
    WeightNetSpec(
        name="weightnet_shufflenet_v2_x4",
        function="WeightNetShuffleNetV2X4",
        units=8,
        top1=72.4,
    ),
    WeightNetSpec(
        name="weightnet_shufflenet_v2_050",
        function="WeightNetShuffleNetV2W050",
        rows=X050,
        top1=63.3,
    ),
    WeightNetSpec(
        name="weightnet_shufflenet_v2_050_x8",
        function="WeightNetShuffleNetV2W050X8",
        rows=X050,
        units=8,
        kernel_groups=1,
        top1=66.0,
    ),
    WeightNetSpec(
        name="weightnet_shufflenet_v2_150",
        function="WeightNetShuffleNetV2W150",
        rows=X150,
        top1=74.4,
    ),
    WeightNetSpec(
        name="weightnet_shufflenet_v2_150_x4",
        function="WeightNetShuffleNetV2W150X4",
        rows=X150,
        units=4,
        kernel_groups=1,
        top1=75.0,
    ),
    WeightNetSpec(
        name="weightnet_shufflenet_v2_200",
        function="WeightNetShuffleNetV2W200",
        rows=X200,
        dropout=0.2,
        top1=75.9,
    ),
    WeightNetSpec(
        name="weightnet_shufflenet_v2_200_x4",
        function="WeightNetShuffleNetV2W200X4",
        rows=X200,
        units=8,
        dropout=0.2,
        top1=76.5,
    ),
)


def build(spec: WeightNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2 (pool), c3..c5 and "features" (top)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {"c1": x}
    step, _ = stride.step(2)
    x = maps["c2"] = layers.max_pool(x, 3, step, (1, 1), "stem")
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            name = f"stage{row.stage}_block{number}"
            x = _unit(x, row.out, spec, stride, name, strided=number == 1)
        maps[f"c{row.stage}"] = x
    x = layers.conv_bn(x, spec.top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, "relu", "top")}


def _unit(
    x: Any, out: int, spec: WeightNetSpec, stride: Any, name: str, strided: bool
) -> Any:
    """Convolve every other channel, or all of them in two branches."""
    if strided:
        kept = x
    else:
        # Even channels pass, odd ones are convolved.
        x = layers.channel_shuffle(x, x.shape[-1] // 2, name)
        kept, x = layers.channel_split(x, name)
    channels = x.shape[-1]
    means = layers.global_pool(x, f"{name}_means")
    summary = layers.bias_conv(means, max(16, channels // 16), f"{name}_means")
    made = layers.Generated(None, 3, spec.units, spec.kernel_groups)
    step = stride.step(2 if strided else 1)

    def point(x: Any, filters: int, part: str) -> Any:
        conv = dataclasses.replace(made, filters=filters, kernel=1)
        x = layers.weightnet_conv(x, summary, conv, f"{name}_{part}")
        return layers.normalise(x, spec, f"{name}_{part}")

    def depth(x: Any, part: str) -> Any:
        x = layers.weightnet_conv(x, summary, made, f"{name}_{part}", *step)
        return layers.normalise(x, spec, f"{name}_{part}")

    if strided:
        kept = point(depth(kept, "shortcut_dw"), channels, "shortcut")
        kept = layers.activate(kept, "relu", f"{name}_shortcut")
    x = layers.activate(point(x, out // 2, "reduce"), "relu", f"{name}_reduce")
    x = point(depth(x, "dw"), out - channels, "expand")
    x = layers.activate(x, "relu", f"{name}_expand")
    return layers.concat([kept, x], name)


_PARTS = {
    "reduce": ("wnet1", "bn1"),
    "dw": ("wnet2", "bn2"),
    "expand": ("wnet3", "bn3"),
}
_SHORTCUT = {
    "shortcut_dw": ("wnet_proj_1", "bn_proj_1"),
    "shortcut": ("wnet_proj_2", "bn_proj_2"),
}


def _authors(spec: WeightNetSpec) -> dict[str, str]:
    """Name the layers as the authors' files do."""
    ends = {"conv": "0", "bn": "1"}
    names = pairs("stem", "first_conv.", ends)
    place = 0
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            ours, theirs = f"stage{row.stage}_block{number}", f"features.{place}."
            names[f"{ours}_means_conv"] = f"{theirs}reduce"
            parts = {**_SHORTCUT, **_PARTS} if number == 1 else _PARTS
            for part, (maker, norm) in parts.items():
                names[f"{ours}_{part}_units_conv"] = f"{theirs}{maker}.wn_fc1"
                names[f"{ours}_{part}_kernel_conv"] = f"{theirs}{maker}.wn_fc2"
                names[f"{ours}_{part}_bn"] = f"{theirs}{norm}"
            place += 1
    names |= pairs("top", "conv_last.", ends)
    return names | {"top_classifier": "classifier.0"}


LAYOUTS = {"authors": Layout(names=_authors, preprocessing=RULE, bgr="stem_conv")}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

WeightNetShuffleNetV2 = make_application(SPECS[0], FAMILY)
WeightNetShuffleNetV2X4 = make_application(SPECS[1], FAMILY)
WeightNetShuffleNetV2W050 = make_application(SPECS[2], FAMILY)
WeightNetShuffleNetV2W050X8 = make_application(SPECS[3], FAMILY)
WeightNetShuffleNetV2W150 = make_application(SPECS[4], FAMILY)
WeightNetShuffleNetV2W150X4 = make_application(SPECS[5], FAMILY)
WeightNetShuffleNetV2W200 = make_application(SPECS[6], FAMILY)
WeightNetShuffleNetV2W200X4 = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
