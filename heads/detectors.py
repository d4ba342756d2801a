"""Published detectors: a backbone, a head and weights that hold both."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

import keras_lightnets
from keras_lightnets import _registry, _weights
from keras_lightnets._errors import unknown
from keras_lightnets._layout import Layout
from keras_lightnets._spec import INCEPTION, ModelSpec, Weights
from keras_lightnets.heads._table import attach, find, pick_endpoints
from keras_lightnets.heads.ssdlite import SSDLiteConfig


@dataclass(frozen=True, kw_only=True)
class Detector:
    """One row of DETECTORS.

    Attributes:
        backbone: Registry name.
        changes: Fields of the backbone's spec that differ.
        head: Name in HEADS.
        config: The head's config.
        split: Index of the publisher's backbone block whose expansion is the first
            feature map.
        weights: Published weights of backbone and head.
        box_map: Published COCO val2017 box mAP in percent.
    """

    backbone: str
    changes: tuple[tuple[str, Any], ...]
    head: str
    config: Any
    split: int
    weights: tuple[Weights, ...]
    box_map: float | None = None


DETECTORS: Mapping[str, Detector] = {
    "ssdlite320_mobilenet_v3_large": Detector(
        backbone="mobilenet_v3_large",
        changes=(("reduced_tail", True),),
        head="ssdlite",
        # Class k is COCO's category id k + 1; ten of the ids are not in use.
        config=SSDLiteConfig(classes=90, image_size=320, max_detections=300),
        split=13,
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
    spec = _spec(name, row)
    source = _weights.resolve(spec, {"torchvision": _layout(row)}, weights)
    numerics = {} if source is None else source.changes
    fields = {field.name for field in dataclasses.fields(row.config)}
    shared = {key: value for key, value in numerics.items() if key in fields}
    config = dataclasses.replace(row.config, **shared)
    backbone = keras_lightnets.create_model(
        row.backbone,
        include_top=False,
        weights=None,
        input_shape=(*config.size, 3),
        endpoints=pick_endpoints(row.head, [level.name for level in spec.levels]),
        **{**dict(row.changes), **numerics},
    )
    model = attach(backbone, row.head, config, name=name)
    if source is not None:
        _weights.load(model, source)
    return model, config


def _spec(name: str, row: Detector) -> ModelSpec:
    """Return the backbone's spec with the detector's name and weights."""
    spec = _registry.get_spec(row.backbone)
    return spec.replace(
        name=name, function=name, weights=row.weights, **dict(row.changes)
    )


def _layout(row: Detector) -> Layout:
    """Return the publisher's names of backbone and head."""
    family = _registry.family_module(_registry.family_of(row.backbone))
    backbone: Layout = family.LAYOUTS["torchvision"]
    head = find(row.head).layouts["torchvision"]

    def names(spec: ModelSpec) -> dict[str, str]:
        theirs = {
            ours: _in_detector(prefix, row.split)
            for ours, prefix in backbone.names(spec).items()
            if ours not in backbone.top
        }
        return theirs | head.names(row.config)

    return Layout(names=names, top=())


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
