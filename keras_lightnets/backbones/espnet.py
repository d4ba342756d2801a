"""ESPNet's encoder (ESPNet-C without its classifier): pyramids of dilated kernels."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs, pyramid_names
from keras_lightnets._rules import ESPNET_CITYSCAPES
from keras_lightnets._spec import LEVELS, Level, ModelSpec, Preprocessing

__all__ = [
    "ESPNetEncoder",
    "ESPNetEncoderQ3",
    "ESPNetEncoderQ5",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One stage of the paper's figure 4: a strided pyramid, then residual ones."""

    stage: int
    out: int
    repeat: int


def _rows(q: int, p: int = 2) -> tuple[Row, ...]:
    return (Row(2, 64, p), Row(3, 128, q))


@dataclass(frozen=True, kw_only=True)
class ESPNetSpec(ModelSpec):
    """An ESPNet encoder.

    Attributes:
        stem: Channels of the first convolution.
        image_in_c1: Whether "c1" is the stem with the pooled image beside it, as in
            the authors' training code, or the stem alone, as in their published
            Cityscapes network. The encoder itself is the same.
    """

    divisor: int = 1
    default_size: int = 512
    padding: str = "symmetric"
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.9
    bias_exceptions: tuple[str, ...] = ("*_reduce_conv", "*_branch?_conv")
    dropout: float = 0.0
    classifier_bias: bool = False
    levels: tuple[Level, ...] = LEVELS[:3]
    output_strides: tuple[int, ...] = (32,)
    reference: str = "Mehta et al. 2018, ESPNet, https://arxiv.org/abs/1803.06815"
    stem: int = 16
    image_in_c1: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, that of Cityscapes."""
        return ESPNET_CITYSCAPES


SPECS = (
    ESPNetSpec(name="espnet_encoder", function="ESPNetEncoder", rows=_rows(8)),
    ESPNetSpec(name="espnet_encoder_q5", function="ESPNetEncoderQ5", rows=_rows(5)),
    ESPNetSpec(name="espnet_encoder_q3", function="ESPNetEncoderQ3", rows=_rows(3)),
)


def build(spec: ESPNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1, c2, c3 and "features", which is c3."""
    image = x
    x = layers.conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=2)
    stem = layers.activate(x, "prelu", "stem")
    image = layers.avg_pool(image, 3, 2, (1, 1), "stem_image")
    x = _join([stem, image], spec, "stem_join")
    maps = {"c1": x if spec.image_in_c1 else stem}
    for row in spec.rows:
        out, stem_of = spec.channels(row.out), f"stage{row.stage}_block"
        name = f"{stem_of}1"
        x = layers.spatial_pyramid(x, out, name, stride=2, padding=spec.padding)
        x = first = _norm_act(x, spec, name)
        for number in range(2, row.repeat + 2):
            name = f"{stem_of}{number}"
            y = layers.spatial_pyramid(x, out, name)
            x = _norm_act(layers.residual(y, x, name), spec, name)
        if row is spec.rows[-1]:
            maps[f"c{row.stage}"] = x = _join([first, x], spec, "top_join")
        else:
            part = f"{stem_of}1_image"
            image = layers.avg_pool(image, 3, 2, (1, 1), part)
            x = _join([x, first, image], spec, f"{name}_join")
            maps[f"c{row.stage}"] = x
    return {**maps, "features": x}


def _join(tensors: list[Any], spec: ESPNetSpec, name: str) -> Any:
    return _norm_act(layers.concat(tensors, name), spec, name)


def _norm_act(x: Any, spec: ESPNetSpec, name: str) -> Any:
    return layers.activate(layers.normalise(x, spec, name), "prelu", name)


def _names(spec: ESPNetSpec) -> dict[str, str]:
    parts = {"bn": "bn", "act": "act"}
    names = pairs("stem", "level1.", {"conv": "conv", **parts})
    names |= pairs("stem_join", "b1.", parts)
    for row in spec.rows:
        for number in range(1, row.repeat + 2):
            ours, first = f"stage{row.stage}_block{number}", number == 1
            index = "_0." if first else f".{number - 2}."
            theirs = f"level{row.stage}{index}"
            names |= pyramid_names(ours, theirs)
            names |= pairs(ours, theirs if first else f"{theirs}bn.", parts)
        last = row is spec.rows[-1]
        joined = "top_join" if last else f"stage{row.stage}_block{row.repeat + 1}_join"
        names |= pairs(joined, f"b{row.stage}.", parts)
    return names | {"top_classifier": "classifier.conv"}


_LAYOUT = Layout(
    names=_names,
    preprocessing=ESPNET_CITYSCAPES,
    image=("stem_conv", "stem_join_*", "stage3_block1_reduce_conv")
    + ("stage2_block1_reduce_conv", "stage2_block?_join_*"),
)
# The networks whose decoder reads the image from c1 need a layout of their own there.
LAYOUTS = {"authors": _LAYOUT, "authors_image": _LAYOUT}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

ESPNetEncoder = make_application(SPECS[0], FAMILY)
ESPNetEncoderQ5 = make_application(SPECS[1], FAMILY)
ESPNetEncoderQ3 = make_application(SPECS[2], FAMILY)
preprocess_input = make_preprocess(SPECS)
