"""ESPNetv2: dilated depthwise convolutions in parallel, fused one after the other."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import SPLIT_PIECES, Layout, pairs
from keras_lightnets._publishers import pytorchcv
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing, Weights

__all__ = [
    "ESPNetV2",
    "ESPNetV2W050",
    "ESPNetV2W125",
    "ESPNetV2W150",
    "ESPNetV2W200",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One stage of the paper's table 1.

    `strided` and `field` are the largest receptive fields of a branch, in cells, in
    the stage's first block and in the others.
    """

    stage: int
    repeat: int
    strided: int
    field: int


# fmt: off
ROWS = (
    #   stage repeat strided field
    Row(2,    1,     13,     11),
    Row(3,    4,     11,      9),
    Row(4,    8,      9,      7),
    Row(5,    4,      7,      5),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ESPNetV2Spec(ModelSpec):
    """An ESPNetv2.

    Attributes:
        stem: Largest number of the stem's channels, and those before the width.
        top: Channels of the last convolution.
        branches: Parallel convolutions, and groups of the 1x1 convolutions.
        image_stages: Stages whose first block adds the image, pooled and projected.
            The authors' network has the layers in stage 5 too but leaves them out.
    """

    rows: tuple[Row, ...] = ROWS
    divisor: int = 4
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    bias_exceptions: tuple[str, ...] = ("*_branch?_conv", "*_branch?_*_conv")
    reference: str = "Mehta et al. 2018, ESPNetv2, https://arxiv.org/abs/1811.11431"
    stem: int = 32
    top: int = 1024
    branches: int = 4
    image_stages: tuple[int, ...] = (2, 3, 4, 5)

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's."""
        return TORCH_RULE


TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")
AUTHORS = (("image_stages", (2, 3, 4)),)


# One commit of the authors' repository, and its objects by scale.
COMMIT = "2b232d3f7fb60658755dad1ebca0ffc895cc795e"
OBJECTS = {
    "0.5": "12249b9cf29a722a5efe0ee73002b67854b410cf",
    "1.0": "78c1bad0c94004d8328578e7cd5db8ab764bf8fd",
    "1.25": "96e4554599ea2099e84f14908036a640ab39598b",
    "1.5": "a33e1727856bc929cc00ef497df2befcc575f4d9",
    "2.0": "2ff6a4b97c21f24816826fd9917215b38351d337",
}


def _weights(
    scale: str, release: str, file: str, sha1: str, top1: float
) -> tuple[Weights, ...]:
    """Describe pytorchcv's file of a variant and the authors', whose top-1 it is."""
    folder = f"https://github.com/sacmehta/EdgeNets/raw/{COMMIT}/model/classification"
    return (
        pytorchcv(release, file, sha1, TORCH_RULE),
        Weights(
            tag="authors_in1k",
            url=f"{folder}/model_zoo/espnetv2/espnetv2_s_{scale}_imagenet_224x224.pth",
            hash=f"git:{OBJECTS[scale]}",
            format="pth",
            layout="authors",
            licence="MIT",
            preprocessing=TORCH_RULE,
            changes=AUTHORS,
            top1=top1,
            source="sacmehta/EdgeNets, the authors",
        ),
    )


SPECS = (
    ESPNetV2Spec(
        name="espnet_v2",
        function="ESPNetV2",
        top1=66.1,
        weights=_weights(
            "1.0",
            "v0.0.238",
            "espnetv2_w1-1345",
            "550d54229d7fd8f7c090601c2123ab3ca106393b",
            66.09,
        ),
    ),
    ESPNetV2Spec(
        name="espnet_v2_050",
        function="ESPNetV2W050",
        width=0.5,
        top1=57.7,
        weights=_weights(
            "0.5",
            "v0.0.238",
            "espnetv2_wd2-2015",
            "d234781f81e5d1b5ae6070fc851e3f7bb860b9fd",
            57.68,
        ),
    ),
    ESPNetV2Spec(
        name="espnet_v2_125",
        function="ESPNetV2W125",
        width=1.25,
        top1=67.9,
        weights=_weights(
            "1.25",
            "v0.0.238",
            "espnetv2_w5d4-1218",
            "85d97b2b1c9ebb176f634949ef5ca6d7fe70f09c",
            67.95,
        ),
    ),
    ESPNetV2Spec(
        name="espnet_v2_150",
        function="ESPNetV2W150",
        width=1.5,
        top1=69.2,
        weights=_weights(
            "1.5",
            "v0.0.566",
            "espnetv2_w3d2-1108",
            "40da2416923f5a79ae1001d2bbc9c7cbdf8c8d67",
            69.17,
        ),
    ),
    ESPNetV2Spec(
        name="espnet_v2_200",
        function="ESPNetV2W200",
        width=2.0,
        top=1280,
        top1=72.1,
        weights=_weights(
            "2.0",
            "v0.0.238",
            "espnetv2_w2-0961",
            "13ba0f7200eb745bacdf692905fde711236448ef",
            72.06,
        ),
    ),
)


def build(spec: ESPNetV2Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c5 and "features"."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    image, base = x, _base(spec)
    x = _conv(x, min(spec.stem, base), 3, spec, "stem", stride=step)
    image = layers.avg_pool(image, 3, step, (1, 1), "stem_image")
    maps = {"c1": x}
    for row in spec.rows:
        out = base * 2 ** (row.stage - 1)
        x, image = _strided(x, image, out, row, spec, stride)
        for number in range(2, row.repeat + 1):
            name = f"stage{row.stage}_block{number}"
            _, rate = stride.step(1)
            y = _pyramid(x, out, _dilations(row.field, spec), spec, name, rate)
            x = layers.activate(layers.residual(y, x, name), "prelu", name)
        maps[f"c{row.stage}"] = x
    _, dilation = stride.step(1)
    x = layers.depthwise_bn(x, 3, spec, "top_dw", dilation=dilation)
    x = layers.activate(x, "prelu", "top_dw")
    x = _conv(x, spec.top, 1, spec, "top", groups=spec.branches)
    return {**maps, "features": x}


def _strided(
    x: Any,
    image: Any,
    out: int,
    row: Row,
    spec: ESPNetV2Spec,
    stride: layers.DilatedStride,
) -> tuple[Any, Any]:
    """Strided block with the image's shortcut (figure 2).

    Returns the output and the image at its resolution.
    """
    name, rate = f"stage{row.stage}_block1", stride.dilation
    step, _ = stride.step(2)
    pooled = layers.avg_pool(x, 3, step, (1, 1), f"{name}_avg", rate)
    dilations = _dilations(row.strided, spec)
    y = _pyramid(x, out - x.shape[-1], dilations, spec, name, rate, step)
    x = layers.concat([pooled, y], name)
    if row.stage in spec.image_stages:
        part = f"{name}_image"
        image = layers.avg_pool(image, 3, step, (1, 1), part, rate)
        y = _conv(image, image.shape[-1], 3, spec, part, dilation=stride.dilation)
        y = layers.conv_bn(y, out, 1, spec, f"{part}_project")
        x = layers.residual(y, x, name)
    return layers.activate(x, "prelu", name), image


def _pyramid(
    x: Any,
    out: int,
    dilations: tuple[int, ...],
    spec: ESPNetV2Spec,
    name: str,
    rate: int,
    step: int = 0,
) -> Any:
    """Reduce, convolve with every dilation, fuse, merge: EESP (figure 1).

    `rate` multiplies the dilations. `step` is the stride of a block that has one in
    the table, 1 where dilation replaces it; 0 in the others.
    """
    groups = spec.branches
    x = _conv(x, out // groups, 1, spec, f"{name}_reduce", groups=groups)
    found = []
    for i, dilation in enumerate(dilations, start=1):
        part, stride = f"{name}_branch{i}", max(step, 1)
        split = step and _is_split(dilation)
        branch = layers.split_depthwise if split else layers.dilated_depthwise
        found.append(branch(x, dilation, part, stride=stride, rate=rate))
    x = layers.fused_pyramid(found, f"{name}_branch")
    norm = layers.BatchNormalization(
        epsilon=spec.bn_epsilon, momentum=spec.bn_momentum, name=f"{name}_fused_bn"
    )
    x = layers.activate(norm(x), "prelu", f"{name}_fused")
    return layers.conv_bn(x, out, 1, spec, f"{name}_merge", groups=groups)


def _conv(
    x: Any,
    filters: int,
    kernel: int,
    spec: ESPNetV2Spec,
    name: str,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> Any:
    x = layers.conv_bn(x, filters, kernel, spec, name, stride, groups, dilation)
    return layers.activate(x, "prelu", name)


def _base(spec: ESPNetV2Spec) -> int:
    """Return the channels that double from stage to stage."""
    return -(-int(spec.stem * spec.width) // spec.divisor) * spec.divisor


def _dilations(field: int, spec: ESPNetV2Spec) -> tuple[int, ...]:
    """Return the dilations 1, 2, ...; those past the field fall back to 1."""
    steps = range(1, spec.branches + 1)
    return tuple(sorted(d if 2 * d + 1 <= field else 1 for d in steps))


def _is_split(dilation: int) -> bool:
    """Whether a strided convolution with this dilation is built of four."""
    return dilation > 1 and dilation % 2 == 1


@dataclass(frozen=True, kw_only=True)
class _Words:
    """A publisher's words: `{stage}` and `{number}` of a block, `{i}` of a branch.

    `pyramid` is what the strided block puts before the parts of its pyramid.
    """

    stem: str
    strided: str
    block: str
    pyramid: str = "eesp."
    reduce: str
    branch: str
    fused: str
    merge: str
    image: str
    project: str
    act: str
    strided_act: str
    block_act: str
    top: tuple[str, str]
    classifier: str


AUTHORS_WORDS = _Words(
    stem="level1.",
    strided="level{stage}_0.",
    block="level{stage}.{after}.",
    reduce="proj_1x1.",
    branch="spp_dw.{i}.conv",
    fused="br_after_cat.",
    merge="conv_1x1_exp.",
    image="inp_reinf.0.",
    project="inp_reinf.1.",
    act="act",
    strided_act="act",
    block_act="module_act",
    top=("level5.3.", "level5.4."),
    classifier="classifier",
)
PYTORCHCV_WORDS = _Words(
    stem="features.init_block.conv.",
    strided="features.stage{before}.unit1.",
    block="features.stage{before}.unit{number}.",
    reduce="reduce_conv.",
    branch="branches.branch{next}",
    fused="preactiv.",
    merge="merge_conv.",
    image="shortcut_block.conv1.",
    project="shortcut_block.conv2.",
    act="activ",
    strided_act="activ",
    block_act="activ",
    top=("features.final_block.conv1.", "features.final_block.conv2."),
    classifier="output.fc",
)


def _names(spec: ESPNetV2Spec, words: _Words) -> dict[str, str]:
    conv = {"conv": "conv", "bn": "bn"}
    whole = conv | {"act": words.act}
    names = pairs("stem", words.stem, whole)
    for row in spec.rows:
        for number in range(1, row.repeat + 1):
            first, ours = number == 1, f"stage{row.stage}_block{number}"
            place = (words.strided if first else words.block).format(
                stage=row.stage, before=row.stage - 1, number=number, after=number - 2
            )
            inner = f"{place}{words.pyramid}" if first else place
            names |= pairs(f"{ours}_reduce", f"{inner}{words.reduce}", whole)
            dilations = _dilations(row.strided if first else row.field, spec)
            for i, dilation in enumerate(dilations):
                theirs = inner + words.branch.format(i=i, next=i + 1)
                for part in _parts(first and _is_split(dilation)):
                    names[f"{ours}_branch{i + 1}{part}"] = theirs
            fused = {"bn": "bn", "act": words.act}
            names |= pairs(f"{ours}_fused", f"{inner}{words.fused}", fused)
            names |= pairs(f"{ours}_merge", f"{inner}{words.merge}", conv)
            if first and row.stage in spec.image_stages:
                names |= pairs(f"{ours}_image", f"{place}{words.image}", whole)
                project = f"{place}{words.project}"
                names |= pairs(f"{ours}_image_project", project, conv)
            act = words.strided_act if first else words.block_act
            names[f"{ours}_act"] = f"{place}{act}"
    for part, theirs in zip(("top_dw", "top"), words.top, strict=True):
        names |= pairs(part, theirs, whole)
    return names | {"top_classifier": words.classifier}


def _parts(split: bool) -> list[str]:
    """Return the ends of a branch's layer names; a split kernel has four."""
    return [rule[0][1:] for rule in SPLIT_PIECES] if split else ["_conv"]


def _authors(spec: ESPNetV2Spec) -> dict[str, str]:
    return _names(spec, AUTHORS_WORDS)


def _pytorchcv(spec: ESPNetV2Spec) -> dict[str, str]:
    return _names(spec, PYTORCHCV_WORDS)


LAYOUTS = {
    "pytorchcv": Layout(
        names=_pytorchcv, preprocessing=TORCH_RULE, pieces=SPLIT_PIECES
    ),
    "authors": Layout(
        names=_authors,
        changes=AUTHORS,
        preprocessing=TORCH_RULE,
        unused=("level?_0.eesp.module_act", "level5_0.inp_reinf.*"),
        pieces=SPLIT_PIECES,
    ),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

ESPNetV2 = make_application(SPECS[0], FAMILY)
ESPNetV2W050 = make_application(SPECS[1], FAMILY)
ESPNetV2W125 = make_application(SPECS[2], FAMILY)
ESPNetV2W150 = make_application(SPECS[3], FAMILY)
ESPNetV2W200 = make_application(SPECS[4], FAMILY)
preprocess_input = make_preprocess(SPECS)
