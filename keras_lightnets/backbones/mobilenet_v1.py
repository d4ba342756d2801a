"""MobileNetV1: depthwise separable convolutions."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._blocks import Block, StageRow, expand_rows
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._mobilenet import MOBILENET_ROWS
from keras_lightnets._spec import IMAGENET, INCEPTION, ModelSpec, Weights

__all__ = [
    "MobileNetV1",
    "MobileNetV1W025",
    "MobileNetV1W050",
    "MobileNetV1W075",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True, kw_only=True)
class MobileNetV1Spec(ModelSpec):
    """A MobileNetV1.

    Attributes:
        stem: Channels of the stem.
        act: Activation; the authors' code has ReLU6, some publishers ReLU.
    """

    rows: tuple[StageRow, ...] = MOBILENET_ROWS
    reference: str = "Howard et al. 2017, MobileNets, https://arxiv.org/abs/1704.04861"
    stem: int = 32
    act: str = "relu6"


def _pytorchcv_weights(release: str, file: str, sha1: str) -> Weights:
    changes = (("padding", "symmetric"), ("bn_epsilon", 1e-5), ("act", "relu"))
    return _publishers.pytorchcv(release, file, sha1, IMAGENET, changes)


def _keras_weights(width: str) -> Weights:
    path = f"tensorflow/keras-applications/mobilenet/mobilenet_{width}_224_tf"
    return _publishers.keras(path, INCEPTION)


HUGGINGFACE = "https://huggingface.co/timm"
TIMM_NAME = "mobilenetv1_100.ra4_e3600_r224_in1k"
TIMM_WEIGHTS = Weights(
    tag="ra4_e3600_r224_in1k",
    url=f"{HUGGINGFACE}/{TIMM_NAME}/resolve/main/model.safetensors",
    layout="timm",
    licence="Apache-2.0",
    preprocessing=INCEPTION,
    changes=(("padding", "symmetric"), ("bn_epsilon", 1e-5)),
    source="timm, trained by Ross Wightman",
)

SPECS = (
    MobileNetV1Spec(
        name="mobilenet_v1",
        function="MobileNetV1",
        top1=70.6,
        weights=(
            _pytorchcv_weights(
                "v0.0.155",
                "mobilenet_w1-0895",
                "7e1d739f0fd4b95c16eef077c5dc0a5bb1da8ad5",
            ),
            TIMM_WEIGHTS,
            _keras_weights("1_0"),
        ),
    ),
    MobileNetV1Spec(
        name="mobilenet_v1_075",
        function="MobileNetV1W075",
        width=0.75,
        top1=68.4,
        weights=(
            _pytorchcv_weights(
                "v0.0.130",
                "mobilenet_w3d4-1076",
                "d801bcaea83885b16a0306b8b77fe314bbc585c3",
            ),
            _keras_weights("7_5"),
        ),
    ),
    MobileNetV1Spec(
        name="mobilenet_v1_050",
        function="MobileNetV1W050",
        width=0.5,
        top1=63.7,
        weights=(
            _pytorchcv_weights(
                "v0.0.156",
                "mobilenet_wd2-1355",
                "41a21242c95050407df876cfa44bb5d3676aa751",
            ),
            _keras_weights("5_0"),
        ),
    ),
    MobileNetV1Spec(
        name="mobilenet_v1_025",
        function="MobileNetV1W025",
        width=0.25,
        top1=50.6,
        weights=(
            _pytorchcv_weights(
                "v0.0.62",
                "mobilenet_wd4-2249",
                "1ad5e8fe8674cdf7ffda8450095eb96d227397e0",
            ),
            _keras_weights("2_5"),
        ),
    ),
)


def build(spec: MobileNetV1Spec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1..c5 and "features" (c5)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, spec.channels(spec.stem), 3, spec, "stem", stride=step)
    x = layers.activate(x, spec.act, "stem")
    maps: dict[str, Any] = {}
    for block in _blocks(spec):
        name = block.name
        step, dilation = stride.step(block.stride)
        x = layers.depthwise_bn(x, 3, spec, f"{name}_dw", step, dilation)
        x = layers.activate(x, spec.act, f"{name}_dw")
        x = layers.conv_bn(x, block.out, 1, spec, f"{name}_pw")
        x = maps[f"c{block.row.stage}"] = layers.activate(x, spec.act, f"{name}_pw")
    return {**maps, "features": x}


def _blocks(spec: MobileNetV1Spec) -> list[Block[StageRow]]:
    return expand_rows(
        spec.rows,
        channels=spec.channels(spec.stem),
        outs=[spec.channels(row.out) for row in spec.rows],
        repeats=[row.repeat for row in spec.rows],
    )


def _timm(spec: MobileNetV1Spec) -> dict[str, str]:
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    parts = {"dw_conv": "conv_dw", "dw_bn": "bn1", "pw_conv": "conv_pw", "pw_bn": "bn2"}
    for block in _blocks(spec):
        names |= pairs(block.name, f"blocks.{block.index}.{block.repeat}.", parts)
    return names | {"top_classifier": "classifier"}


def _pytorchcv(spec: MobileNetV1Spec) -> dict[str, str]:
    names = pairs("stem", "features.init_block.", {"conv": "conv", "bn": "bn"})
    parts = {
        "dw_conv": "dw_conv.conv",
        "dw_bn": "dw_conv.bn",
        "pw_conv": "pw_conv.conv",
        "pw_bn": "pw_conv.bn",
    }
    for block in _blocks(spec):
        theirs = f"features.stage{block.row.stage}.unit{block.number}."
        names |= pairs(block.name, theirs, parts)
    return names | {"top_classifier": "output"}


def _keras(spec: MobileNetV1Spec) -> dict[str, str]:
    names = {"stem_conv": "conv1", "stem_bn": "conv1_bn"}
    for i, block in enumerate(_blocks(spec), start=1):
        for part in ("dw", "pw"):
            names[f"{block.name}_{part}_conv"] = f"conv_{part}_{i}"
            names[f"{block.name}_{part}_bn"] = f"conv_{part}_{i}_bn"
    return names | {"top_classifier": "conv_preds"}


LAYOUTS = {
    "pytorchcv": Layout(
        names=_pytorchcv,
        changes=SPECS[0].weights[0].changes,
        preprocessing=IMAGENET,
    ),
    "timm": Layout(names=_timm, changes=TIMM_WEIGHTS.changes, preprocessing=INCEPTION),
    "keras": Layout(names=_keras, kind="keras", preprocessing=INCEPTION),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

MobileNetV1 = make_application(SPECS[0], FAMILY)
MobileNetV1W075 = make_application(SPECS[1], FAMILY)
MobileNetV1W050 = make_application(SPECS[2], FAMILY)
MobileNetV1W025 = make_application(SPECS[3], FAMILY)
preprocess_input = make_preprocess(SPECS)
