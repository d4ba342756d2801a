"""Published detectors: a backbone, a head and weights that hold both."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_lightnets._errors import unknown
from keras_lightnets._spec import IMAGENET, INCEPTION, Preprocessing, Weights
from keras_lightnets.heads import _joined, efficientdet
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


# fmt: off
# Name -> end of effdet's file name, COCO val2017 box mAP as the authors published it.
_EFFDET: Mapping[str, tuple[str, float]] = {
    "d0":     ("d0_34-f153e0cf",  34.3),
    "d1":     ("d1_40-a30f94af",  40.2),
    "d2":     ("d2_43-8107aa99",  43.5),
    "d3":     ("d3_47-0b525f35",  46.8),
    "d4":     ("d4_49-f56376d9",  49.3),
    "d5":     ("d5_51-c79f9be6",  51.2),
    "d6":     ("d6_52-4eda3773",  52.1),
    "d7":     ("d7_53-6d1d7a95",  53.4),
    "d7x":    ("d7x-f390b87c",    54.4),
    "lite0":  ("lite0-dfacfc78",  26.41),
    "lite1":  ("lite1-6dc7ab30",  31.50),
    "lite2":  ("lite2-86c5d55b",  35.06),
    "lite3":  ("lite3-506852cb",  38.77),
    "lite3x": ("lite3x-8404c57b", 42.64),
    "lite4":  ("lite4-391ddabc",  43.18),
}
# fmt: on

# The authors trained the Lite networks with mean 127 and deviation 128.
_LITE_RULE = Preprocessing(mean=(127.0,) * 3, std=(128.0,) * 3)


def _in_effdet(prefix: str) -> str:
    """Rename a layer of timm's classifier as effdet does; it stops in front of the top.

    Example:
        >>> _in_effdet("blocks.0.0.bn2"), _in_effdet("bn2")
        ('backbone.blocks.0.0.bn2', '')
    """
    return "" if prefix in ("conv_head", "bn2") else f"backbone.{prefix}"


def _efficientdet(name: str, file: str, box_map: float) -> Detector:
    variant = efficientdet.VARIANTS[name]
    rule = _LITE_RULE if variant.act == "relu6" else IMAGENET
    return Detector(
        backbone=variant.backbone,
        head=f"efficientdet_{name}",
        # Class k is COCO's category id k + 1; ten of the ids are not in use.
        config=efficientdet.EfficientDetConfig(
            classes=90,
            image_size=variant.size,
            conv_bias=True,
            **variant.options(),
        ),
        rename=_in_effdet,
        weights=(
            Weights(
                tag="coco",
                url="https://github.com/rwightman/efficientdet-pytorch/releases/"
                f"download/v0.1/tf_efficientdet_{file}.pth",
                hash=f"sha256:{file[-8:]}",
                format="pth",
                layout="timm",
                licence="Apache-2.0",
                preprocessing=dataclasses.replace(
                    rule, size=variant.size, crop=1.0, interpolation="bilinear"
                ),
                source="effdet (Ross Wightman), converted from the authors' checkpoint",
            ),
        ),
        box_map=box_map,
    )


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
    **{
        f"efficientdet_{name}": _efficientdet(name, *row)
        for name, row in _EFFDET.items()
    },
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
        Howard et al. 2019, section 6.3, https://arxiv.org/abs/1905.02244; Tan et al.
        2020, https://arxiv.org/abs/1911.09070.
    """
    if name not in DETECTORS:
        raise unknown("detector", name, DETECTORS)
    row = DETECTORS[name]
    return _joined.create(name, row, weights, lambda config: (*config.size, 3))
