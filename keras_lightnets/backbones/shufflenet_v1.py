"""ShuffleNet: grouped pointwise convolutions joined by channel shuffles."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import StageRow
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing, Weights

__all__ = [
    "ShuffleNetV1G1",
    "ShuffleNetV1G1W025",
    "ShuffleNetV1G1W050",
    "ShuffleNetV1G1W075",
    "ShuffleNetV1G2",
    "ShuffleNetV1G3",
    "ShuffleNetV1G3W025",
    "ShuffleNetV1G3W050",
    "ShuffleNetV1G3W075",
    "ShuffleNetV1G3W150",
    "ShuffleNetV1G3W200",
    "ShuffleNetV1G4",
    "ShuffleNetV1G8",
    "ShuffleNetV1G8W050",
    "ShuffleNetV1G8W150",
    "ShuffleNetV1G8W200",
    "decode_predictions",
    "preprocess_input",
]


# Per number of groups: about the same cost, so more groups have more channels.
# fmt: off
ROWS = {
    #        stage out repeat
    1: (StageRow(3, 144, 4), StageRow(4, 288, 8), StageRow(5,  576, 4)),
    2: (StageRow(3, 200, 4), StageRow(4, 400, 8), StageRow(5,  800, 4)),
    3: (StageRow(3, 240, 4), StageRow(4, 480, 8), StageRow(5,  960, 4)),
    4: (StageRow(3, 272, 4), StageRow(4, 544, 8), StageRow(5, 1088, 4)),
    8: (StageRow(3, 384, 4), StageRow(4, 768, 8), StageRow(5, 1536, 4)),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ShuffleNetV1Spec(ModelSpec):
    """A ShuffleNet.

    Attributes:
        groups: Groups of the pointwise convolutions.
        stem: Channels of the stem; the width is in them.
        authors_order: Order of the channels. True, as in the authors' code: the
            pooled shortcut leads in strided units, and the shuffle stands behind the
            depthwise convolution and undoes an interleaving. False, as in the paper's
            figure 2: the shortcut comes last and the shuffle stands before the
            depthwise convolution. Equal but for a permutation of weights.
    """

    groups: int = 3
    stem: int = 24
    authors_order: bool = True
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    reference: str = "Zhang et al. 2017, ShuffleNet, https://arxiv.org/abs/1707.01083"

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's for every variant."""
        return self.weights[0].preprocessing if self.weights else PYTORCHCV_RULE


PYTORCHCV_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
MEGVII_RULE = Preprocessing(
    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear"
)
PYTORCHCV = (("authors_order", False), ("classifier_bias", True))
MEGVII = (("authors_order", True), ("classifier_bias", False))


def _weights(release: str, file: str, sha1: str) -> tuple[Weights, ...]:
    host = "https://github.com/osmr/imgclsmob/releases/download"
    return (
        Weights(
            tag="pytorchcv_in1k",
            url=f"{host}/{release}/shufflenet_{file}-{sha1[:8]}.pth.zip",
            hash=f"sha1:{sha1}",
            format="pth.zip",
            layout="pytorchcv",
            licence="MIT",
            preprocessing=PYTORCHCV_RULE,
            changes=PYTORCHCV,
            source="pytorchcv (osmr/imgclsmob)",
        ),
    )


def _spec(
    groups: int,
    width: float = 1.0,
    stem: int = 24,
    published: tuple[str, str, str] | None = None,
    **fields: Any,
) -> ShuffleNetV1Spec:
    percent = "" if width == 1.0 else f"{round(width * 100):03d}"
    if groups > 1:
        fields["dynamic_size"] = False
        fields["flags_reason"] = "the channel shuffle needs a known size"
    return ShuffleNetV1Spec(
        name=f"shufflenet_v1_g{groups}" + (f"_{percent}" if percent else ""),
        function=f"ShuffleNetV1G{groups}" + (f"W{percent}" if percent else ""),
        rows=ROWS[groups],
        groups=groups,
        width=width,
        stem=stem,
        weights=_weights(*published) if published else (),
        **fields,
    )


_TRAINED = {
    "g1": ("v0.0.223", "g1_w1-1389", "4cfb65a30761fe548e0b5afbb5d89793ec41e4e9"),
    "g1_75": ("v0.0.218", "g1_w3d4-1711", "161cd24aa0b2e2afadafa69b44a28af222f2ec7a"),
    "g1_50": ("v0.0.174", "g1_wd2-2261", "dae4bdadd7d48bee791dff2a08cd697cff0e9320"),
    "g1_25": ("v0.0.134", "g1_wd4-3729", "47dbd0f279da6d3056079bb79ad39cabbb3b9415"),
    "g2": ("v0.0.241", "g2_w1-1363", "07256203e217a7b31f1c69a5bd38a6674bce75bc"),
    "g3": ("v0.0.244", "g3_w1-1348", "ce54f64ecff87556a4303380f46abaaf649eb308"),
    "g3_75": ("v0.0.219", "g3_w3d4-1650", "3f3b0aef0ce3174c78ff42cf6910c6e34540fc41"),
    "g3_50": ("v0.0.167", "g3_wd2-2080", "ccaacfc8d9ac112c6143269df6e258fd55b662a7"),
    "g3_25": ("v0.0.135", "g3_wd4-3653", "6abdd65e087e71f80345415cdf7ada6ed2762d60"),
    "g4": ("v0.0.245", "g4_w1-1335", "e2415f8270a4b6cbfe7dc97044d497edbc898577"),
    "g8": ("v0.0.250", "g8_w1-1342", "9a979b365424addba75c559a61a77ac7154b26eb"),
}
# Variants the authors' repository holds end in a classifier without bias.
_AUTHORS: dict[str, Any] = dict(MEGVII)
_OTHERS: dict[str, Any] = dict(PYTORCHCV)

SPECS = (
    _spec(3, published=_TRAINED["g3"], top1=67.8, **_AUTHORS),
    _spec(3, 2.0, 48, top1=74.1, **_AUTHORS),
    _spec(3, 1.5, 24, top1=71.6, **_AUTHORS),
    _spec(3, 0.75, 18, published=_TRAINED["g3_75"], **_OTHERS),
    _spec(3, 0.5, 12, published=_TRAINED["g3_50"], top1=57.3, **_AUTHORS),
    _spec(3, 0.25, 6, published=_TRAINED["g3_25"], **_OTHERS),
    _spec(8, published=_TRAINED["g8"], top1=68.0, **_AUTHORS),
    _spec(8, 2.0, 48, top1=72.9, **_AUTHORS),
    _spec(8, 1.5, 24, top1=71.0, **_AUTHORS),
    _spec(8, 0.5, 16, top1=58.8, **_AUTHORS),
    _spec(4, published=_TRAINED["g4"], top1=67.2, **_OTHERS),
    _spec(2, published=_TRAINED["g2"], top1=67.3, **_OTHERS),
    _spec(1, published=_TRAINED["g1"], top1=66.4, **_OTHERS),
    _spec(1, 0.75, 18, published=_TRAINED["g1_75"], **_OTHERS),
    _spec(1, 0.5, 12, published=_TRAINED["g1_50"], **_OTHERS),
    _spec(1, 0.25, 6, published=_TRAINED["g1_25"], **_OTHERS),
)


def build(spec: ShuffleNetV1Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2 (pool), c3..c5; "features" is c5."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {"c1": x}
    step, _ = stride.step(2)
    x = maps["c2"] = layers.max_pool(x, 3, step, (1, 1), "stem")
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            x = _unit(x, row, number, spec, stride)
        maps[f"c{row.stage}"] = x
    return {**maps, "features": x}


def _unit(
    x: Any,
    row: StageRow,
    number: int,
    spec: ShuffleNetV1Spec,
    stride: layers.DilatedStride,
) -> Any:
    """Reduce, shuffle, convolve per channel, expand; add or concat the shortcut."""
    name = f"stage{row.stage}_block{number}"
    shortcut, out, strided = x, int(row.out * spec.width), number == 1
    mid, shuffled = out // 4, spec.groups > 1
    # The very first pointwise convolution sees too few channels to be grouped.
    first = strided and row is spec.rows[0]
    groups = 1 if first else spec.groups
    x = layers.conv_bn(x, mid, 1, spec, f"{name}_reduce", groups=groups)
    x = layers.activate(x, "relu", f"{name}_reduce")
    if shuffled and not spec.authors_order:
        x = layers.channel_shuffle(x, spec.groups, name)
    step, dilation = stride.step(2 if strided else 1)
    x = layers.depthwise_bn(x, 3, spec, f"{name}_dw", step, dilation)
    if shuffled and spec.authors_order:
        x = layers.channel_shuffle(x, mid // spec.groups, name)
    filters = out - shortcut.shape[-1] if strided else out
    x = layers.conv_bn(x, filters, 1, spec, f"{name}_expand", groups=spec.groups)
    if not strided:
        return layers.activate(layers.residual(x, shortcut, name), "relu", name)
    x = layers.activate(x, "relu", name)
    part = f"{name}_shortcut"
    pooled = layers.avg_pool(shortcut, 3, step, (1, 1), part, dilation)
    return layers.concat([pooled, x] if spec.authors_order else [x, pooled], name)


def _megvii(spec: ShuffleNetV1Spec) -> dict[str, str]:
    names = pairs("stem", "first_conv.", {"conv": "0", "bn": "1"})
    parts = {"reduce_conv": "1.0", "reduce_bn": "1.1", "dw_conv": "1.3"}
    parts |= {"dw_bn": "1.4", "expand_conv": "2.0", "expand_bn": "2.1"}
    for index, name in enumerate(_names(spec)):
        names |= pairs(name, f"features.{index}.branch_main_", parts)
    return names | {"top_classifier": "classifier.0"}


def _pytorchcv(spec: ShuffleNetV1Spec) -> dict[str, str]:
    names = pairs("stem", "features.init_block.", {"conv": "conv", "bn": "bn"})
    parts = {"reduce_conv": "compress_conv1", "reduce_bn": "compress_bn1"}
    parts |= {"dw_conv": "dw_conv2", "dw_bn": "dw_bn2"}
    parts |= {"expand_conv": "expand_conv3", "expand_bn": "expand_bn3"}
    for name in _names(spec):
        stage, number = name.removeprefix("stage").split("_block")
        theirs = f"features.stage{int(stage) - 2}.unit{number}."
        names |= pairs(name, theirs, parts)
    return names | {"top_classifier": "output"}


def _names(spec: ShuffleNetV1Spec) -> list[str]:
    return [
        f"stage{row.stage}_block{number}"
        for row in spec.rows
        for number in range(1, row.repeat + 1)
    ]


LAYOUTS = {
    "pytorchcv": Layout(
        names=_pytorchcv, changes=PYTORCHCV, preprocessing=PYTORCHCV_RULE
    ),
    "megvii": Layout(
        names=_megvii, changes=MEGVII, preprocessing=MEGVII_RULE, bgr="stem_conv"
    ),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

ShuffleNetV1G3 = make_application(SPECS[0], FAMILY)
ShuffleNetV1G3W200 = make_application(SPECS[1], FAMILY)
ShuffleNetV1G3W150 = make_application(SPECS[2], FAMILY)
ShuffleNetV1G3W075 = make_application(SPECS[3], FAMILY)
ShuffleNetV1G3W050 = make_application(SPECS[4], FAMILY)
ShuffleNetV1G3W025 = make_application(SPECS[5], FAMILY)
ShuffleNetV1G8 = make_application(SPECS[6], FAMILY)
ShuffleNetV1G8W200 = make_application(SPECS[7], FAMILY)
ShuffleNetV1G8W150 = make_application(SPECS[8], FAMILY)
ShuffleNetV1G8W050 = make_application(SPECS[9], FAMILY)
ShuffleNetV1G4 = make_application(SPECS[10], FAMILY)
ShuffleNetV1G2 = make_application(SPECS[11], FAMILY)
ShuffleNetV1G1 = make_application(SPECS[12], FAMILY)
ShuffleNetV1G1W075 = make_application(SPECS[13], FAMILY)
ShuffleNetV1G1W050 = make_application(SPECS[14], FAMILY)
ShuffleNetV1G1W025 = make_application(SPECS[15], FAMILY)
preprocess_input = make_preprocess(SPECS)
