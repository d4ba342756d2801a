"""NEXcepTion: Xception rebuilt with what later networks found."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, LEVELS, ModelSpec, Preprocessing

__all__ = [
    "NEXcepTionS",
    "NEXcepTionT",
    "NEXcepTionTP",
    "decode_predictions",
    "preprocess_input",
]

RULE = dataclasses.replace(IMAGENET, crop=0.95)


@dataclass(frozen=True)
class Row:
    """Blocks of one kind: "entry", "middle", "exit" or "last" (see `_BUILDERS`).

    `down`: whether normalised 2x2 cells become one in front of the first block.
    """

    stage: int
    out: int
    kind: str
    repeat: int = 1
    down: bool = False
    stride: int = 1


def _classic(middle: int) -> tuple[Row, ...]:
    """Return Xception's stages; `middle` channels at stride 16."""
    return (
        Row(2, 128, "entry", stride=2),
        Row(3, 256, "entry", stride=2),
        Row(4, middle, "entry", stride=2),
        Row(4, middle, "middle", 8),
        Row(5, 1024, "exit", stride=2),
        Row(5, 2048, "last"),
    )


PYRAMID = (
    Row(2, 96, "middle", 3),
    Row(3, 192, "middle", 4, down=True, stride=2),
    Row(4, 384, "middle", 9, down=True, stride=2),
    Row(5, 768, "middle", 3, down=True, stride=2),
)


@dataclass(frozen=True, kw_only=True)
class NEXcepTionSpec(ModelSpec):
    """A NEXcepTion.

    The authors' weights are in a folder that has no addresses of single files;
    `weights=` takes a downloaded one.

    Attributes:
        patch: Side and stride of the stem's kernel. After a side of 2 the
            activation comes before the normalisation; after one of 4 there is none,
            and the pooled features are normalised.
    """

    rows: tuple[Row, ...] = _classic(512)
    output_strides: tuple[int, ...] = (32,)
    exact_strides: bool = False
    flags_reason: str = "the stem drops odd pixels"
    bias_exceptions: tuple[str, ...] = (
        *("stem_conv", "*_dw_conv", "*_sep3_pw_conv", "*_squeeze_conv"),
    )
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    reference: str = "Shavit et al. 2022, NEXcepTion, https://arxiv.org/abs/2212.08448"
    patch: int = 2

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, the authors'."""
        return self.weights[0].preprocessing if self.weights else RULE


SPECS = (
    NEXcepTionSpec(name="nexception_t", function="NEXcepTionT", top1=81.5),
    NEXcepTionSpec(
        name="nexception_tp",
        function="NEXcepTionTP",
        rows=PYRAMID,
        patch=4,
        levels=LEVELS[1:],
        top1=81.8,
    ),
    NEXcepTionSpec(
        name="nexception_s", function="NEXcepTionS", rows=_classic(752), top1=82.0
    ),
)


def build(spec: NEXcepTionSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps c1 (or c2) to c5; the last is "features"."""
    filters = spec.channels(96)
    x = layers.bias_conv(x, filters, "stem", kernel=spec.patch, stride=spec.patch)
    if spec.patch == 2:
        x = layers.activate(x, "gelu", "stem")
    x = layers.normalise(x, spec, "stem")
    maps = {"c1": x} if spec.patch == 2 else {}
    for block in _blocks(spec):
        x = maps[f"c{block.row.stage}"] = _BUILDERS[block.row.kind](x, block, spec)
    return {**maps, "features": x}


def neck(spec: NEXcepTionSpec, x: Any) -> Any:
    """Normalise the pooled features of the form with patches of 4 pixels."""
    return layers.normalise(x, spec, "top") if spec.patch == 4 else x


def _middle(x: Any, block: Block[Row], spec: NEXcepTionSpec) -> Any:
    """Widen threefold by 5x5 separable convolutions, narrow, weigh, add."""
    name = block.name
    if block.row.down and block.repeat == 0:
        x = layers.normalise(x, spec, f"{name}_down_norm")
        x = layers.bias_conv(x, block.out, f"{name}_down", kernel=2, stride=2)
    shortcut = x
    x = layers.separable_conv(x, 3 * block.out, spec, f"{name}_sep1", 5)
    x = layers.activate(x, "gelu", f"{name}_sep1")
    x = layers.separable_conv(x, block.out, spec, f"{name}_sep2", 5)
    x = layers.padded_depthwise(x, 5, spec, f"{name}_sep3_dw")
    x = layers.padded_conv(x, block.out, 1, spec, f"{name}_sep3_pw")
    return layers.residual(_weigh(x, spec, name), shortcut, name)


def _strided(x: Any, block: Block[Row], spec: NEXcepTionSpec) -> Any:
    """Two 5x5 separable convolutions, a blurring pool, a weighing, a projection.

    The channels grow in the first one, or at the network's exit in the second.
    """
    name, shortcut = block.name, x
    first = block.channels if block.row.kind == "exit" else block.out
    x = layers.separable_conv(x, first, spec, f"{name}_sep1", 5)
    x = layers.activate(x, "gelu", f"{name}_sep1")
    x = layers.separable_conv(x, block.out, spec, f"{name}_sep2", 5)
    x = _weigh(layers.blur_pool(x, name), spec, name)
    shortcut = layers.conv_bn(shortcut, block.out, 1, spec, f"{name}_shortcut", 2)
    return layers.residual(x, shortcut, name)


def _last(x: Any, block: Block[Row], spec: NEXcepTionSpec) -> Any:
    """Two 3x3 separable convolutions, to three quarters of the width and all of it."""
    for i, filters in enumerate((block.out * 3 // 4, block.out), 1):
        part = f"{block.name}_sep{i}"
        x = layers.activate(layers.separable_conv(x, filters, spec, part), "gelu", part)
    return x


_BUILDERS = {"entry": _strided, "middle": _middle, "exit": _strided, "last": _last}


def _weigh(x: Any, spec: NEXcepTionSpec, name: str) -> Any:
    reduced = make_divisible(x.shape[-1] / 16, 8, limit=0.0)
    return layers.squeeze_excite(x, reduced, name, "gelu", "sigmoid", spec)


def _blocks(spec: NEXcepTionSpec) -> list[Block[Row]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(96),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


_SQUEEZE = {
    "squeeze_conv": "block_end.fc1",
    "squeeze_bn": "block_end.bn",
    "excite_conv": "block_end.fc2",
}
_MIDDLE = {
    **{f"sep{i}_dw_conv": f"sepconv{i}.conv_dw" for i in (1, 2, 3)},
    **{f"sep{i}_pw_conv": f"sepconv{i}.conv_pw" for i in (1, 2, 3)},
    **{f"sep{i}_pw_bn": f"norm{i}" for i in (1, 2)},
    **_SQUEEZE,
}


def _sequence(*places: tuple[int, int]) -> dict[str, str]:
    """Name separable convolutions and their normalisations in a sequence."""
    parts: dict[str, str] = {}
    for i, (conv, norm) in enumerate(places, 1):
        parts[f"sep{i}_dw_conv"] = f"{conv}.conv_dw"
        parts[f"sep{i}_pw_conv"] = f"{conv}.conv_pw"
        parts[f"sep{i}_pw_bn"] = str(norm)
    return parts


_STRIDED = {
    **{key: f"rep.{value}" for key, value in _sequence((0, 1), (3, 4)).items()},
    **_SQUEEZE,
    **{"shortcut_conv": "skip", "shortcut_bn": "skipbn"},
}


def _authors(spec: NEXcepTionSpec) -> dict[str, str]:
    """Name the layers as hadarshavit/NEXcepTion does."""
    if spec.patch == 4:
        return _authors_pyramid(spec)
    names = {"stem_conv": "stem.0", "stem_bn": "stem.2"}
    for block in _blocks(spec):
        theirs, parts = {
            "entry": (f"downsampling_block{block.index + 1}.", _STRIDED),
            "middle": (f"middle_flow.{block.repeat}.", _MIDDLE),
            "exit": ("exit_flow.0.", _STRIDED),
            "last": ("exit_flow.", _sequence((1, 2), (4, 5))),
        }[block.row.kind]
        names |= pairs(block.name, theirs, parts)
    return names | {"top_classifier": "fc"}


def _authors_pyramid(spec: NEXcepTionSpec) -> dict[str, str]:
    names = {"stem_conv": "stem.0", "stem_bn": "stem.1"}
    for block in _blocks(spec):
        theirs = f"stages.{block.index}."
        if block.row.down and block.repeat == 0:
            down = {"down_norm_bn": "downsample.0", "down_conv": "downsample.1"}
            names |= pairs(block.name, theirs, down)
        names |= pairs(block.name, f"{theirs}blocks.{block.repeat}.", _MIDDLE)
    return names | {"top_bn": "head.norm", "top_classifier": "head.fc"}


LAYOUTS = {
    # The blurring filters, which some versions of timm store.
    "nexception": Layout(
        names=_authors,
        top=("top_bn", "top_classifier"),
        unused=("*.rep.6",),
        preprocessing=RULE,
    )
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, neck=neck)

NEXcepTionT = make_application(SPECS[0], FAMILY)
NEXcepTionTP = make_application(SPECS[1], FAMILY)
NEXcepTionS = make_application(SPECS[2], FAMILY)
preprocess_input = make_preprocess(SPECS)
