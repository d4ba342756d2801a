"""SSDLite on one network of every family."""

import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import _registry, heads
from keras_lightnets.heads import efficientdet, fpn, ssdlite

# Of the others, every feature map is checked by the networks' own contracts.
DEFAULT = ("mobilenet_v3",)
SMALL = {
    family: min(
        _registry.family_module(family).SPECS,
        key=lambda spec: (spec.default_size, spec.width, spec.name),
    )
    for family in _registry.FAMILIES
}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in DEFAULT else pytest.mark.full)
        for family in sorted(SMALL)
        # Narrow paddings give grids of their own, which default boxes do not fit.
        if SMALL[family].exact_strides
        and any(level.name == "c5" for level in SMALL[family].levels)
    ],
)
def test_head_fits(family):
    spec = SMALL[family]
    names = heads.pick_endpoints("ssdlite", [level.name for level in spec.levels])
    backbone = keras_lightnets.create_model(
        spec.name, weights=None, endpoints=names, input_shape=(64, 96, 3)
    )
    config = ssdlite.SSDLiteConfig(classes=2, image_size=(64, 96))
    model = heads.attach(backbone, "ssdlite", config)
    assert all(type(layer).__name__ != "Functional" for layer in model.layers)
    image = np.full((1, 64, 96, 3), 127.0, "float32")
    found = ssdlite.detect(model(image, training=False), config)
    assert tuple(found.boxes.shape) == (1, 100, 4)
    assert np.asarray(found.count) == [100]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family == "ghostnet" else pytest.mark.full)
        for family in sorted(SMALL)
        if SMALL[family].exact_strides
        and any(level.name == "c5" for level in SMALL[family].levels)
    ],
)
def test_pyramids_fit(family):
    """BiFPN and FPN on strides 8 to 32, a size that the coarse maps do not halve."""
    spec, size = SMALL[family], (64, 96)
    levels = [level.name for level in spec.levels]
    last = "c5" if "c6" in levels else "features"
    assert heads.pick_endpoints("fpn_lite", levels) == ("c3", "c4", last)
    body = keras_lightnets.create_model(
        spec.name, weights=None, endpoints=("c3", "c4", "c5"), input_shape=(*size, 3)
    )
    lite = efficientdet.VARIANTS["lite0"].options() | {"cells": 1, "repeats": 1}
    cells = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1
    for head, config, boxes in (
        (
            "efficientdet_lite0",
            efficientdet.EfficientDetConfig(classes=2, image_size=size, **lite),
            9,
        ),
        ("fpn_lite", fpn.FPNLiteConfig(classes=2, image_size=size, repeats=1), 6),
    ):
        model = heads.attach(body, head, config)
        assert model.output["boxes"].shape == (None, boxes * cells, 4)
        assert len(heads.HEADS[head].anchors(config)) == boxes * cells


def test_parameters_of_the_papers_detector():
    """MobileNetV2 + SSDLite on COCO: 4.3 M (Sandler et al. 2018, table 6)."""
    levels = [level.name for level in keras_lightnets.get_spec("mobilenet_v2").levels]
    backbone = keras_lightnets.create_model(
        "mobilenet_v2",
        weights=None,
        endpoints=heads.pick_endpoints("ssdlite", levels),
        input_shape=(64, 64, 3),
    )
    config = ssdlite.SSDLiteConfig(classes=80, image_size=64, flavour="mobilenet_v2")
    model = heads.attach(backbone, "ssdlite", config)
    count = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert count == 4_337_013
