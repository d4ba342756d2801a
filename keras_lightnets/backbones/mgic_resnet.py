"""MGIC-ResNet: residual steps on a hierarchy of channel grids.

The block is the authors' code (BGUCompSci/MultigridInChannelsCNNs), which is for
small images and leaves the sizes to its caller. Chosen here: the rows of ResNet-34
and ResNet-50, 64 channels a group and at the coarsest level, ImageNet's
normalisation. `group=` and `coarsest=` change them.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout, pairs
from keras_lightnets._spec import IMAGENET, ModelSpec, Preprocessing

__all__ = ["MGICResNet34", "MGICResNet50", "decode_predictions", "preprocess_input"]


@dataclass(frozen=True)
class Row:
    """One stage of the residual network."""

    stage: int
    planes: int
    repeat: int


# fmt: off
ROWS = (
    #   stage planes repeat
    Row(2,     64,   3),
    Row(3,    128,   4),
    Row(4,    256,   6),
    Row(5,    512,   3),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class MGICResNetSpec(ModelSpec):
    """An MGIC-ResNet.

    Attributes:
        expansion: Output channels per plane; above 1 the steps are bottlenecks.
        group: Channels of a group, in planes (s_g in the paper).
        coarsest: Levels of fewer planes are fully coupled (s_c in the paper).
    """

    rows: tuple[Row, ...] = ROWS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    bias_exceptions: tuple[str, ...] = ("*_restrict_conv",)
    reference: str = "Eliasof et al. 2020, MGIC, https://arxiv.org/abs/2011.09128"
    expansion: int = 1
    group: int = 64
    coarsest: int = 64

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, ImageNet's."""
        return TORCH_RULE


TORCH_RULE = dataclasses.replace(IMAGENET, interpolation="bilinear")

SPECS = (
    MGICResNetSpec(name="mgic_resnet34", function="MGICResNet34"),
    MGICResNetSpec(name="mgic_resnet50", function="MGICResNet50", expansion=4),
)


def build(spec: MGICResNetSpec, x: Any, output_stride: int) -> dict[str, Any]:
    """Build the feature maps: c1 (stem), c2..c5 and "features" (c5)."""
    stride = layers.DilatedStride(output_stride)
    step, _ = stride.step(2)
    x = layers.conv_bn(x, _planes(spec.rows[0], spec), 7, spec, "stem", stride=step)
    x = layers.activate(x, "relu", "stem")
    maps = {"c1": x}
    step, _ = stride.step(2)
    x = layers.max_pool(x, 3, step, (1, 1), "stem")
    for row in spec.rows:
        planes = _planes(row, spec)
        for number in range(1, row.repeat + 1):
            first = number == 1 and row is not spec.rows[0]
            name = f"stage{row.stage}_block{number}"
            x = _block(x, planes, 2 if first else 1, spec, stride, name)
        maps[f"c{row.stage}"] = x
    return {**maps, "features": x}


def _block(
    x: Any,
    planes: int,
    step: int,
    spec: MGICResNetSpec,
    stride: layers.DilatedStride,
    name: str,
) -> Any:
    """Change the shape where needed, channel by channel; then the hierarchy."""
    step, dilation = stride.step(step)
    out = planes * spec.expansion
    if x.shape[-1] != out:
        x = layers.conv_bn(
            x, out, 3, spec, f"{name}_connect", step, x.shape[-1], dilation
        )
        x = layers.activate(x, "relu", f"{name}_connect")
    rate = stride.dilation

    def smooth(tensor: Any, grid: Any, part: str) -> Any:
        return _step(tensor, grid, spec, rate, part)

    grids = layers.mgic_grids(planes, planes, spec.group, spec.coarsest)
    return layers.mgic_block(x, grids, smooth, spec, name)


def _step(x: Any, grid: Any, spec: MGICResNetSpec, rate: int, name: str) -> Any:
    """Residual step, of two 3x3 convolutions or of a bottleneck."""
    kernels = (1, 3, 1) if spec.expansion > 1 else (3, 3)
    y = x
    for i, kernel in enumerate(kernels, start=1):
        last = i == len(kernels)
        filters = grid.planes * (spec.expansion if last else 1)
        dilation = rate if kernel > 1 else 1
        part = f"{name}_step{i}"
        y = layers.conv_bn(
            y, filters, kernel, spec, part, 1, groups=grid.groups, dilation=dilation
        )
        # The coarsest bottleneck has a ReLU before the sum too.
        if not last or (spec.expansion > 1 and grid.number == 0):
            y = layers.activate(y, "relu", part)
    return layers.activate(layers.residual(y, x, name), "relu", name)


def _planes(row: Row, spec: MGICResNetSpec) -> int:
    return int(row.planes * spec.width)


def _authors(spec: MGICResNetSpec) -> dict[str, str]:
    names = {"stem_conv": "features.conv1", "stem_bn": "features.bn1"}
    channels = _planes(spec.rows[0], spec)
    for stage, row in enumerate(spec.rows, start=1):
        planes = _planes(row, spec)
        fine = _fine_levels(planes, spec)
        for number in range(1, row.repeat + 1):
            ours = f"stage{row.stage}_block{number}"
            theirs = f"features.Mg_{stage}_{number - 1}."
            if channels != planes * spec.expansion:
                connect = {"conv": "shortcut.0", "bn": "shortcut.1"}
                names |= pairs(f"{ours}_connect", theirs, connect)
            channels = planes * spec.expansion
            names |= _steps(f"{ours}_", f"{theirs}mgStep.", fine, spec)
    return names | {"top_classifier": "linear"}


def _fine_levels(planes: int, spec: MGICResNetSpec) -> int:
    """Return how many levels a block has above the coarsest."""
    count = 1
    while planes // 2 >= spec.coarsest:
        planes, count = planes // 2, count + 1
    return count


def _steps(ours: str, theirs: str, fine: int, spec: MGICResNetSpec) -> dict[str, str]:
    """Name a hierarchy: their list goes down to the coarsest level and up again."""
    names: dict[str, str] = {}
    count = 3 if spec.expansion > 1 else 2
    for level in range(1, fine + 2):
        up = 2 * fine + 1 - level if level <= fine else fine
        part = f"{ours}level{level}" if level <= fine else f"{ours}coarse"
        if level <= fine:
            names[f"{part}_restrict_conv"] = f"{theirs}{level - 1}.R"
            prolong = {"conv": "P", "bn": "bnp1"}
            names |= pairs(f"{part}_prolong", f"{theirs}{up}.", prolong)
        for i in range(1, count + 1):
            step = {"conv": f"k{i}", "bn": f"bn{i}"}
            names |= pairs(f"{part}_step{i}", f"{theirs}{up}.", step)
    return names


LAYOUTS = {"authors": Layout(names=_authors, preprocessing=TORCH_RULE)}
FAMILY = Family(specs=SPECS, build=build, layouts=LAYOUTS)

MGICResNet34 = make_application(SPECS[0], FAMILY)
MGICResNet50 = make_application(SPECS[1], FAMILY)
preprocess_input = make_preprocess(SPECS)
