"""DBB-MobileNet: MobileNetV1 whose 3x3 convolutions are diverse branch blocks."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._mobilenet import MOBILENET_ROWS
from keras_lightnets._residual import TORCH_RULE
from keras_lightnets._spec import ModelSpec, Preprocessing

__all__ = ["DBBMobileNet", "decode_predictions", "preprocess_input"]


@dataclass(frozen=True, kw_only=True)
class DBBMobileNetSpec(ModelSpec):
    """A DBB-MobileNet as it is trained; `tools.fuse` makes the deployed form.

    Attributes:
        stem: Channels of the stem.
    """

    rows: tuple[StageRow, ...] = MOBILENET_ROWS
    fusable: bool = True
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    stem: int = 32
    reference: str = (
        "Ding et al. 2021, Diverse Branch Block, https://arxiv.org/abs/2103.13425"
    )

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, the authors'."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE


SPECS = (DBBMobileNetSpec(name="dbb_mobilenet", function="DBBMobileNet", top1=72.88),)


def build(spec: DBBMobileNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; the last is "features"."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.diverse_branches(x, spec.channels(spec.stem), 3, spec, "stem_dbb", step)
    x = layers.activate(x, "relu", "stem_dbb_add")
    maps: dict[str, Any] = {}
    for block in _blocks(spec):
        step, dilation = stride.step(block.stride)
        name, count = f"{block.name}_dw", block.channels
        x = layers.diverse_branches(x, count, 3, spec, name, step, count, dilation)
        x = layers.activate(x, "relu", f"{name}_add")
        x = layers.conv_bn(x, block.out, 1, spec, f"{block.name}_pw")
        x = layers.activate(x, "relu", f"{block.name}_pw")
        maps[f"c{block.row.stage}"] = x
    return {**maps, "features": x}


def _blocks(spec: DBBMobileNetSpec) -> list[Block[StageRow]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


_BRANCHES = {
    "origin_conv": "dbb_origin.conv",
    "origin_bn": "dbb_origin.bn",
    "mean_bn": "dbb_avg.avgbn",
    "series_first_conv": "dbb_1x1_kxk.conv1",
    "series_first_bn": "dbb_1x1_kxk.bn1.bn",
    "series_conv": "dbb_1x1_kxk.conv2",
    "series_bn": "dbb_1x1_kxk.bn2",
}
_STEM = _BRANCHES | {
    "series_first_conv": "dbb_1x1_kxk.idconv1",
    "point_conv": "dbb_1x1.conv",
    "point_bn": "dbb_1x1.bn",
    "mean_first_conv": "dbb_avg.conv",
    "mean_first_bn": "dbb_avg.bn.bn",
}


def _authors(spec: DBBMobileNetSpec) -> dict[str, str]:
    """Name the layers as DingXiaoH/DiverseBranchBlock does."""
    names = pairs("stem_dbb", "conv1.", _STEM)
    plain = {"conv": "conv", "bn": "bn"}
    for number, block in enumerate(_blocks(spec)):
        prefix = f"stem.{number}."
        names |= pairs(f"{block.name}_dw", f"{prefix}depthwise.", _BRANCHES)
        names |= pairs(f"{block.name}_pw", f"{prefix}pointwise.", plain)
    return names | {"top_classifier": "linear"}


LAYOUTS = {"dbb": Layout(names=_authors, preprocessing=TORCH_RULE)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

DBBMobileNet = make_application(SPECS[0], FAMILY)
preprocess_input = make_preprocess(SPECS)
