"""RepVGG: a plain stack of 3x3 convolutions once its branches are merged."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._publishers import CONVERTED, timm_hub
from keras_lightnets._repvgg import RepStackSpec, has_identity
from keras_lightnets._residual import TORCH_RULE

__all__ = [
    "RepVGGA0",
    "RepVGGA1",
    "RepVGGA2",
    "RepVGGB0",
    "RepVGGB1",
    "RepVGGB1G2",
    "RepVGGB1G4",
    "RepVGGB2",
    "RepVGGB2G2",
    "RepVGGB2G4",
    "RepVGGB3",
    "RepVGGB3G2",
    "RepVGGB3G4",
    "RepVGGD2SE",
    "decode_predictions",
    "preprocess_input",
]


# Blocks per stage (section 4 of the paper; D2se is from the authors' repository).
A = (2, 4, 14, 1)
B = (4, 6, 16, 1)
D = (8, 14, 24, 1)


def _rows(repeats: tuple[int, ...], early: float, last: float) -> tuple[StageRow, ...]:
    """Return four stages: a multiple of 64 x 2^i in three, another in the last."""
    return tuple(
        StageRow(i + 2, int(64 * 2**i * (last if i == 3 else early)), repeat)
        for i, repeat in enumerate(repeats)
    )


@dataclass(frozen=True, kw_only=True)
class RepVGGSpec(RepStackSpec):
    """A RepVGG as it is trained; `tools.fuse` makes the deployed form.

    Attributes:
        groups: Channel groups of every second block.
        se: Squeezed channels, as a share of a block's; 0 for no squeeze-and-excite.
    """

    reference: str = "Ding et al. 2021, RepVGG, https://arxiv.org/abs/2101.03697"
    groups: int = 1
    se: float = 0.0


# Variant -> hash of its file in timm's release; the others are on the hub only.
RELEASED = {
    "a2": "c1ee6d2b",
    "b0": "80ac3f1b",
    "b1": "77ca2989",
    "b1g4": "abde5d92",
    "b2": "25b7494e",
    "b2g4": "165a85f2",
    "b3": "199bc50d",
    "b3g4": "73c370bf",
}


def _spec(
    variant: str, rows: tuple[StageRow, ...], top1: float | None, **changes: Any
) -> RepVGGSpec:
    """Describe a variant, such as "a0"."""
    size = changes.get("default_size", 224)
    crop = TORCH_RULE.crop if size == 224 else 1.0
    released = RELEASED.get(variant, "")
    weights = timm_hub(
        f"repvgg_{variant}.rvgg_in1k",
        dataclasses.replace(TORCH_RULE, size=size, crop=crop),
        "MIT",
        top1,
        CONVERTED,
        tag="timm_in1k",
        file=f"v0.1-repvgg-weights/repvgg_{variant}-{released}" if released else "",
    )
    return RepVGGSpec(
        name=f"repvgg_{variant}",
        function=f"RepVGG{variant.upper()}",
        rows=rows,
        top1=top1,
        # The authors alone serve those of two groups, in a folder without addresses.
        weights=() if changes.get("groups") == 2 else (weights,),
        **changes,
    )


SPECS = (
    _spec("a0", _rows(A, 0.75, 2.5), 72.41, stem=48),
    _spec("a1", _rows(A, 1.0, 2.5), 74.46),
    _spec("a2", _rows(A, 1.5, 2.75), 76.48),
    _spec("b0", _rows(B, 1.0, 2.5), 75.14),
    _spec("b1", _rows(B, 2.0, 4.0), 78.37),
    _spec("b1g2", _rows(B, 2.0, 4.0), 77.78, groups=2),
    _spec("b1g4", _rows(B, 2.0, 4.0), 77.58, groups=4),
    _spec("b2", _rows(B, 2.5, 5.0), 78.78),
    _spec("b2g2", _rows(B, 2.5, 5.0), None, groups=2),
    _spec("b2g4", _rows(B, 2.5, 5.0), 79.38, groups=4),
    _spec("b3", _rows(B, 3.0, 5.0), 80.52),
    _spec("b3g2", _rows(B, 3.0, 5.0), None, groups=2),
    _spec("b3g4", _rows(B, 3.0, 5.0), 80.21, groups=4),
    _spec("d2se", _rows(D, 2.5, 5.0), 83.55, se=1 / 16, default_size=320),
)


def build(spec: RepVGGSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; the last is "features"."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    maps = {"c1": _block(x, spec.channels(spec.stem), spec, "stem", stride=step)}
    x = maps["c1"]
    for layer, block in enumerate(spec.blocks, start=1):
        step, dilation = stride.step(block.stride)
        x = _block(
            x,
            block.out,
            spec,
            block.name,
            stride=step,
            # Neighbours are never both grouped, so that channels mix.
            groups=spec.groups if layer % 2 == 0 else 1,
            dilation=dilation,
            identity=has_identity(block),
        )
        maps[f"c{block.row.stage}"] = x
    return {**maps, "features": x}


def _block(
    x: Any,
    filters: int,
    spec: RepVGGSpec,
    name: str,
    stride: int,
    groups: int = 1,
    dilation: int = 1,
    identity: bool = False,
) -> Any:
    kept = x if identity else None
    x = layers.rep_conv(x, filters, spec, name, stride, groups, dilation, kept)
    if spec.se:
        x = layers.squeeze_excite(x, round(filters * spec.se), name, gate="sigmoid")
    return layers.activate(x, "relu", f"{name}_add")


_TIMM = {
    "dense_conv": "conv_kxk.conv",
    "dense_bn": "conv_kxk.bn",
    "point_conv": "conv_1x1.conv",
    "point_bn": "conv_1x1.bn",
    "identity_bn": "identity",
    "squeeze_conv": "attn.fc1",
    "excite_conv": "attn.fc2",
}
_AUTHORS = {
    "dense_conv": "rbr_dense.conv",
    "dense_bn": "rbr_dense.bn",
    "point_conv": "rbr_1x1.conv",
    "point_bn": "rbr_1x1.bn",
    "identity_bn": "rbr_identity",
    "squeeze_conv": "se.down",
    "excite_conv": "se.up",
}


def _parts(spec: RepVGGSpec, theirs: dict[str, str], identity: bool) -> dict[str, str]:
    absent = set() if identity else {"identity_bn"}
    absent |= set() if spec.se else {"squeeze_conv", "excite_conv"}
    return {key: value for key, value in theirs.items() if key not in absent}


def _names(
    spec: RepVGGSpec, theirs: dict[str, str], stem: str, stage: Callable[[int], str]
) -> dict[str, str]:
    """Name all layers but the classifier; `stage` names a stage of ours."""
    names = pairs("stem", stem, _parts(spec, theirs, False))
    for block in spec.blocks:
        prefix = f"{stage(block.row.stage)}.{block.number - 1}."
        parts = _parts(spec, theirs, has_identity(block))
        names |= pairs(block.name, prefix, parts)
    return names


def _timm(spec: RepVGGSpec) -> dict[str, str]:
    names = _names(spec, _TIMM, "stem.", lambda stage: f"stages.{stage - 2}")
    return names | {"top_classifier": "head.fc"}


def _authors(spec: RepVGGSpec) -> dict[str, str]:
    """Name the layers as DingXiaoH/RepVGG does, whose stage 0 is the stem."""
    names = _names(spec, _AUTHORS, "stage0.", lambda stage: f"stage{stage - 1}")
    return names | {"top_classifier": "linear"}


LAYOUTS = {
    "timm": Layout(names=_timm, preprocessing=TORCH_RULE),
    "repvgg": Layout(names=_authors, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

RepVGGA0 = make_application(SPECS[0], FAMILY)
RepVGGA1 = make_application(SPECS[1], FAMILY)
RepVGGA2 = make_application(SPECS[2], FAMILY)
RepVGGB0 = make_application(SPECS[3], FAMILY)
RepVGGB1 = make_application(SPECS[4], FAMILY)
RepVGGB1G2 = make_application(SPECS[5], FAMILY)
RepVGGB1G4 = make_application(SPECS[6], FAMILY)
RepVGGB2 = make_application(SPECS[7], FAMILY)
RepVGGB2G2 = make_application(SPECS[8], FAMILY)
RepVGGB2G4 = make_application(SPECS[9], FAMILY)
RepVGGB3 = make_application(SPECS[10], FAMILY)
RepVGGB3G2 = make_application(SPECS[11], FAMILY)
RepVGGB3G4 = make_application(SPECS[12], FAMILY)
RepVGGD2SE = make_application(SPECS[13], FAMILY)
preprocess_input = make_preprocess(SPECS)
