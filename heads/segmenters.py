"""Published segmentation networks: a backbone, a head and weights that hold both."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from keras_lightnets import _publishers
from keras_lightnets._errors import unknown
from keras_lightnets._spec import IMAGENET, Weights
from keras_lightnets.heads import _joined
from keras_lightnets.heads._labels import VOC_LABELS
from keras_lightnets.heads.deeplab import DeepLabConfig
from keras_lightnets.heads.lraspp import LRASPPConfig


@dataclass(frozen=True, kw_only=True)
class Segmenter(_joined.Joined):
    """One row of SEGMENTERS.

    Attributes:
        labels: Class names by tag of the weights.
        size: (height, width) of the published evaluation's input.
        miou: Published mean IoU in percent of the first weights.
    """

    labels: Mapping[str, tuple[str, ...]]
    size: tuple[int, int]
    miou: float | None = None


def _in_segmenter(prefix: str) -> str:
    """Rename a layer of torchvision's classifier as its segmenters do.

    Example:
        >>> _in_segmenter("features.14.block.0.0")
        'backbone.14.block.0.0'
    """
    return "backbone." + prefix.removeprefix("features.")


def _torchvision(file: str) -> tuple[Weights, ...]:
    rule = dataclasses.replace(IMAGENET, size=520, crop=1.0, interpolation="bilinear")
    changes = (("padding", "symmetric"),)
    entry = _publishers.torchvision("v1", file, rule, None, changes)
    return (dataclasses.replace(entry, tag="coco_voc"),)


# torchvision dilates stage 5 with its first block; its fine map is the first block
# of stage 3, not the last.
_DILATED = (("dilate_first", True),)

SEGMENTERS: Mapping[str, Segmenter] = {
    "deeplabv3_mobilenet_v3_large": Segmenter(
        backbone="mobilenet_v3_large",
        changes=_DILATED,
        head="deeplabv3",
        config=DeepLabConfig(classes=21),
        weights=_torchvision("deeplabv3_mobilenet_v3_large-fc3c493d"),
        rename=_in_segmenter,
        output_stride=16,
        labels={"coco_voc": VOC_LABELS},
        size=(520, 520),
        miou=60.3,
    ),
    "lraspp_mobilenet_v3_large": Segmenter(
        backbone="mobilenet_v3_large",
        changes=_DILATED,
        head="lraspp",
        config=LRASPPConfig(classes=21),
        weights=_torchvision("lraspp_mobilenet_v3_large-d234d4ea"),
        rename=_in_segmenter,
        output_stride=16,
        taps=(("c3", "stage3_block1_project_bn"),),
        labels={"coco_voc": VOC_LABELS},
        size=(520, 520),
        miou=57.9,
    ),
}


def find_segmenter(name: str) -> Segmenter:
    """Return a row of SEGMENTERS.

    Raises:
        ValueError: If there is none; the closest name is suggested.
    """
    if name not in SEGMENTERS:
        raise unknown("segmenter", name, SEGMENTERS)
    return SEGMENTERS[name]


def create_segmenter(
    name: str,
    weights: str | os.PathLike[str] | None = "coco_voc",
    size: tuple[int, int] | None = None,
) -> tuple[keras.Model, tuple[str, ...]]:
    """Build a published segmentation network.

    Args:
        name: Name in SEGMENTERS.
        weights: None (random), a published tag, or the path of a file: a checkpoint
            of the publisher, or one that this package saved.
        size: (height, width) of the input; None: the published one.

    Returns:
        The model, from RGB images of 0-255, (batch, height, width, 3), to {"logits":
        (batch, rows, columns, classes)}; and the class names.

    Raises:
        ValueError: If the name is unknown.
        WeightsError: If the weights cannot be had or do not fit.

    Example:
        >>> model, labels = create_segmenter(
        ...     "lraspp_mobilenet_v3_large", weights=None, size=(64, 96))
        >>> model.output["logits"].shape, labels[15]
        ((None, 8, 12, 21), 'person')

    Reference:
        Howard et al. 2019, section 6.4, https://arxiv.org/abs/1905.02244.
    """
    row = find_segmenter(name)
    tag = weights if weights in row.labels else next(iter(row.labels))
    labels = row.labels[str(tag)]
    fitted = dataclasses.replace(
        row, config=dataclasses.replace(row.config, classes=len(labels))
    )
    shape = (*(size or row.size), 3)
    model, _ = _joined.create(name, fitted, weights, lambda _: shape)
    return model, labels
