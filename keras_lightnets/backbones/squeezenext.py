"""SqueezeNext: two-stage squeeze and separable 3x1, 1x3 convolutions."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import ModelSpec, Preprocessing

__all__ = [
    "SqueezeNext",
    "SqueezeNextG",
    "SqueezeNextV5",
    "SqueezeNextV5W200",
    "SqueezeNextW200",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One stage of the paper's table 2 (before the width)."""

    stage: int
    out: int
    repeat: int


# fmt: off
ROWS = (
    #   stage out  repeat
    Row(2,     32,  6),
    Row(3,     64,  6),
    Row(4,    128,  8),
    Row(5,    256,  1),
)
V5 = (
    Row(2,     32,  2),
    Row(3,     64,  4),
    Row(4,    128, 14),
    Row(5,    256,  1),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class SqueezeNextSpec(ModelSpec):
    """A SqueezeNext, as the authors' network definitions have it.

    Attributes:
        stem: Channels of the stem, not multiplied.
        stem_kernel: Side of the stem's kernel.
        top: Channels of the last convolution, not multiplied.
        groups: Groups of the first 1x1 and of the separable convolutions.
        project_first: Whether the first block of a stage works on the projected
            shortcut, at the lower resolution, instead of on its input (v5).
    """

    rows: tuple[Row, ...] = ROWS
    default_size: int = 227
    padding: str = "valid"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.999
    dropout: float = 0.0
    exact_strides: bool = False
    flags_reason: str = "stem and pool are not padded"
    reference: str = (
        "Gholami et al. 2018, SqueezeNext, https://arxiv.org/abs/1803.10615"
    )
    stem: int = 64
    stem_kernel: int = 7
    top: int = 128
    groups: int = 1
    project_first: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation: mean subtraction, as in Caffe."""
        return CAFFE_RULE


CAFFE_RULE = Preprocessing(
    mean=(123.0, 117.0, 104.0),
    std=(1.0, 1.0, 1.0),
    size=227,
    crop=227 / 256,
    interpolation="bilinear",
)

SPECS = (
    SqueezeNextSpec(name="squeezenext", function="SqueezeNext", top1=59.05),
    SqueezeNextSpec(
        name="squeezenext_g", function="SqueezeNextG", groups=2, top1=57.16
    ),
    SqueezeNextSpec(
        name="squeezenext_v5",
        function="SqueezeNextV5",
        rows=V5,
        stem_kernel=5,
        project_first=True,
        top1=59.24,
    ),
    SqueezeNextSpec(
        name="squeezenext_200", function="SqueezeNextW200", width=2.0, top1=67.18
    ),
    SqueezeNextSpec(
        name="squeezenext_v5_200",
        function="SqueezeNextV5W200",
        rows=V5,
        width=2.0,
        stem_kernel=5,
        project_first=True,
        top1=67.44,
    ),
)


def build(spec: SqueezeNextSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c5 and "features" (128 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, spec.stem_kernel, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {"c1": x}
    step, _ = stride.step(2)
    # Without padding, but sides round up: floor(side / 2) in all.
    x = layers.max_pool(x, 3, step, (0, 1), "stem")
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            x = _block(x, row, number, spec, stride)
        maps[f"c{row.stage}"] = x
    x = layers.conv_bn(x, spec.top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, "relu", "top")}


def _block(
    x: Any,
    row: Row,
    number: int,
    spec: SqueezeNextSpec,
    stride: layers.DilatedStride,
) -> Any:
    """Squeeze twice, 3x1 and 1x3, expand, add the shortcut (figure 1)."""
    name, out = f"stage{row.stage}_block{number}", _out(row, spec)
    step = 1
    if number == 1 and row is not spec.rows[0]:
        step, _ = stride.step(2)
    shortcut, dilation = x, stride.dilation
    if number == 1:
        part = f"{name}_shortcut"
        shortcut = layers.conv_bn(x, out, 1, spec, part, stride=step)
        shortcut = layers.activate(shortcut, "relu", part)
        x, step = (shortcut, 1) if spec.project_first else (x, step)
    for part, filters, kernel, groups in _parts(out, number, spec):
        x = layers.conv_bn(
            x,
            filters,
            kernel,
            spec,
            f"{name}_{part}",
            stride=step if part == "squeeze1" else 1,
            groups=groups,
            dilation=1 if kernel == (1, 1) else dilation,
        )
        x = layers.activate(x, "relu", f"{name}_{part}")
    return layers.activate(layers.residual(x, shortcut, name), "relu", name)


def _parts(
    out: int, number: int, spec: SqueezeNextSpec
) -> list[tuple[str, int, tuple[int, int], int]]:
    """Return the main branch: part, channels, kernel, groups.

    Odd blocks convolve along the columns first, even ones along the rows.
    """
    tall, wide = (3, 1), (1, 3)
    order = (tall, wide) if number % 2 else (wide, tall)
    return [
        ("squeeze1", out // 2, (1, 1), spec.groups),
        ("squeeze2", out // 4, (1, 1), 1),
        ("first", out // 2, order[0], spec.groups),
        ("second", out // 2, order[1], spec.groups),
        ("expand", out, (1, 1), 1),
    ]


def _out(row: Row, spec: SqueezeNextSpec) -> int:
    return int(row.out * spec.width)


def _caffe(spec: SqueezeNextSpec) -> dict[str, str]:
    """Name the layers as the authors: numbered through, shortcuts first.

    Caffe's Scale layers belong to the normalisation in front of them.
    """
    ours = ["stem"]
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            name = f"stage{row.stage}_block{number}"
            ours += [f"{name}_shortcut"] if number == 1 else []
            ours += [f"{name}_{part}" for part, *_ in _parts(4, number, spec)]
    names: dict[str, str] = {}
    for i, name in enumerate([*ours, "top"], start=1):
        names |= pairs(name, "", {"conv": f"Convolution{i}", "bn": f"BatchNorm{i}"})
    return names | {"top_classifier": "fc1000"}


LAYOUTS = {"caffe": Layout(names=_caffe, preprocessing=CAFFE_RULE, bgr="stem_conv")}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

SqueezeNext = make_application(SPECS[0], FAMILY)
SqueezeNextG = make_application(SPECS[1], FAMILY)
SqueezeNextV5 = make_application(SPECS[2], FAMILY)
SqueezeNextW200 = make_application(SPECS[3], FAMILY)
SqueezeNextV5W200 = make_application(SPECS[4], FAMILY)
preprocess_input = make_preprocess(SPECS)
