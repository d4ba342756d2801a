"""Pelee's head: the authors' network (its prototxt's counts, boxes), structure.

No package holds the detector, and its Caffe files are not served any more: what the
network must be follows from the authors' model/voc/deploy_merged.prototxt.
"""

import dataclasses
import math

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost, heads
from keras_lightnets.heads import pelee
from keras_lightnets.heads.anchors import AnchorConfig

# All convolutions of the prototxt, without biases.
KERNELS = 5_406_304
# Minimum and maximum size of the default boxes, in pixels of 304.
SIZES = (21.28, 45.6, 100.32, 155.04, 209.76, 264.48, 319.2)
SMALL = pelee.PeleeConfig(classes=3, channels=8)


def maps(size=304):
    image = keras.Input((size, size, 3), name="image")
    c4 = keras.layers.Conv2D(6, 16, 16, padding="same", name="stem_conv")(image)
    c5 = keras.layers.Conv2D(8, 3, 2, padding="same", name="top_conv")(c4)
    return keras.Model(image, {"c4": c4, "c5": c5}, name="tiny")


def test_kernels_are_the_authors():
    body = keras_lightnets.create_model(
        "peleenet",
        include_top=False,
        weights=None,
        input_shape=(304, 304, 3),
        endpoints=("c4", "c5"),
        round_up=True,
    )
    model = heads.attach(body, "pelee", pelee.PeleeConfig(classes=20))
    # The paper's 5.4 million and 1.21 billion.
    whole = cost.total(model)
    assert whole.params == 5_425_892
    assert whole.madds / 1e9 == pytest.approx(1.21, abs=0.006)
    assert {k: v.shape[1:] for k, v in body.output.items()} == {
        "c4": (19, 19, 512),
        "c5": (10, 10, 704),
    }
    count = sum(
        math.prod(layer.kernel.shape)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    assert count == KERNELS


@pytest.mark.full
def test_counts_for_coco():
    """The paper's 5.98 million and 1.29 billion; we count 1.284."""
    body = keras_lightnets.PeleeNet(
        include_top=False,
        weights=None,
        input_shape=(304, 304, 3),
        endpoints=("c4", "c5"),
        round_up=True,
    )
    whole = cost.total(heads.attach(body, "pelee", pelee.PeleeConfig(classes=80)))
    assert whole.params / 1e6 == pytest.approx(5.98, abs=0.005)
    assert whole.madds / 1e9 == pytest.approx(1.29, abs=0.007)


def test_default_boxes_are_the_authors():
    config = pelee.PeleeConfig(classes=20)
    assert config.grids == ((19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
    boxes = pelee.default_boxes(config) * 304
    start = 0
    for source, low, high in zip(pelee.SOURCES, SIZES, SIZES[1:], strict=False):
        rows, columns = config.grids[source]
        middle = math.sqrt(low * high)
        shapes = [(low, low), (middle, middle)]
        for ratio in (2, 3):
            long, short = low * math.sqrt(ratio), low / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        block = boxes[start : start + rows * columns * 6].reshape(rows, columns, 6, 4)
        np.testing.assert_allclose(
            block[..., 2:], np.broadcast_to(shapes, (rows, columns, 6, 2)), rtol=1e-5
        )
        centre = (np.arange(columns) + 0.5) * 304 / columns
        np.testing.assert_allclose(block[0, :, 0, 0], centre, rtol=1e-5)
        np.testing.assert_allclose(block[:, 0, 0, 1], centre, rtol=1e-5)
        start += block.size // 4
    assert start == len(boxes) == 5142


def test_structure_and_rows():
    """The two finest predictors read one block; each writes its own number."""
    model = heads.attach(maps(), "pelee", SMALL)
    assert model.output["boxes"].shape == (None, 5142, 4)
    assert model.output["scores"].shape == (None, 5142, 4)
    names = [layer.name for layer in model.layers]
    assert sum(name.endswith("_add") for name in names) == 5
    first, second, third = (
        model.get_layer(f"head_level{k}_boxes_conv").input for k in (1, 2, 3)
    )
    assert first is second and first is not third
    for level in range(1, 7):
        layer = model.get_layer(f"head_level{level}_boxes_conv")
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel * 0.0, np.full_like(bias, level)])
    image = np.zeros((1, 304, 304, 3), "float32")
    rows = np.asarray(model(image, training=False)["boxes"])[0, :, 0]
    counts = [6 * n * n for n in (19, 19, 10, 5, 3, 1)]
    np.testing.assert_array_equal(rows, np.repeat(np.arange(1, 7), counts))


def test_losses_and_detections_follow_the_config():
    soft = pelee.build_losses(SMALL)["scores"]
    focal = pelee.build_losses(dataclasses.replace(SMALL, score_activation="sigmoid"))
    assert (type(soft).__name__, type(focal["scores"]).__name__) == (
        "MultiboxLoss",
        "FocalLoss",
    )
    scores = np.zeros((1, 5142, 4), "float32")
    scores[..., 0] = 20.0
    scores[0, 7] = 0, 0, 30, 0
    raw = {"boxes": np.zeros((1, 5142, 4), "float32"), "scores": scores}
    found = pelee.detect(raw, dataclasses.replace(SMALL, max_detections=5))
    assert np.asarray(found.count).tolist() == [1]
    assert np.asarray(found.labels)[0, 0] == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_size": 256}, "257 pixels"),
        ({"anchors": AnchorConfig(levels=5)}, "levels=6"),
        ({"channels": 1}, "channels >= 2"),
        ({"padding": "valid"}, "same, symmetric"),
    ],
)
def test_config_refuses(options, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(SMALL, **options)
