"""IGCV2: interleaved structured sparse convolutions in MobileNet's body."""

import math
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing

__all__ = [
    "IGCV2",
    "IGCV2W025",
    "IGCV2W050",
    "decode_predictions",
    "preprocess_input",
]


# The paper's authors published no code. Channels are MobileNet's; the repetitions are
# those with which parameters and multiply-adds of all three widths come to within 3 %
# of the published ones.
# fmt: off
ROWS = (
    #   stage out repeat stride
    StageRow(1,   64,  1, 1),
    StageRow(2,  128,  3, 2),
    StageRow(3,  256,  4, 2),
    StageRow(4,  512, 12, 2),
    StageRow(5, 1024,  3, 2),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class IGCV2Spec(ModelSpec):
    """An IGCV2.

    Attributes:
        stem: Channels of the stem.
        partitions: Partitions of the first 1x1 convolution of a block; the second
            has out / partitions, so that one path joins every input and output
            channel (the complementary condition). 0: as near to the square root of
            the channels as there is a divisor (the balance condition), with which
            a block has the fewest weights. The published sizes grow with the
            square of the width, which only a fixed number does.
    """

    rows: tuple[StageRow, ...] = ROWS
    dynamic_size: bool = False
    flags_reason: str = "the channel shuffle needs a known size"
    padding: str = "symmetric"
    bn_epsilon: float = 2e-5
    bn_momentum: float = 0.9
    # One normalisation stands behind the three convolutions of a block.
    bias_exceptions: tuple[str, ...] = ("*_dw_conv", "*_first_conv")
    dropout: float = 0.0
    reference: str = "Xie et al. 2018, IGCV2, https://arxiv.org/abs/1804.06202"
    stem: int = 32
    partitions: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partitions < 0:
            raise ValueError(
                "partitions must be a number of channel groups, or 0 for balanced "
                f"ones. Received: {self.partitions}"
            )

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's for every variant."""
        return IMAGENET


SPECS = (
    IGCV2Spec(name="igcv2", function="IGCV2", top1=70.7),
    IGCV2Spec(name="igcv2_050", function="IGCV2W050", width=0.5, top1=65.5),
    IGCV2Spec(name="igcv2_025", function="IGCV2W025", width=0.25, top1=54.9),
)


def build(spec: IGCV2Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5; "features" is c5."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {}
    for block in _blocks(spec):
        x = maps[f"c{block.row.stage}"] = _block(x, block, spec, stride)
    return {**maps, "features": x}


def _block(
    x: Any, block: Block[StageRow], spec: IGCV2Spec, stride: layers.DilatedStride
) -> Any:
    """Convolve per channel, then 1x1 twice in complementary partitions."""
    name, out = block.name, block.out
    first = spec.partitions or balanced(block.channels, out)
    second = out // first
    step, dilation = stride.step(block.stride)
    x = layers.padded_depthwise(x, 3, spec, f"{name}_dw", step, dilation)
    x = layers.padded_conv(x, out, 1, spec, f"{name}_first", groups=first)
    x = layers.channel_shuffle(x, first, f"{name}_there")
    x = layers.padded_conv(x, out, 1, spec, f"{name}_second", groups=second)
    x = layers.channel_shuffle(x, second, f"{name}_back")
    x = layers.normalise(x, spec, f"{name}_second")
    return layers.activate(x, "relu", name)


def balanced(channels: int, out: int) -> int:
    """Return the partitions of the first of two complementary 1x1 convolutions.

    Args:
        channels: Its input channels.
        out: Output channels of both.

    Returns:
        The common divisor with which the two have the fewest weights; for equal
        channels that is the one nearest to their square root.

    Example:
        >>> balanced(64, 64), balanced(1024, 1024)
        (8, 32)

    Reference:
        Xie et al. 2018, https://arxiv.org/abs/1804.06202, section 3.2.
    """
    shared = math.gcd(channels, out)
    legal = [n for n in range(1, shared + 1) if shared % n == 0]
    return min(legal, key=lambda n: channels * out // n + out * n)


def _blocks(spec: IGCV2Spec) -> list[Block[StageRow]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


# Nobody has published weights; files in our own names need no layout.
LAYOUTS: dict[str, Layout] = {}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

IGCV2 = make_application(SPECS[0], FAMILY)
IGCV2W050 = make_application(SPECS[1], FAMILY)
IGCV2W025 = make_application(SPECS[2], FAMILY)
preprocess_input = make_preprocess(SPECS)
