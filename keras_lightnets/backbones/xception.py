"""Xception: the original, and the aligned ones that DeepLab uses."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._residual import TORCH_RULE
from keras_lightnets._spec import ModelSpec, Preprocessing, Weights

__all__ = [
    "Xception",
    "Xception41",
    "Xception65",
    "Xception71",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One or several modules: channels of their separable convolutions, stride.

    `act_first`: whether an activation stands in front of the first convolution.
    `shortcut`: whether the input is added; if not, activations follow convolutions.
    """

    stage: int
    outs: tuple[int, ...]
    stride: int = 1
    repeat: int = 1
    act_first: bool = True
    shortcut: bool = True


# fmt: off
ORIGINAL = (
    #   stage outs             stride repeat
    Row(2,    (128, 128),        2, act_first=False),
    Row(3,    (256, 256),        2),
    Row(4,    (728, 728),        2),
    Row(4,    (728, 728, 728),   1, 8),
    Row(5,    (728, 1024),       2),
    Row(5,    (1536, 2048),      act_first=False, shortcut=False),
)
EXIT = (
    Row(5,    (728, 1024, 1024), 2),
    Row(5,    (1536, 1536, 2048), act_first=False, shortcut=False),
)
ENTRY = (
    Row(2,    (128, 128, 128),   2),
    Row(3,    (256, 256, 256),   2),
    Row(4,    (728, 728, 728),   2),
)
LONG_ENTRY = (
    Row(2,    (128, 128, 128),   2),
    Row(2,    (256, 256, 256)),
    Row(3,    (256, 256, 256),   2),
    Row(3,    (728, 728, 728)),
    Row(4,    (728, 728, 728),   2),
)
# fmt: on


def _aligned(entry: tuple[Row, ...], middle: int) -> tuple[Row, ...]:
    return (*entry, Row(4, (728, 728, 728), 1, middle), *EXIT)


@dataclass(frozen=True, kw_only=True)
class XceptionSpec(ModelSpec):
    """An Xception.

    Attributes:
        aligned: Whether it is DeepLab's form: strides in separable convolutions
            instead of pooling, normalisation behind depthwise ones, padded stem.
        stem: Channels of the stem's two convolutions.
    """

    rows: tuple[Row, ...] = ORIGINAL
    default_size: int = 299
    # A pooling without its stride cannot be dilated, so 16 is the least.
    output_strides: tuple[int, ...] = (32, 16)
    exact_strides: bool = False
    flags_reason: str = "the stem's convolutions are not padded"
    bias_exceptions: tuple[str, ...] = ("*_dw_conv",)
    dropout: float = 0.0
    reference: str = "Chollet 2016, Xception, https://arxiv.org/abs/1610.02357"
    aligned: bool = False
    stem: tuple[int, int] = (32, 64)

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation of the default weights, or -1..1 at 299 pixels."""
        return self.weights[0].preprocessing if self.weights else _rule(0.8975)


def _rule(crop: float) -> Preprocessing:
    return Preprocessing(size=299, crop=crop)


def _timm(name: str, file: str) -> Weights:
    return _publishers.timm_hub(
        f"{name}.tf_in1k",
        _rule(0.903),
        source=_publishers.CONVERTED,
        tag="timm_tf_in1k",
        file=f"v0.1-weights/{file}",
    )


_RA3 = _publishers.timm_hub("xception65.ra3_in1k", _rule(0.94), tag="timm_ra3_in1k")


def _deeplab(name: str, rows: tuple[Row, ...], *weights: Weights) -> XceptionSpec:
    return XceptionSpec(
        name=name,
        function=name.capitalize(),
        rows=rows,
        aligned=True,
        output_strides=(32, 16, 8),
        exact_strides=True,
        flags_reason="",
        bias_exceptions=(),
        padding="symmetric",
        bn_momentum=0.9,
        weights=weights,
        reference="Chen et al. 2018, DeepLabv3+, https://arxiv.org/abs/1802.02611",
    )


TORCH_CHANGES = (("bn_epsilon", 1e-5), ("bn_momentum", 0.9), ("padding", "symmetric"))
# Its hash has nine digits, one more than those of timm's other files.
_LEGACY = dataclasses.replace(
    _publishers.timm(
        "timm_tf_in1k",
        "xception-43020ad28",
        _rule(0.8975),
        78.892,
        TORCH_CHANGES,
        source="converted from Keras's",
        host=f"{_publishers.TIMM}/v0.1-cadene",
    ),
    hash="sha256:43020ad28",
)
KERAS = "tensorflow/keras-applications/xception"
PCV_RULE = dataclasses.replace(TORCH_RULE, size=299)

SPECS = (
    XceptionSpec(
        name="xception",
        function="Xception",
        top1=79.0,
        weights=(
            _LEGACY,
            _publishers.pytorchcv(
                "v0.0.544",
                "xception-0516",
                "a75b50eceb5fdfb1e1bfaada6820a448ce40e593",
                PCV_RULE,
                TORCH_CHANGES,
            ),
            _publishers.keras(
                f"{KERAS}/xception_weights_tf_dim_ordering_tf_kernels",
                _rule(0.8975),
                "0a58e3b7378bc2990ea3b43d5981f1f6",
                79.0,
            ),
        ),
    ),
    _deeplab(
        "xception41", _aligned(ENTRY, 8), _timm("xception41", "tf_xception_41-e6439c97")
    ),
    _deeplab(
        "xception65",
        _aligned(ENTRY, 16),
        _RA3,
        _timm("xception65", "tf_xception_65-c9ae96e8"),
    ),
    _deeplab(
        "xception71",
        _aligned(LONG_ENTRY, 16),
        _timm("xception71", "tf_xception_71-8eec7df1"),
    ),
)


def build(spec: XceptionSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1..c5; those before c5 are not activated."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    for i, (filters, pace) in enumerate(zip(spec.stem, (step, 1), strict=True), 1):
        name, count = f"stem_{i}", spec.channels(filters)
        if spec.aligned:
            x = layers.conv_bn(x, count, 3, spec, name, pace)
        else:
            x = layers.valid_conv_bn(x, count, spec, name, pace)
        x = layers.activate(x, "relu", name)
    maps = {"c1": x}
    for block in _blocks(spec):
        x = maps[f"c{block.row.stage}"] = _module(x, block, spec, stride)
    return {**maps, "features": x}


def _module(
    x: Any, block: Block[Row], spec: XceptionSpec, stride: layers.DilatedStride
) -> Any:
    row, shortcut, name = block.row, x, block.name
    # The last convolution of aligned modules strides, or the pooling behind all.
    before = stride.dilation
    step, dilation = stride.step(block.stride)
    last = len(row.outs)
    for i, count in enumerate(row.outs, 1):
        part, filters = f"{name}_sep{i}", spec.channels(count)
        if row.shortcut and (row.act_first or i > 1):
            x = layers.activate(x, "relu", part)
        if spec.aligned:
            act = "linear" if row.shortcut else "relu"
            sizes = (step, dilation) if i == last else (1, before)
            x = layers.separable_conv_bn(x, filters, spec, part, act, *sizes)
        else:
            x = layers.separable_conv(x, filters, spec, part, dilation=before)
            x = x if row.shortcut else layers.activate(x, "relu", f"{part}_pw")
    if not row.shortcut:
        return x
    if block.stride > 1 and not spec.aligned:
        x = layers.centred_max_pool(x, step, spec.padding, name)
    if _resized(block):
        shortcut = layers.conv_bn(
            shortcut, block.out, 1, spec, f"{name}_shortcut", step
        )
    return layers.residual(x, shortcut, name)


def _resized(block: Block[Row]) -> bool:
    row = block.row
    return row.shortcut and (block.stride > 1 or block.channels != block.out)


def _blocks(spec: XceptionSpec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem[-1]),
        outs=[spec.channels(row.outs[-1]) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


def _timm_names(spec: XceptionSpec) -> dict[str, str]:
    """Name the layers as timm does: two files with two ways."""
    return (_timm_aligned if spec.aligned else _timm_original)(spec)


def _timm_aligned(spec: XceptionSpec) -> dict[str, str]:
    inner = {"conv": "conv", "bn": "bn"}
    names = pairs("stem_1", "stem.0.", inner) | pairs("stem_2", "stem.1.", inner)
    for number, block in enumerate(_blocks(spec)):
        parts = pairs("shortcut", "shortcut.", inner) if _resized(block) else {}
        for i in range(1, len(block.row.outs) + 1):
            for piece in ("dw", "pw"):
                theirs = {"conv": f"conv_{piece}", "bn": f"bn_{piece}"}
                parts |= pairs(f"sep{i}_{piece}", f"stack.conv{i}.", theirs)
        names |= pairs(block.name, f"blocks.{number}.", parts)
    return names | {"top_classifier": "head.fc"}


def _timm_original(spec: XceptionSpec) -> dict[str, str]:
    names = {
        f"stem_{i}_{part}": f"{part}{i}" for i in (1, 2) for part in ("conv", "bn")
    }
    for number, block in enumerate(_blocks(spec), 1):
        row, parts = block.row, {}
        for i in range(1, len(row.outs) + 1):
            # Activations count in their sequence.
            at = 3 * i - 2 - (not row.act_first)
            conv, norm = f"rep.{at}", f"rep.{at + 1}"
            if not row.shortcut:
                conv, norm = f"conv{i + 2}", f"bn{i + 2}"
            parts[f"sep{i}_dw_conv"] = f"{conv}.conv1"
            parts[f"sep{i}_pw_conv"] = f"{conv}.pointwise"
            parts[f"sep{i}_pw_bn"] = norm
        if _resized(block):
            parts |= {"shortcut_conv": "skip", "shortcut_bn": "skipbn"}
        names |= pairs(block.name, f"block{number}." if row.shortcut else "", parts)
    return names | {"top_classifier": "fc"}


def _pytorchcv_names(spec: XceptionSpec) -> dict[str, str]:
    inner = {"conv": "conv", "bn": "bn"}
    init = "features.init_block.conv"
    names = pairs("stem_1", f"{init}1.", inner) | pairs("stem_2", f"{init}2.", inner)
    for block in _blocks(spec):
        row = block.row
        prefix = f"features.stage{row.stage - 1}.unit{block.number}."
        parts = pairs("shortcut", "identity_conv.", inner) if _resized(block) else {}
        for i in range(1, len(row.outs) + 1):
            theirs = f"body.block{i}." if row.shortcut else f"conv{i}."
            parts[f"sep{i}_dw_conv"] = f"{theirs}conv.dw_conv"
            parts[f"sep{i}_pw_conv"] = f"{theirs}conv.pw_conv"
            parts[f"sep{i}_pw_bn"] = f"{theirs}bn"
        final = "features.final_block."
        names |= pairs(block.name, prefix if row.shortcut else final, parts)
    return names | {"top_classifier": "output"}


def _keras_names(spec: XceptionSpec) -> dict[str, str]:
    """Name the layers as Keras does, whose shortcuts are only counted."""
    names = {
        f"stem_{i}_{part}": f"block1_conv{i}{end}"
        for i in (1, 2)
        for part, end in (("conv", ""), ("bn", "_bn"))
    }
    shortcuts = 0
    for number, block in enumerate(_blocks(spec), start=2):
        parts = {}
        for i in range(1, len(block.row.outs) + 1):
            theirs = f"sepconv{i}"
            parts[f"sep{i}_dw_conv"] = f"{theirs}/depthwise"
            parts[f"sep{i}_pw_conv"] = f"{theirs}/pointwise"
            parts[f"sep{i}_pw_bn"] = f"{theirs}_bn"
        names |= pairs(block.name, f"block{number}_", parts)
        if _resized(block):
            shortcuts += 1
            names[f"{block.name}_shortcut_conv"] = f"conv2d_{shortcuts}"
            names[f"{block.name}_shortcut_bn"] = f"batch_normalization_{shortcuts}"
    return names | {"top_classifier": "predictions"}


LAYOUTS = {
    "timm": Layout(names=_timm_names),
    "pytorchcv": Layout(
        names=_pytorchcv_names, changes=TORCH_CHANGES, preprocessing=PCV_RULE
    ),
    "keras": Layout(names=_keras_names, kind="keras"),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

Xception = make_application(SPECS[0], FAMILY)
Xception41 = make_application(SPECS[1], FAMILY)
Xception65 = make_application(SPECS[2], FAMILY)
Xception71 = make_application(SPECS[3], FAMILY)
preprocess_input = make_preprocess(SPECS)
