"""The table of heads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_lightnets._errors import unknown
from keras_lightnets._layout import Layout
from keras_lightnets.heads import (
    _endpoints,
    deeplab,
    efficientdet,
    eseg,
    espnet,
    espnet_v2,
    fpn,
    lraspp,
    pelee,
    ssdlite,
)


@dataclass(frozen=True, kw_only=True)
class Head:
    """One head and what goes with it.

    Attributes:
        task: "detect" or "segment".
        build: (features by endpoint, config) -> outputs by name, raw.
        config: Class of the config.
        endpoints: Per feature map, the names to take it from, best first.
        layouts: Publishers' tensor names, by layout name.
        defaults: Fields of the config in which the head differs from the config's
            own defaults.
    """

    task: str
    build: Callable[[Mapping[str, Any], Any], dict[str, Any]]
    config: type
    endpoints: tuple[tuple[str, ...], ...]
    layouts: Mapping[str, Layout]
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DetectionHead(Head):
    """A head that gives boxes and scores.

    Attributes:
        anchors: config -> default boxes, numpy (N, 4).
        losses: (config, class weights or None) -> loss by output name.
        decode: (outputs, config) -> boxes, scores.
        detect: (outputs, config) -> `nms.Detections`.
    """

    task: str = "detect"
    anchors: Callable[[Any], Any]
    losses: Callable[..., dict[str, Any]]
    decode: Callable[[Mapping[str, Any], Any], tuple[Any, Any]]
    detect: Callable[[Mapping[str, Any], Any], Any]


@dataclass(frozen=True, kw_only=True)
class SegmentationHead(Head):
    """A head that gives {"logits": (batch, rows, columns, classes)}.

    Attributes:
        output_stride: Stride of the coarsest map where a backbone offers it.
    """

    task: str = "segment"
    output_stride: int = 16


HEADS: Mapping[str, Head] = {
    "deeplabv3": SegmentationHead(
        build=deeplab.deeplab,
        config=deeplab.DeepLabConfig,
        endpoints=deeplab.ENDPOINTS,
        layouts=deeplab.LAYOUTS,
    ),
    "fpn_lite": DetectionHead(
        build=fpn.fpn_lite,
        config=fpn.FPNLiteConfig,
        endpoints=fpn.ENDPOINTS,
        anchors=fpn.default_boxes,
        losses=fpn.build_losses,
        decode=fpn.decode,
        detect=fpn.detect,
        layouts={},
    ),
    "espnet": SegmentationHead(
        build=espnet.espnet,
        config=espnet.ESPNetConfig,
        endpoints=espnet.ENDPOINTS,
        layouts=espnet.LAYOUTS,
        output_stride=32,
    ),
    "espnet_c": SegmentationHead(
        build=espnet.espnet_c,
        config=espnet.ESPNetConfig,
        endpoints=espnet.COARSE_ENDPOINTS,
        layouts=espnet.COARSE_LAYOUTS,
        output_stride=32,
    ),
    "espnet_v2": SegmentationHead(
        build=espnet_v2.espnet_v2,
        config=espnet_v2.ESPNetV2Config,
        endpoints=espnet_v2.ENDPOINTS,
        layouts=espnet_v2.LAYOUTS,
        output_stride=32,
    ),
    "lraspp": SegmentationHead(
        build=lraspp.lraspp,
        config=lraspp.LRASPPConfig,
        endpoints=lraspp.ENDPOINTS,
        layouts=lraspp.LAYOUTS,
    ),
    "pelee": DetectionHead(
        build=pelee.pelee,
        config=pelee.PeleeConfig,
        endpoints=pelee.ENDPOINTS,
        anchors=pelee.default_boxes,
        losses=pelee.build_losses,
        decode=pelee.decode,
        detect=pelee.detect,
        layouts={},
    ),
    "raspp": SegmentationHead(
        build=lraspp.raspp,
        config=lraspp.RASPPConfig,
        endpoints=lraspp.RASPP_ENDPOINTS,
        layouts={},
    ),
    "ssdlite": DetectionHead(
        build=ssdlite.ssdlite,
        config=ssdlite.SSDLiteConfig,
        endpoints=ssdlite.ENDPOINTS,
        anchors=ssdlite.default_boxes,
        losses=ssdlite.build_losses,
        decode=ssdlite.decode,
        detect=ssdlite.detect,
        layouts=ssdlite.LAYOUTS,
    ),
    **{
        f"eseg_{name}": SegmentationHead(
            build=eseg.eseg,
            config=eseg.ESegConfig,
            endpoints=eseg.ENDPOINTS,
            layouts={},
            defaults=variant.options(),
            output_stride=32,
        )
        for name, variant in eseg.VARIANTS.items()
    },
    **{
        f"efficientdet_{name}": DetectionHead(
            build=efficientdet.efficientdet,
            config=efficientdet.EfficientDetConfig,
            endpoints=efficientdet.ENDPOINTS,
            anchors=efficientdet.default_boxes,
            losses=efficientdet.build_losses,
            decode=efficientdet.decode,
            detect=efficientdet.detect,
            layouts=efficientdet.LAYOUTS,
            defaults=variant.options(),
        )
        for name, variant in efficientdet.VARIANTS.items()
    },
}


def pick_endpoints(head: str, levels: Sequence[str]) -> tuple[str, ...]:
    """Choose the endpoints that a backbone must return for a head.

    Args:
        head: Name in HEADS.
        levels: Names of the feature maps that the backbone's spec lists; "features",
            the map in front of the classifier's pooling, every backbone has.

    Returns:
        Names for the backbone's `endpoints` argument, from fine to coarse.

    Raises:
        ValueError: If the head is unknown, or the backbone lacks a map it needs.

    Example:
        >>> pick_endpoints("ssdlite", ["c3", "c4", "c5"])
        ('c4', 'features')
    """
    # Behind a c6 the last map has a stride of 64.
    last = [] if "c6" in levels else ["features"]
    return _endpoints.choose(head, find(head).endpoints, [*levels, *last])


def for_task(task: str) -> dict[str, Any]:
    """Return the heads of a task by name.

    Args:
        task: "detect" or "segment".

    Returns:
        Part of HEADS.

    Example:
        >>> list(for_task("segment"))[:5]
        ['deeplabv3', 'espnet', 'espnet_c', 'espnet_v2', 'lraspp']
    """
    return {name: head for name, head in HEADS.items() if head.task == task}


def find(name: str) -> Head:
    """Return the head of a name.

    Raises:
        ValueError: If there is none; the closest name is suggested.
    """
    if name not in HEADS:
        raise unknown("head", name, HEADS)
    return HEADS[name]


def attach(
    backbone: keras.Model, head: str, config: Any, name: str | None = None
) -> keras.Model:
    """Build a head on a backbone; the graph stays flat.

    Args:
        backbone: Model whose output is a dict of feature maps by endpoint.
        head: Name in HEADS.
        config: The head's config.
        name: Name of the model; None: backbone's and head's joined.

    Returns:
        Model from the backbone's input to the head's raw outputs.

    Raises:
        ValueError: If the head is unknown, or an endpoint is missing.

    Example:
        >>> backbone = keras_lightnets.GhostNet(  # doctest: +SKIP
        ...     weights=None, endpoints=("c4", "c5"), input_shape=(96, 96, 3))
        >>> config = SSDLiteConfig(classes=4, image_size=96)  # doctest: +SKIP
        >>> attach(backbone, "ssdlite", config).output["boxes"].shape  # doctest: +SKIP
        (None, 312, 4)
    """
    outputs = find(head).build(backbone.output, config)
    return keras.Model(backbone.input, outputs, name=name or f"{backbone.name}_{head}")
