"""Published detectors: a backbone, a head and weights that hold both."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_lightnets._errors import unknown
from keras_lightnets._spec import INCEPTION, Weights
from keras_lightnets.heads import _joined
from keras_lightnets.heads.ssdlite import SSDLiteConfig


@dataclass(frozen=True, kw_only=True)
class Detector(_joined.Joined):
    """One row of DETECTORS.

    Attributes:
        box_map: Published COCO val2017 box mAP in percent.
    """

    box_map: float | None = None


def _in_detector(prefix: str, split: int) -> str:
    """Rename a layer of torchvision's classifier as its detector does.

    The detector cuts the network behind the expansion of block `split`; the second
    part counts from that block, whose name lacks "block".

    Example:
        >>> _in_detector("features.14.block.0.0", split=13)
        'backbone.features.1.1.block.0.0'
    """
    _, index, *rest = prefix.split(".")
    block = int(index)
    if block < split:
        path = ["0", index, *rest]
    elif block > split:
        path = ["1", str(block - split), *rest]
    elif rest[1] == "0":  # ("block", "0", layer): the expansion
        path = ["0", index, *rest[2:]]
    else:
        path = ["1", "0", *rest[1:]]
    return ".".join(["backbone", "features", *path])


DETECTORS: Mapping[str, Detector] = {
    "ssdlite320_mobilenet_v3_large": Detector(
        backbone="mobilenet_v3_large",
        changes=(("reduced_tail", True),),
        head="ssdlite",
        # Class k is COCO's category id k + 1; ten of the ids are not in use.
        config=SSDLiteConfig(classes=90, image_size=320, max_detections=300),
        # The expansion of block 13 is the first feature map.
        rename=functools.partial(_in_detector, split=13),
        weights=(
            Weights(
                tag="coco",
                url="https://download.pytorch.org/models/"
                "ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
                hash="sha256:a79551df",
                format="pth",
                layout="torchvision",
                licence="BSD-3-Clause",
                preprocessing=dataclasses.replace(
                    INCEPTION, size=320, crop=1.0, interpolation="bilinear"
                ),
                changes=(("padding", "symmetric"), ("bn_momentum", 0.97)),
                source="torchvision",
            ),
        ),
        box_map=21.3,
    ),
}


def create_detector(
    name: str, weights: str | os.PathLike[str] | None = "coco"
) -> tuple[keras.Model, Any]:
    """Build a published detector.

    Args:
        name: Name in DETECTORS.
        weights: None (random), a published tag, or the path of a file: a checkpoint
            of the publisher, or one that this package saved.

    Returns:
        The model, from RGB images of 0-255, (batch, height, width, 3), to the
        head's raw outputs; and the head's config, for `HEADS[...].detect`.

    Raises:
        ValueError: If the name is unknown.
        WeightsError: If the weights cannot be had or do not fit.

    Example:
        >>> model, config = create_detector(  # doctest: +SKIP
        ...     "ssdlite320_mobilenet_v3_large")
        >>> found = ssdlite.detect(model(images), config)  # doctest: +SKIP

    Reference:
        Howard et al. 2019, section 6.3, https://arxiv.org/abs/1905.02244.
    """
    if name not in DETECTORS:
        raise unknown("detector", name, DETECTORS)
    row = DETECTORS[name]
    return _joined.create(name, row, weights, lambda config: (*config.size, 3))
