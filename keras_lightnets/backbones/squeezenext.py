"""SqueezeNext: two-stage squeeze and separable 3x1, 1x3 convolutions."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._residual import TORCH_RULE
from keras_lightnets._spec import ModelSpec, Preprocessing

__all__ = [
    "SqueezeNext",
    "SqueezeNextG",
    "SqueezeNextPyTorchCV",
    "SqueezeNextPyTorchCVW150",
    "SqueezeNextPyTorchCVW200",
    "SqueezeNextV5",
    "SqueezeNextV5PyTorchCV",
    "SqueezeNextV5PyTorchCVW150",
    "SqueezeNextV5PyTorchCVW200",
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
    """A SqueezeNext, as the authors' network definitions or pytorchcv have it.

    Attributes:
        stem: Channels of the stem, not multiplied.
        stem_kernel: Side of the stem's kernel.
        stem_pad: Pixels around the image in front of the stem.
        top: Channels of the last convolution, not multiplied.
        groups: Groups of the first 1x1 and of the separable convolutions.
        project_first: Whether the first block of a stage works on the projected
            shortcut, at the lower resolution, instead of on its input (v5).
        alternating: Whether odd blocks convolve along the columns first; if not, all
            convolve along the rows first.
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
    stem_pad: int = 0
    top: int = 128
    groups: int = 1
    project_first: bool = False
    alternating: bool = True

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation: mean subtraction, as in Caffe, or pytorchcv's."""
        return self.weights[0].preprocessing if self.weights else CAFFE_RULE


CAFFE_RULE = Preprocessing(
    mean=(123.0, 117.0, 104.0),
    std=(1.0, 1.0, 1.0),
    size=227,
    crop=227 / 256,
    interpolation="bilinear",
)


def _pytorchcv_spec(
    width: float, release: str, file: str, sha1: str, rows: tuple[Row, ...] = ROWS
) -> SqueezeNextSpec:
    """Describe a network of pytorchcv, which multiplies stem and top by the width."""
    digits = "" if width == 1.0 else f"{round(100 * width)}"
    v5 = rows is V5
    name = "squeezenext_v5_pytorchcv" if v5 else "squeezenext_pytorchcv"
    function = "SqueezeNextV5PyTorchCV" if v5 else "SqueezeNextPyTorchCV"
    return SqueezeNextSpec(
        name=f"{name}_{digits}" if digits else name,
        function=f"{function}W{digits}" if digits else function,
        rows=rows,
        width=width,
        stem=int(64 * width),
        stem_pad=1,
        top=int(128 * width),
        alternating=False,
        default_size=224,
        bn_momentum=0.9,
        conv_bias=True,
        bias_exceptions=("*_conv",),
        flags_reason="the pool is not padded",
        weights=(_publishers.pytorchcv(release, file, sha1, TORCH_RULE),),
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
    _pytorchcv_spec(
        1.0, "v0.0.171", "sqnxt23_w1-1906", "97b74e0c4d6bf9fc939771d94b2f6dd97de34024"
    ),
    _pytorchcv_spec(
        1.5, "v0.0.210", "sqnxt23_w3d2-1350", "c2f21bce669dbe50fba544bcc39bc1302f63e1e8"
    ),
    _pytorchcv_spec(
        2.0, "v0.0.240", "sqnxt23_w2-1100", "b9bb7302824f89f16e078f0a506e3a8c0ad9c74e"
    ),
    _pytorchcv_spec(
        1.0,
        "v0.0.172",
        "sqnxt23v5_w1-1785",
        "2fe3ad67d73313193a77690b10c17cbceef92340",
        V5,
    ),
    _pytorchcv_spec(
        1.5,
        "v0.0.212",
        "sqnxt23v5_w3d2-1301",
        "c244844ba2f02dadd350dddd74e21360b452f9dd",
        V5,
    ),
    _pytorchcv_spec(
        2.0,
        "v0.0.216",
        "sqnxt23v5_w2-1066",
        "229b0d3de06197e399eeebf42dc826b78f0aba86",
        V5,
    ),
)


def build(spec: SqueezeNextSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c5 and "features" (128 channels)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    kernel = spec.stem_kernel
    if spec.stem_pad:
        side = (kernel, kernel)
        x, _ = layers.pad_for(x, side, step, 1, spec.padding, "stem", spec.stem_pad)
    x = layers.conv_bn(x, spec.stem, kernel, spec, "stem", stride=step)
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

    The authors' odd blocks convolve along the columns first, even ones along the rows.
    """
    tall, wide = (3, 1), (1, 3)
    tall_first = spec.alternating and number % 2
    order = (tall, wide) if tall_first else (wide, tall)
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


def _pytorchcv(spec: SqueezeNextSpec) -> dict[str, str]:
    unit = {"conv": "conv", "bn": "bn"}
    names = pairs("stem", "features.init_block.conv.", unit)
    for stage, row in enumerate(spec.rows, start=1):
        for number in range(1, row.repeat + 1):
            ours = f"stage{row.stage}_block{number}"
            theirs = f"features.stage{stage}.unit{number}"
            for i, (part, *_) in enumerate(_parts(4, number, spec), start=1):
                names |= pairs(f"{ours}_{part}", f"{theirs}.conv{i}.", unit)
            if number == 1:
                names |= pairs(f"{ours}_shortcut", f"{theirs}.identity_conv.", unit)
    names |= pairs("top", "features.final_block.", unit)
    return names | {"top_classifier": "output"}


LAYOUTS = {
    "caffe": Layout(names=_caffe, preprocessing=CAFFE_RULE, bgr="stem_conv"),
    "pytorchcv": Layout(names=_pytorchcv, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

SqueezeNext = make_application(SPECS[0], FAMILY)
SqueezeNextG = make_application(SPECS[1], FAMILY)
SqueezeNextV5 = make_application(SPECS[2], FAMILY)
SqueezeNextW200 = make_application(SPECS[3], FAMILY)
SqueezeNextV5W200 = make_application(SPECS[4], FAMILY)
SqueezeNextPyTorchCV = make_application(SPECS[5], FAMILY)
SqueezeNextPyTorchCVW150 = make_application(SPECS[6], FAMILY)
SqueezeNextPyTorchCVW200 = make_application(SPECS[7], FAMILY)
SqueezeNextV5PyTorchCV = make_application(SPECS[8], FAMILY)
SqueezeNextV5PyTorchCVW150 = make_application(SPECS[9], FAMILY)
SqueezeNextV5PyTorchCVW200 = make_application(SPECS[10], FAMILY)
preprocess_input = make_preprocess(SPECS)
