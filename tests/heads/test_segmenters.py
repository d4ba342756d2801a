"""Segmentation heads: torchvision's stored results, the papers' counts, structure."""

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import heads
from keras_lightnets._errors import WeightsError
from keras_lightnets.heads import _joined, deeplab, lraspp, segmenters
from keras_lightnets.tools.convert import make_segmenter_parity as source
from keras_lightnets.tools.convert.make_ssdlite_parity import seeded_tensor

PARITY = Path(__file__).parents[1] / "parity" / "segmenters_torchvision.npz"
COUNTS = {
    "deeplabv3_mobilenet_v3_large": 11_025_477,
    "lraspp_mobilenet_v3_large": 3_221_538,
}
PREFIXES = {"gamma": "weight", "beta": "bias", "kernel": "weight"}
PREFIXES |= {"moving_mean": "running_mean", "moving_variance": "running_var"}


def trainable(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def state_of(model, names):
    """The seeded state dict of torchvision's network, in PyTorch's layout."""
    state = {}
    for layer in model.layers:
        for weight in layer.weights:
            key = f"{names[layer.name]}.{PREFIXES.get(weight.name, weight.name)}"
            shape = tuple(weight.shape)
            if len(shape) == 4:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                shape = tuple(shape[i] for i in order)
            state[key] = seeded_tensor(key, shape)
    return state


CASES = [
    pytest.param("lraspp_mobilenet_v3_large", source.SIZES[1]),
    pytest.param("lraspp_mobilenet_v3_large", source.SIZES[0], marks=pytest.mark.full),
    pytest.param(
        "deeplabv3_mobilenet_v3_large", source.SIZES[0], marks=pytest.mark.full
    ),
    pytest.param(
        "deeplabv3_mobilenet_v3_large", source.SIZES[1], marks=pytest.mark.full
    ),
]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_equals_torchvision(name, size, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    with np.load(PARITY) as arrays:
        stored = dict(arrays)
    row = segmenters.SEGMENTERS[name]
    path = tmp_path / "segmenter.safetensors"
    model, _ = heads.create_segmenter(name, None, size)
    names = _joined.layout_of(row).names(_joined.spec_of(name, row))
    state = state_of(model, names)
    if row.head == "deeplabv3":  # published with the branch that training uses
        state["aux_classifier.0.weight"] = np.zeros((1, 1, 1, 1), "float32")
    safetensors.save_file(state, path)
    model, labels = heads.create_segmenter(name, path, size)
    assert trainable(model) == stored[f"{name}_parameters"] == COUNTS[name]
    image = source.seeded_image(size)[None].astype("float32")
    logits = np.asarray(model(image, training=False)["logits"])[0]
    assert logits.shape[-1] == len(labels) == 21
    key = f"{name}_{size[0]}x{size[1]}"
    limit = 1e-4 * np.abs(logits).max()
    part = logits[..., : source.STORED_CLASSES]
    np.testing.assert_allclose(part, stored[key], atol=limit)
    np.testing.assert_allclose(logits.mean((0, 1)), stored[f"{key}_mean"], atol=limit)


def backbone(size=(64, 96), channels=(40, 960)):
    image = keras.Input((*size, 3), name="image")
    c3 = keras.layers.Conv2D(channels[0], 8, 8, padding="same", name="stem_conv")(image)
    c5 = keras.layers.Conv2D(channels[1], 3, 2, padding="same", name="top_conv")(c3)
    return keras.Model(image, {"c3": c3, "c5": c5}, name="tiny")


def head_params(model):
    return sum(
        int(np.prod(w.shape))
        for layer in model.layers
        if layer.name.startswith("head_")
        for w in layer.trainable_weights
    )


CONFIGS = {
    "lraspp": (lraspp.LRASPPConfig(classes=5), (8, 12)),
    "raspp": (lraspp.RASPPConfig(classes=5), (4, 6)),
    "deeplabv3": (deeplab.DeepLabConfig(classes=5, rates=(1, 2)), (4, 6)),
}


@pytest.mark.parametrize("head", CONFIGS)
def test_structure(head):
    """Plain layers only, by the names' grammar, and the config's parameters."""
    config, cells = CONFIGS[head]
    model = heads.attach(backbone(), head, config)
    assert tuple(model.output["logits"].shape) == (None, *cells, 5)
    plain = {"Conv2D", "BatchNormalization", "ReLU", "Activation", "Multiply", "Add"}
    plain |= {"UpSampling2D", "GlobalAveragePooling2D", "Concatenate", "Dropout"}
    own = [layer for layer in model.layers if layer.name.startswith("head_")]
    assert {type(layer).__name__ for layer in own} <= plain
    c, f = 960, config.filters
    if head == "lraspp":
        expected = c * f + 2 * f + c * f + f * 5 + 5 + 40 * 5 + 5
    else:
        rates = getattr(config, "rates", ())
        expected = 2 * (c * f + 2 * f) + len(rates) * (9 * c * f + 2 * f)
        expected += (2 + len(rates)) * f * f + 2 * f + f * 5 + 5
        expected += (9 * f * f + 2 * f) * getattr(config, "refine", False)
    assert head_params(model) == expected


def test_paper_pooling():
    """At 1024 x 2048 the 49 x 49 window goes once down and four times across."""
    config = lraspp.LRASPPConfig(classes=19, filters=8, pool=lraspp.PAPER_POOL)
    fine, coarse = keras.Input((128, 256, 4)), keras.Input((64, 128, 8))
    out = lraspp.lraspp({"c3": fine, "c5": coarse}, config)["logits"]
    model = keras.Model([fine, coarse], out)
    assert model.get_layer("head_gate_pool").output.shape[1:3] == (1, 4)
    assert model.get_layer("head_gate_resize").output.shape[1:3] == (64, 128)
    assert out.shape[1:3] == (128, 256)
    small = heads.attach(backbone(channels=(4, 8)), "lraspp", config)
    assert small.get_layer("head_gate_pool").pool_size == (4, 6)


def test_counts_of_the_papers():
    """Howard et al. 2019, table 7: MobileNetV2 + R-ASPP 2.11 M.

    With halved C5 (480 channels), LR-ASPP of 256 filters has 0.12 M more than of 128.
    """
    net = keras_lightnets.create_model(
        "mobilenet_v2",
        include_top=False,
        weights=None,
        input_shape=(64, 64, 3),
        endpoints=("c5",),  # the paper cuts the network before its last 1x1
        output_stride=16,
    )
    model = heads.attach(net, "raspp", lraspp.RASPPConfig(classes=19))
    assert trainable(model) / 1e6 == pytest.approx(2.11, abs=0.005)
    wide, narrow = (
        heads.attach(
            backbone(channels=(40, 480)),
            "lraspp",
            lraspp.LRASPPConfig(classes=19, filters=filters),
        )
        for filters in (256, 128)
    )
    assert (head_params(wide) - head_params(narrow)) / 1e6 == pytest.approx(
        1.63 - 1.51, abs=0.006
    )


def test_dynamic_size_needs_no_rebuild():
    config = lraspp.LRASPPConfig(classes=3)
    model = heads.attach(backbone((None, None), (4, 8)), "lraspp", config)
    for side in (64, 96):
        image = np.zeros((1, side, side, 3), "float32")
        logits = model(image, training=False)["logits"]
        assert tuple(logits.shape) == (1, side // 8, side // 8, 3)
    with pytest.raises(ValueError, match="fixed input_shape"):
        heads.attach(backbone((None, None)), "raspp", lraspp.RASPPConfig(classes=3))


def test_bad_names_and_values():
    with pytest.raises(ValueError, match="Did you mean 'lraspp_mobilenet_v3_large'"):
        heads.create_segmenter("lraspp_mobilenet_v3_larg")
    with pytest.raises(WeightsError, match="'coco_voc'"):
        heads.create_segmenter("lraspp_mobilenet_v3_large", "voc_coco")
    with pytest.raises(ValueError, match="classes=0"):
        lraspp.LRASPPConfig(classes=0)
    with pytest.raises(ValueError, match="rates"):
        deeplab.DeepLabConfig(classes=2, rates=(0,))
    with pytest.raises(ValueError, match="'c3'"):
        lraspp.lraspp({"c5": None}, lraspp.LRASPPConfig(classes=2))
