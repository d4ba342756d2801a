"""How a publisher names and lays out the tensors of a network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_lightnets._blocks import Block
from keras_lightnets._spec import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A publisher's tensor names for the layers of a family.

    Attributes:
        names: Maps a spec to {layer name here: prefix of the publisher's keys}
            for every layer that has weights, the classifier included, in the
            order in which the network is built.
        kind: "torch" (OIHW kernels; `.weight`, `.bias`, `.running_mean`,
            `.running_var`) or "keras" (HWIO kernels, HDF5 by layer name).
        top: Layer names that exist only with `include_top=True`.
        changes: Spec fields in which this publisher's networks differ, for files
            of variants without published weights.
        preprocessing: Its input normalisation, likewise; None for the spec's.
        bgr: Layer whose kernel expects blue, green, red; it is turned when loaded,
            since images are RGB here.
        unused: Patterns of the publisher's prefixes that its network never reads.
        pieces: Layers that hold part of a kernel: (pattern of their names, rows,
            columns); several of them name the same prefix.
        reorder: Layers whose outputs come in another order: (pattern of their names,
            the publisher's position of each of a group of outputs).
        image: Patterns of layers whose last three inputs are an image's blue, green
            and red; they are turned when loaded.
    """

    names: Callable[[Any], dict[str, str]]
    kind: str = "torch"
    top: tuple[str, ...] = ("top_classifier",)
    changes: tuple[tuple[str, Any], ...] = ()
    preprocessing: Preprocessing | None = None
    bgr: str = ""
    unused: tuple[str, ...] = ()
    pieces: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    reorder: tuple[tuple[str, tuple[int, ...]], ...] = ()
    image: tuple[str, ...] = ()


# What `layers.split_depthwise` makes of a 3x3 kernel: part -> rows, columns.
SPLIT_KERNEL = {
    "corners": ((0, 2), (0, 2)),
    "column": ((0, 2), (1,)),
    "row": ((1,), (0, 2)),
    "centre": ((1,), (1,)),
}
SPLIT_PIECES = tuple(
    (f"*_{part}_conv", rows, cols) for part, (rows, cols) in SPLIT_KERNEL.items()
)
# Distances of the cells in the branches of `layers.spatial_pyramid`.
ESP_DILATIONS = (1, 2, 4, 8, 16)

_EXPANDED = {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "dw_conv": "conv_dw",
    "dw_bn": "bn2",
    "project_conv": "conv_pwl",
    "project_bn": "bn3",
}
_NOT_EXPANDED = {
    "dw_conv": "conv_dw",
    "dw_bn": "bn1",
    "project_conv": "conv_pw",
    "project_bn": "bn2",
}
_SQUEEZE = {"se_squeeze_conv": "se.conv_reduce", "se_excite_conv": "se.conv_expand"}


def pairs(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Join a block's parts to full names.

    Args:
        ours: Stem of the layer names here, such as "stage3_block2".
        theirs: Publisher's prefix with its separator, such as "blocks.2.1.".
        parts: Suffix here (without underscore) -> suffix there.

    Returns:
        {layer name here: publisher's prefix}.

    Example:
        >>> pairs("stem", "features.0.", {"conv": "0", "bn": "1"})
        {'stem_conv': 'features.0.0', 'stem_bn': 'features.0.1'}
    """
    return {f"{ours}_{key}": f"{theirs}{value}" for key, value in parts.items()}


def pyramid_names(ours: str, theirs: str) -> dict[str, str]:
    """Name the convolutions of `layers.spatial_pyramid` as ESPNet's authors do.

    Args:
        ours: Stem of the layer names here.
        theirs: The authors' prefix with its separator, such as "level2.0.".

    Returns:
        {layer name here: prefix of the authors' keys}.
    """
    names = {f"{ours}_reduce_conv": f"{theirs}c1.conv"}
    for i, rate in enumerate(ESP_DILATIONS, start=1):
        names[f"{ours}_branch{i}_conv"] = f"{theirs}d{rate}.conv"
    return names


def timm_inverted(
    ours: str, theirs: str, expanded: bool, squeezed: bool
) -> dict[str, str]:
    """Name an inverted residual block as timm does.

    Args:
        ours: Stem of the layer names here, such as "stage3_block2".
        theirs: timm's prefix, such as "blocks.2.1.".
        expanded: Whether the block has an expansion convolution.
        squeezed: Whether the block has squeeze-and-excite.

    Returns:
        {layer name here: prefix of timm's keys}.
    """
    parts = dict(_EXPANDED if expanded else _NOT_EXPANDED)
    return pairs(ours, theirs, parts | _SQUEEZE if squeezed else parts)


def timm_network(blocks: Mapping[str, str]) -> dict[str, str]:
    """Name a network as timm does: stem, the given blocks, top and classifier.

    Args:
        blocks: {layer name here: prefix of timm's keys} of the blocks, in order.

    Returns:
        The same for all layers, in building order, which loading relies on.
    """
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1", **blocks}
    names |= {"top_conv": "conv_head", "top_bn": "bn2"}
    return names | {"top_classifier": "classifier"}


def timm_ghost(
    blocks: Sequence[Block[Any]], module: Mapping[str, str]
) -> dict[str, str]:
    """Name a network of ghost bottlenecks as timm and the authors do.

    Their `blocks` are numbered by runs: a strided block is a run of its own.

    Args:
        blocks: Its blocks, in order.
        module: Suffix here -> suffix there, of the layers of a ghost module.

    Returns:
        {layer name here: prefix of timm's keys}.
    """
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1"}
    index, run = 0, -1
    previous: Block[Any] | None = None
    for block in blocks:
        row, ours = block.row, block.name
        after_stride = previous is not None and previous.row.stride > 1
        new = previous is None or row.stride > 1 or after_stride
        run, index, previous = run + new, 0 if new else index + 1, block
        theirs = f"blocks.{run}.{index}."
        names |= pairs(f"{ours}_expand", f"{theirs}ghost1.", module)
        names |= pairs(f"{ours}_project", f"{theirs}ghost2.", module)
        parts: dict[str, str] = {}
        if row.stride > 1:
            parts |= {"dw_conv": "conv_dw", "dw_bn": "bn_dw"}
        if row.se:
            parts |= _SQUEEZE
        if row.stride > 1 or block.channels != block.out:
            parts |= {"shortcut_dw_conv": "shortcut.0", "shortcut_dw_bn": "shortcut.1"}
            parts |= {"shortcut_conv": "shortcut.2", "shortcut_bn": "shortcut.3"}
        names |= pairs(ours, theirs, parts)
    names |= pairs("top", f"blocks.{run + 1}.0.", {"conv": "conv", "bn": "bn1"})
    return names | {"top_hidden_conv": "conv_head", "top_classifier": "classifier"}


def torchvision_inverted(
    ours: str, theirs: str, expanded: bool, squeezed: bool
) -> dict[str, str]:
    """Name an inverted residual block as torchvision's newer networks do.

    Args:
        ours: Stem of the layer names here, such as "stage3_block2".
        theirs: torchvision's prefix, such as "features.3.1.block.".
        expanded: Whether the block has an expansion convolution.
        squeezed: Whether the block has squeeze-and-excite.

    Returns:
        {layer name here: prefix of torchvision's keys}.
    """
    k = int(expanded)
    parts = {"expand_conv": "0.0", "expand_bn": "0.1"} if expanded else {}
    parts |= {"dw_conv": f"{k}.0", "dw_bn": f"{k}.1"}
    if squeezed:
        k += 1
        parts |= {"se_squeeze_conv": f"{k}.fc1", "se_excite_conv": f"{k}.fc2"}
    parts |= {"project_conv": f"{k + 1}.0", "project_bn": f"{k + 1}.1"}
    return pairs(ours, theirs, parts)


def mobile_cv_inverted(
    ours: str, theirs: str, expanded: bool, squeezed: bool
) -> dict[str, str]:
    """Name an inverted residual block as facebookresearch/mobile-vision does.

    Args:
        ours: Stem of the layer names here, such as "stage3_block2".
        theirs: Its prefix, such as "backbone.stages.xif3_1.".
        expanded: Whether the block has an expansion convolution.
        squeezed: Whether the block has squeeze-and-excite.

    Returns:
        {layer name here: prefix of the publisher's keys}.
    """
    parts = {"dw_conv": "dw.conv", "dw_bn": "dw.bn"}
    parts |= {"project_conv": "pwl.conv", "project_bn": "pwl.bn"}
    if expanded:
        parts |= {"expand_conv": "pw.conv", "expand_bn": "pw.bn"}
    if squeezed:
        parts |= {"se_squeeze_conv": "se.se.0.conv", "se_excite_conv": "se.se.1"}
    return pairs(ours, theirs, parts)
