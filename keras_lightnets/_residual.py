"""What residual networks have in common: table rows, spec, publishers' names."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_lightnets._blocks import Block, StageRow, expand_rows
from keras_lightnets._errors import unknown
from keras_lightnets._layout import pairs
from keras_lightnets._spec import IMAGENET, LEVELS, Level, ModelSpec, Preprocessing

UNITS = ("basic", "bottleneck")
SHORTCUTS = ("projection", "pool", "pad")

TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
TORCH_RULE_232 = dataclasses.replace(TORCH_RULE, crop=224 / 232)
CIFAR_RULE = Preprocessing(
    mean=(125.307, 122.961, 113.8575),
    std=(51.5865, 50.847, 51.255),
    size=32,
    crop=1.0,
    interpolation="bilinear",
)
CIFAR_LEVELS = tuple(Level(name=f"c{i}", stride=2**i) for i in range(3))


def imagenet_rows(
    repeats: tuple[int, ...], outs: tuple[int, ...] = (256, 512, 1024, 2048)
) -> tuple[StageRow, ...]:
    """Return the four stages behind a stem of stride 4."""
    stages = zip(outs, repeats, strict=True)
    return tuple(
        StageRow(stage, out, count, 1 if stage == 2 else 2)
        for stage, (out, count) in enumerate(stages, start=2)
    )


def cifar_rows(repeat: int, outs: tuple[int, ...]) -> tuple[StageRow, ...]:
    """Return the three stages of a network for images of 32 pixels."""
    return tuple(
        StageRow(i, out, repeat, 1 if i == 0 else 2) for i, out in enumerate(outs)
    )


@dataclass(frozen=True, kw_only=True)
class ResidualSpec(ModelSpec):
    """A residual network.

    Attributes:
        unit: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1).
        ratio: Output channels of a unit, in multiples of its planes, which are what
            papers count widths in.
        base_width: Channels per group of the 3x3 convolution for every 64 planes.
        groups: Groups of the 3x3 convolution.
        reduce_ratio: Channels of a bottleneck's first convolution, in multiples of
            those of its 3x3 convolution.
        stride_first: Whether the first 1x1 convolution is strided (the paper's
            form), not the 3x3 one.
        shortcut: Where shapes differ: "projection" (1x1 convolution), "pool" (mean
            of 2x2, then 1x1 convolution) or "pad" (every second cell, zeros for the
            new channels).
        shortcut_kernel: Side of a strided projection's kernel.
        stem: Channels of the stem's convolutions: one of `stem_kernel`, or three
            of 3x3.
        stem_kernel: Side of the kernel of a stem of one convolution.
        stem_stride: Stride of the stem's first convolution; 1 for CIFAR.
        stem_pool: Pixels that the stem's pooling pads before and behind; None for
            no pooling.
        act: Activation.
    """

    rows: tuple[StageRow, ...]
    unit: str = "bottleneck"
    ratio: int = 4
    base_width: int = 64
    groups: int = 1
    reduce_ratio: float = 1.0
    stride_first: bool = False
    shortcut: str = "projection"
    shortcut_kernel: int = 1
    stem: tuple[int, ...] = (64,)
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: tuple[int, int] | None = (1, 1)
    act: str = "relu"
    levels: tuple[Level, ...] = LEVELS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in UNITS:
            raise unknown("unit", self.unit, UNITS)
        if self.shortcut not in SHORTCUTS:
            raise unknown("shortcut", self.shortcut, SHORTCUTS)

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation: ImageNet's, or CIFAR-10's for images of 32 pixels."""
        if self.weights:
            return self.weights[0].preprocessing
        return CIFAR_RULE if self.default_size == 32 else TORCH_RULE

    def mid(self, out: int) -> int:
        """Return the channels of the 3x3 convolution of a unit with `out`."""
        return int(out // self.ratio * self.base_width / 64) * self.groups

    def blocks(self) -> list[Block[StageRow]]:
        """Return the units in order."""
        return expand_rows(
            self.rows,
            channels=self.channels(self.stem[-1]),
            outs=[self.channels(row.out) for row in self.rows],
            repeats=[row.repeat for row in self.rows],
        )


# Fields of a network for images of 32 pixels: one convolution, no pooling.
CIFAR: dict[str, Any] = {
    "stem": (16,),
    "stem_kernel": 3,
    "stem_stride": 1,
    "stem_pool": None,
    "levels": CIFAR_LEVELS,
    "default_size": 32,
}

BlockNames = Callable[[Block[StageRow]], dict[str, str]]


def resized(block: Block[StageRow]) -> bool:
    """Return whether a unit's input and output differ in shape."""
    return block.stride > 1 or block.channels != block.out


def _parts(spec: ResidualSpec) -> tuple[str, ...]:
    basic = spec.unit == "basic"
    return ("first", "second") if basic else ("reduce", "spatial", "expand")


def torch_names(
    spec: ResidualSpec,
    extra: BlockNames | None = None,
    stem: str = "",
    classifier: str = "fc",
    shortcut: str = "downsample",
) -> dict[str, str]:
    """Name a residual network as torchvision, timm and those after them do.

    Args:
        spec: The network.
        extra: Gives what a unit has besides its convolutions and shortcut, and what
            is named otherwise: suffix here -> suffix there.
        stem: Prefix of the stem's layers, with its separator.
        classifier: Prefix of the classifier.
        shortcut: Name of the shortcut's sequence.

    Returns:
        {layer name here: publisher's prefix}, in building order.
    """
    names = {"stem_conv": f"{stem}conv1", "stem_bn": f"{stem}bn1"}
    if len(spec.stem) > 1:
        names = {f"stem_{i + 1}_conv": f"{stem}conv1.{3 * i}" for i in range(3)}
        norms = (f"{stem}conv1.1", f"{stem}conv1.4", f"{stem}bn1")
        names |= {f"stem_{i}_bn": norm for i, norm in enumerate(norms, start=1)}
    first = int(spec.shortcut == "pool")
    for block in spec.blocks():
        stage = block.row.stage - spec.rows[0].stage + 1
        theirs = f"layer{stage}.{block.number - 1}."
        parts: dict[str, str] = {}
        for i, part in enumerate(_parts(spec), start=1):
            parts |= {f"{part}_conv": f"conv{i}", f"{part}_bn": f"bn{i}"}
        if resized(block) and spec.shortcut != "pad":
            parts["shortcut_conv"] = f"{shortcut}.{first}"
            parts["shortcut_bn"] = f"{shortcut}.{first + 1}"
        parts |= extra(block) if extra else {}
        names |= pairs(block.name, theirs, {k: v for k, v in parts.items() if v})
    return names | {"top_classifier": classifier}


def pytorchcv_names(
    spec: ResidualSpec, extra: BlockNames | None = None, classifier: str = "output"
) -> dict[str, str]:
    """Name a residual network as pytorchcv does.

    Args:
        spec: The network.
        extra: Gives what a unit has besides its convolutions and shortcut, and what
            is named otherwise: suffix here -> suffix there.
        classifier: Prefix of the classifier.

    Returns:
        {layer name here: pytorchcv's prefix}, in building order.
    """
    init = "features.init_block."
    inner = {"conv": "conv", "bn": "bn"}
    names = pairs("stem", f"{init}conv." if spec.stem_pool else init, inner)
    if len(spec.stem) > 1:
        names = {}
        for i in (1, 2, 3):
            names |= pairs(f"stem_{i}", f"{init}conv{i}.", inner)
    for block in spec.blocks():
        stage = block.row.stage - spec.rows[0].stage + 1
        theirs = f"features.stage{stage}.unit{block.number}."
        parts: dict[str, str] = {}
        for i, part in enumerate(_parts(spec), start=1):
            parts |= pairs(part, f"body.conv{i}.", inner)
        if resized(block) and spec.shortcut != "pad":
            parts |= pairs("shortcut", "identity_conv.", inner)
        parts |= extra(block) if extra else {}
        names |= pairs(block.name, theirs, {k: v for k, v in parts.items() if v})
    return names | {"top_classifier": classifier}
