"""AlexNet: the first deep network on ImageNet, the baseline of mobile networks."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import _publishers, layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._publishers import torchvision
from keras_lightnets._residual import TORCH_RULE
from keras_lightnets._spec import LEVELS, Level, ModelSpec, Preprocessing

__all__ = ["AlexNet", "AlexNetWide", "decode_predictions", "preprocess_input"]


@dataclass(frozen=True)
class Row:
    """One convolution, and whether a pool stands in front of it."""

    stage: int
    out: int
    kernel: int
    pool: bool = False


ROWS = (
    Row(3, 192, 5, pool=True),
    Row(4, 384, 3, pool=True),
    Row(4, 256, 3),
    Row(4, 256, 3),
)
WIDE = (
    Row(3, 256, 5, pool=True),
    Row(4, 384, 3, pool=True),
    Row(4, 384, 3),
    Row(4, 256, 3),
)


@dataclass(frozen=True, kw_only=True)
class AlexNetSpec(ModelSpec):
    """AlexNet on one device.

    Attributes:
        stem: Channels of the first convolution, of 11x11 with stride 4.
        stem_pad: Pixels around the image in front of it.
        responses: Whether the first two convolutions are followed by local response
            normalisation, as in 2012.
        ceil_pools: Whether pools round up.
        hidden: Widths of the dense layers before the classifier.
        cells: Cells per side that the dense layers read.
    """

    rows: tuple[Row, ...] = ROWS
    stem: int = 64
    stem_pad: int = 2
    responses: bool = False
    ceil_pools: bool = False
    hidden: tuple[int, ...] = (4096, 4096)
    cells: int = 6
    levels: tuple[Level, ...] = LEVELS[1:]
    output_strides: tuple[int, ...] = (32,)
    exact_strides: bool = False
    flags_reason: str = "stem and pools drop rows and columns at the border"
    padding: str = "symmetric"
    dropout: float = 0.5
    reference: str = (
        "Krizhevsky 2014, One weird trick for parallelizing convolutional neural "
        "networks, https://arxiv.org/abs/1404.5997"
    )

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE


SPECS = (
    AlexNetSpec(
        name="alexnet",
        function="AlexNet",
        top1=56.52,
        weights=(
            torchvision("v1", "alexnet-owt-7be5be79", TORCH_RULE, 56.522),
            _publishers.pytorchcv(
                "v0.0.485",
                "alexnetb-1747",
                "ac887bf7eada4179857d243584ac30b4d74a6493",
                TORCH_RULE,
            ),
        ),
    ),
    AlexNetSpec(
        name="alexnet_wide",
        function="AlexNetWide",
        rows=WIDE,
        stem=96,
        stem_pad=0,
        responses=True,
        ceil_pools=True,
        int8_ok=False,
        flags_reason="stem and pools drop rows and columns at the border; local "
        "response normalisation has no int8 form",
        reference="Krizhevsky et al. 2012, ImageNet classification with deep "
        "convolutional neural networks, NIPS",
        weights=(
            _publishers.pytorchcv(
                "v0.0.481",
                "alexnet-1664",
                "2768cdb312d584e33e93f31b0c569589bb289749",
                TORCH_RULE,
            ),
        ),
    ),
)


def build(spec: AlexNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c2 (stem), c3, c4, c5 (behind the last pool)."""
    x, _ = layers.pad_for(x, (11, 11), 4, 1, spec.padding, "stem", spec.stem_pad)
    x = layers.bias_conv(x, spec.channels(spec.stem), "stem", kernel=11, stride=4)
    x = _respond(x, spec, True, "stem")
    maps = {"c2": x}
    pad = (0, int(spec.ceil_pools))
    for row, name in _named(spec):
        if row.pool:
            x = layers.max_pool(x, 3, 2, pad, name)
        x = layers.bias_conv(x, spec.channels(row.out), name, kernel=row.kernel)
        x = _respond(x, spec, row is spec.rows[0], name)
        maps[f"c{row.stage}"] = x
    x = layers.max_pool(x, 3, 2, pad, "stage5_block1")
    return {**maps, "c5": x, "features": x}


def _respond(x: Any, spec: AlexNetSpec, early: bool, name: str) -> Any:
    x = layers.activate(x, "relu", name)
    return layers.local_response(x, name) if spec.responses and early else x


def classify(spec: AlexNetSpec, x: Any, classes: int) -> Any:
    """Make the logits: three dense layers, dropout before the first two."""
    x = layers.adaptive_pool(x, spec.cells, "top")
    drops = (*(spec.dropout for _ in spec.hidden), 0.0)
    return layers.hidden_classifier(x, spec.hidden, classes, drops)


def _named(spec: AlexNetSpec) -> list[tuple[Row, str]]:
    found: list[tuple[Row, str]] = []
    for row in spec.rows:
        number = 1 + sum(other.stage == row.stage for other, _ in found)
        found.append((row, f"stage{row.stage}_block{number}"))
    return found


def _torchvision(spec: AlexNetSpec) -> dict[str, str]:
    names = {"stem_conv": "features.0"}
    for (_, name), place in zip(_named(spec), (3, 6, 8, 10), strict=True):
        names[f"{name}_conv"] = f"features.{place}"
    dense = {"top_hidden1_classifier": "classifier.1"}
    dense |= {"top_hidden2_classifier": "classifier.4"}
    return names | dense | {"top_classifier": "classifier.6"}


def _pytorchcv(spec: AlexNetSpec) -> dict[str, str]:
    names = {"stem_conv": "features.stage1.unit1.conv"}
    units = ("stage2.unit1", "stage3.unit1", "stage3.unit2", "stage3.unit3")
    for (_, name), unit in zip(_named(spec), units, strict=True):
        names[f"{name}_conv"] = f"features.{unit}.conv"
    dense = {"top_hidden1_classifier": "output.fc1.fc"}
    dense |= {"top_hidden2_classifier": "output.fc2.fc"}
    return names | dense | {"top_classifier": "output.fc3"}


_TOP = ("top_hidden1_classifier", "top_hidden2_classifier", "top_classifier")
LAYOUTS = {
    "torchvision": Layout(names=_torchvision, top=_TOP, preprocessing=TORCH_RULE),
    "pytorchcv": Layout(names=_pytorchcv, top=_TOP, preprocessing=TORCH_RULE),
}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS, classifier=classify)

AlexNet = make_application(SPECS[0], FAMILY)
AlexNetWide = make_application(SPECS[1], FAMILY)
preprocess_input = make_preprocess(SPECS)
