"""ShuffleNetV2: half of the channels pass, the other half is convolved."""

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
    "ShuffleNetV2",
    "ShuffleNetV2Megvii",
    "ShuffleNetV2MegviiW050",
    "ShuffleNetV2MegviiW150",
    "ShuffleNetV2MegviiW200",
    "ShuffleNetV2W050",
    "ShuffleNetV2W150",
    "ShuffleNetV2W200",
    "decode_predictions",
    "preprocess_input",
]


# The channels of each width are the table's; no rule gives them all.
# fmt: off
X050 = (StageRow(3,  48, 4), StageRow(4,  96, 8), StageRow(5, 192, 4))
X100 = (StageRow(3, 116, 4), StageRow(4, 232, 8), StageRow(5, 464, 4))
X150 = (StageRow(3, 176, 4), StageRow(4, 352, 8), StageRow(5, 704, 4))
X200 = (StageRow(3, 244, 4), StageRow(4, 488, 8), StageRow(5, 976, 4))
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ShuffleNetV2Spec(ModelSpec):
    """A ShuffleNetV2.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution.
        even_branches: Whether both branches of a strided unit give half of its
            output, as the paper's figure 3 and torchvision have it. In the authors'
            code the shortcut keeps its channels and the main branch gives the rest.
        split_parity: Order of the channels. False: a unit splits the lower from the
            upper half and shuffles its output. True, as in the authors' code: a unit
            splits even from odd channels and shuffles nothing. Equal but for the
            place of the shuffle, so endpoints are permuted.
        pool_padded: Whether the stem's pool is padded on every side; pytorchcv's
            only reaches over the lower right edge.
    """

    rows: tuple[StageRow, ...] = X100
    stem: int = 24
    top: int = 1024
    even_branches: bool = True
    split_parity: bool = False
    pool_padded: bool = True
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    dynamic_size: bool = False
    flags_reason: str = "the channel shuffle needs a known size"
    reference: str = "Ma et al. 2018, ShuffleNetV2, https://arxiv.org/abs/1807.11164"

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's for every variant."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE


TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
# torchvision's newer recipe evaluates on a 224 crop of a shortest side of 232.
TORCH_RULE_232 = dataclasses.replace(TORCH_RULE, crop=224 / 232)
MEGVII_RULE = Preprocessing(
    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear"
)
PYTORCHCV = (("pool_padded", False),)
# pytorchcv's "b" nets have the authors' branches, but shuffle at the end.
PYTORCHCV_B = (("split_parity", False), ("classifier_bias", True))
MEGVII = (("split_parity", True), ("classifier_bias", False))


def _torchvision_weights(
    file: str, top1: float, rule: Preprocessing = TORCH_RULE
) -> Weights:
    return Weights(
        tag="torchvision_v1",
        url=f"https://download.pytorch.org/models/shufflenetv2_{file}.pth",
        hash=f"sha256:{file.rpartition('-')[2]}",
        format="pth",
        layout="torchvision",
        licence="BSD-3-Clause",
        preprocessing=rule,
        top1=top1,
        source="torchvision",
    )


def _pytorchcv_weights(release: str, file: str, sha1: str) -> Weights:
    host = "https://github.com/osmr/imgclsmob/releases/download"
    like_authors = file.startswith("shufflenetv2b")
    return Weights(
        tag="pytorchcv_b_in1k" if like_authors else "pytorchcv_in1k",
        url=f"{host}/{release}/{file}-{sha1[:8]}.pth.zip",
        hash=f"sha1:{sha1}",
        format="pth.zip",
        layout="pytorchcv_b" if like_authors else "pytorchcv",
        licence="MIT",
        preprocessing=TORCH_RULE,
        changes=PYTORCHCV_B if like_authors else PYTORCHCV,
        source="pytorchcv (osmr/imgclsmob)",
    )


# Names of the torchvision layout, then of the authors'.
SPECS = (
    ShuffleNetV2Spec(
        name="shufflenet_v2",
        function="ShuffleNetV2",
        top1=69.4,
        weights=(
            _torchvision_weights("x1-5666bf0f80", 69.362),
            _pytorchcv_weights(
                "v0.0.133",
                "shufflenetv2_w1-1163",
                "c71dfb7a814c8d8ef704bdbd80995e9ea49ff4ff",
            ),
        ),
    ),
    ShuffleNetV2Spec(
        name="shufflenet_v2_050",
        function="ShuffleNetV2W050",
        rows=X050,
        width=0.5,
        top1=61.1,
        weights=(
            _torchvision_weights("x0.5-f707e7126e", 60.552),
            _pytorchcv_weights(
                "v0.0.90",
                "shufflenetv2_wd2-1865",
                "9c22238b5fa9c09541564e8ed7f357a5f7e8cd7c",
            ),
        ),
    ),
    ShuffleNetV2Spec(
        name="shufflenet_v2_150",
        function="ShuffleNetV2W150",
        rows=X150,
        width=1.5,
        top1=72.6,
        weights=(_torchvision_weights("x1_5-3c479a10", 72.996, TORCH_RULE_232),),
    ),
    ShuffleNetV2Spec(
        name="shufflenet_v2_200",
        function="ShuffleNetV2W200",
        rows=X200,
        width=2.0,
        top=2048,
        top1=75.0,
        weights=(_torchvision_weights("x2_0-8be3c8ee", 76.23, TORCH_RULE_232),),
    ),
    ShuffleNetV2Spec(
        name="shufflenet_v2_megvii",
        function="ShuffleNetV2Megvii",
        even_branches=False,
        split_parity=True,
        classifier_bias=False,
        top1=69.4,
        weights=(
            _pytorchcv_weights(
                "v0.0.161",
                "shufflenetv2b_w1-1125",
                "6a5d3dc446e6a00cf60fe8aa2f4139d74d766305",
            ),
        ),
    ),
    ShuffleNetV2Spec(
        name="shufflenet_v2_megvii_050",
        function="ShuffleNetV2MegviiW050",
        rows=X050,
        width=0.5,
        even_branches=False,
        split_parity=True,
        classifier_bias=False,
        top1=61.1,
        weights=(
            _pytorchcv_weights(
                "v0.0.157",
                "shufflenetv2b_wd2-1822",
                "01d18d6fa1a6136f605a4277f47c9a757f9ede3b",
            ),
        ),
    ),
    ShuffleNetV2Spec(
        name="shufflenet_v2_megvii_150",
        function="ShuffleNetV2MegviiW150",
        rows=X150,
        width=1.5,
        even_branches=False,
        split_parity=True,
        classifier_bias=False,
        top1=72.6,
    ),
    ShuffleNetV2Spec(
        name="shufflenet_v2_megvii_200",
        function="ShuffleNetV2MegviiW200",
        rows=X200,
        width=2.0,
        top=2048,
        even_branches=False,
        split_parity=True,
        classifier_bias=False,
        dropout=0.2,
        top1=75.0,
    ),
)


def build(spec: ShuffleNetV2Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2 (pool), c3..c5 and "features" (top)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.stem, 3, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {"c1": x}
    step, _ = stride.step(2)
    pad = (1, 1) if spec.pool_padded else (0, 1)
    x = maps["c2"] = layers.max_pool(x, 3, step, pad, "stem")
    for row in spec.rows:
        x = _strided_unit(x, row.out, spec, stride, f"stage{row.stage}_block1")
        for number in range(2, row.repeat + 1):
            x = _unit(x, spec, stride, f"stage{row.stage}_block{number}")
        maps[f"c{row.stage}"] = x
    x = layers.conv_bn(x, spec.top, 1, spec, "top")
    return {**maps, "features": layers.activate(x, "relu", "top")}


def _unit(x: Any, spec: ShuffleNetV2Spec, stride: Any, name: str) -> Any:
    """Convolve one half of the channels (figure 3c)."""
    channels = x.shape[-1]
    if spec.split_parity:
        # Even channels first, odd ones behind.
        x = layers.channel_shuffle(x, channels // 2, name)
    kept, x = layers.channel_split(x, name)
    x = _branch(x, channels // 2, channels // 2, spec, name, stride.step(1))
    return _join(kept, x, spec, name)


def _strided_unit(
    x: Any, out: int, spec: ShuffleNetV2Spec, stride: Any, name: str
) -> Any:
    """Convolve all channels in two branches (figure 3d)."""
    channels, part = x.shape[-1], f"{name}_shortcut"
    kept = out // 2 if spec.even_branches else channels
    step = stride.step(2)
    shortcut = layers.depthwise_bn(x, 3, spec, f"{part}_dw", *step)
    shortcut = layers.conv_bn(shortcut, kept, 1, spec, part)
    shortcut = layers.activate(shortcut, "relu", part)
    x = _branch(x, out // 2, out - kept, spec, name, step)
    return _join(shortcut, x, spec, name)


def _branch(
    x: Any,
    mid: int,
    out: int,
    spec: ShuffleNetV2Spec,
    name: str,
    step: tuple[int, int],
) -> Any:
    x = layers.conv_bn(x, mid, 1, spec, f"{name}_reduce")
    x = layers.activate(x, "relu", f"{name}_reduce")
    x = layers.depthwise_bn(x, 3, spec, f"{name}_dw", *step)
    x = layers.conv_bn(x, out, 1, spec, f"{name}_expand")
    return layers.activate(x, "relu", f"{name}_expand")


def _join(kept: Any, x: Any, spec: ShuffleNetV2Spec, name: str) -> Any:
    x = layers.concat([kept, x], name)
    return x if spec.split_parity else layers.channel_shuffle(x, 2, name)


def _named_blocks(spec: ShuffleNetV2Spec) -> list[tuple[int, int]]:
    return [(row.stage, i) for row in spec.rows for i in range(1, row.repeat + 1)]


def _numbered(
    spec: ShuffleNetV2Spec, theirs: list[str], main: str, shortcut: str
) -> dict[str, str]:
    """Name the units whose parts are numbered, torchvision's and the authors'."""
    names: dict[str, str] = {}
    parts = {"reduce_conv": "0", "reduce_bn": "1", "dw_conv": "3", "dw_bn": "4"}
    parts |= {"expand_conv": "5", "expand_bn": "6"}
    side = {"shortcut_dw_conv": "0", "shortcut_dw_bn": "1"}
    side |= {"shortcut_conv": "2", "shortcut_bn": "3"}
    for (stage, number), place in zip(_named_blocks(spec), theirs, strict=True):
        ours = f"stage{stage}_block{number}"
        if number == 1:
            names |= pairs(ours, f"{place}.{shortcut}.", side)
        names |= pairs(ours, f"{place}.{main}.", parts)
    return names


def _torchvision(spec: ShuffleNetV2Spec) -> dict[str, str]:
    theirs = [f"stage{stage - 1}.{i - 1}" for stage, i in _named_blocks(spec)]
    return {
        **pairs("stem", "conv1.", {"conv": "0", "bn": "1"}),
        **_numbered(spec, theirs, "branch2", "branch1"),
        **pairs("top", "conv5.", {"conv": "0", "bn": "1"}),
        "top_classifier": "fc",
    }


def _megvii(spec: ShuffleNetV2Spec) -> dict[str, str]:
    theirs = [f"features.{index}" for index in range(len(_named_blocks(spec)))]
    return {
        **pairs("stem", "first_conv.", {"conv": "0", "bn": "1"}),
        **_numbered(spec, theirs, "branch_main", "branch_proj"),
        **pairs("top", "conv_last.", {"conv": "0", "bn": "1"}),
        "top_classifier": "classifier.0",
    }


_PYTORCHCV = {
    "reduce_conv": "compress_conv1",
    "reduce_bn": "compress_bn1",
    "dw_conv": "dw_conv2",
    "dw_bn": "dw_bn2",
    "expand_conv": "expand_conv3",
    "expand_bn": "expand_bn3",
    "shortcut_dw_conv": "dw_conv4",
    "shortcut_dw_bn": "dw_bn4",
    "shortcut_conv": "expand_conv5",
    "shortcut_bn": "expand_bn5",
}
_PYTORCHCV_B = {
    "reduce_conv": "conv1.conv",
    "reduce_bn": "conv1.bn",
    "dw_conv": "dconv.conv",
    "dw_bn": "dconv.bn",
    "expand_conv": "conv2.conv",
    "expand_bn": "conv2.bn",
    "shortcut_dw_conv": "shortcut_dconv.conv",
    "shortcut_dw_bn": "shortcut_dconv.bn",
    "shortcut_conv": "shortcut_conv.conv",
    "shortcut_bn": "shortcut_conv.bn",
}


def _by_unit(spec: ShuffleNetV2Spec, parts: dict[str, str]) -> dict[str, str]:
    """Name the layers as pytorchcv does."""
    block = {"conv": "conv", "bn": "bn"}
    names = pairs("stem", "features.init_block.conv.", block)
    for stage, i in _named_blocks(spec):
        used = {k: v for k, v in parts.items() if i == 1 or "shortcut" not in k}
        theirs = f"features.stage{stage - 2}.unit{i}."
        names |= pairs(f"stage{stage}_block{i}", theirs, used)
    names |= pairs("top", "features.final_block.", block)
    return names | {"top_classifier": "output"}


def _pytorchcv(spec: ShuffleNetV2Spec) -> dict[str, str]:
    return _by_unit(spec, _PYTORCHCV)


def _pytorchcv_b(spec: ShuffleNetV2Spec) -> dict[str, str]:
    return _by_unit(spec, _PYTORCHCV_B)


EVEN = (("even_branches", True), ("split_parity", False), ("classifier_bias", True))
LAYOUTS = {
    "torchvision": Layout(
        names=_torchvision, changes=EVEN, preprocessing=TORCH_RULE_232
    ),
    "pytorchcv": Layout(
        names=_pytorchcv, changes=(*EVEN, *PYTORCHCV), preprocessing=TORCH_RULE
    ),
    "pytorchcv_b": Layout(
        names=_pytorchcv_b,
        changes=(("even_branches", False), *PYTORCHCV_B),
        preprocessing=TORCH_RULE,
    ),
    "megvii": Layout(
        names=_megvii,
        changes=(("even_branches", False), *MEGVII),
        preprocessing=MEGVII_RULE,
        bgr="stem_conv",
    ),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

ShuffleNetV2 = make_application(SPECS[0], FAMILY)
ShuffleNetV2W050 = make_application(SPECS[1], FAMILY)
ShuffleNetV2W150 = make_application(SPECS[2], FAMILY)
ShuffleNetV2W200 = make_application(SPECS[3], FAMILY)
ShuffleNetV2Megvii = make_application(SPECS[4], FAMILY)
ShuffleNetV2MegviiW050 = make_application(SPECS[5], FAMILY)
ShuffleNetV2MegviiW150 = make_application(SPECS[6], FAMILY)
ShuffleNetV2MegviiW200 = make_application(SPECS[7], FAMILY)
preprocess_input = make_preprocess(SPECS)
