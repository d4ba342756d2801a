"""FPN-Lite: the pyramid, the shared tower, default boxes by RetinaNet's rule.

No oracle is at hand; parameters are counted from the published description (channels
128, four separable convolutions that boxes and scores share, levels P3 to P7).
"""

import dataclasses

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost, heads
from keras_lightnets.heads import fpn
from keras_lightnets.heads.anchors import OctaveAnchorConfig

CHANNELS = (6, 8, 10)
CONFIG = fpn.FPNLiteConfig(classes=3, image_size=72, channels=16, repeats=2)


def maps(size=72):
    image = keras.Input((size, size, 3), name="image")
    x, found = image, {}
    for key, width, stride in zip(("c3", "c4", "c5"), CHANNELS, (8, 2, 2), strict=True):
        conv = keras.layers.Conv2D(
            width, stride, stride, padding="same", name=f"{key}_conv"
        )
        found[key] = x = conv(x)
    return keras.Model(image, found, name="tiny")


@pytest.fixture(scope="module")
def model():
    return heads.attach(maps(), "fpn_lite", CONFIG)


def test_parameters_by_the_description(model):
    width, boxes = CONFIG.channels, CONFIG.anchors.per_cell
    separable = 9 * width + width * width
    expected = sum(c * width + width for c in CHANNELS)  # lateral
    expected += 4 * (separable + 2 * width)  # P3, P4 smoothed; P6, P7
    expected += CONFIG.repeats * (separable + 5 * 2 * width)  # one tower, norms apart
    for columns in (4, CONFIG.classes):
        expected += 9 * width + (width + 1) * boxes * columns
    count = sum(
        int(np.prod(weight.shape))
        for layer in model.layers
        if layer.name.startswith("head_")
        for weight in layer.trainable_weights
    )
    assert count == expected


def test_reads_what_the_object_detection_api_reads():
    """Blocks 7 and 14 of MobileNetV2, and its last convolution of 1280 channels."""
    levels = ("c1", "c2", "c3", "c4_expand", "c4", "c5")
    assert heads.pick_endpoints("fpn_lite", levels) == ("c3", "c4", "features")


@pytest.mark.full
def test_parameters_with_mobilenet_v2():
    """SSD MobileNet V2 FPNLite 320x320: backbone, and the description's sum."""
    body = keras_lightnets.create_model(
        "mobilenet_v2",
        include_top=False,
        weights=None,
        input_shape=(320, 320, 3),
        endpoints=("c3", "c4", "features"),
    )
    config = fpn.FPNLiteConfig(classes=90, image_size=320)
    whole = cost.total(heads.attach(body, "fpn_lite", config))
    assert whole.params - cost.total(body).params == 402_100
    assert whole.params == 2_625_972
    assert whole.madds / 1e6 == pytest.approx(983.40, abs=0.01)


def test_odd_sizes_and_rows(model):
    """72 pixels: 9, 5, 3, 2 and 1 cells, none of which doubles the next."""
    count = 6 * (81 + 25 + 9 + 4 + 1)
    assert model.output["boxes"].shape == (None, count, 4)
    assert model.output["scores"].shape == (None, count, 3)
    assert fpn.default_boxes(CONFIG).shape == (count, 4)
    names = [layer.name for layer in model.layers]
    assert [n for n in names if n.endswith("_crop")] == ["head_p1_crop", "head_p0_crop"]
    assert len(names) == len(set(names))


def test_the_fine_map_sees_the_coarse_one(model):
    """P3 = smoothed(lateral(c3) + doubled(lateral(c4) + doubled(lateral(c5))))."""
    part = keras.Model(
        [model.get_layer(f"{key}_conv").output for key in ("c3", "c4", "c5")],
        [model.get_layer(f"head_p{k}_add").output for k in (0, 1)],
    )
    dark = [np.zeros((1, *x.shape[1:]), "float32") for x in part.inputs]
    lit = [x.copy() for x in dark]
    lit[2][0, 1, 2] = 1.0
    moved = [
        np.abs(np.asarray(after) - np.asarray(before))[0].sum(-1)
        for after, before in zip(part(lit), part(dark), strict=True)
    ]
    assert sorted(map(tuple, np.argwhere(moved[1]))) == [(2, 4), (3, 4)]
    cells = sorted(map(tuple, np.argwhere(moved[0])))
    assert cells == [(row, 8) for row in (4, 5, 6, 7)]


def test_default_boxes():
    boxes = fpn.default_boxes(dataclasses.replace(CONFIG, image_size=128)) * 128
    sides = boxes[:6, 2:]
    np.testing.assert_allclose(
        sides.prod(1), np.repeat([32**2, 2 * 32**2], 3), rtol=1e-5
    )
    ratios = sides[:, 0] / sides[:, 1]
    np.testing.assert_allclose(ratios, [1, 2, 0.5] * 2, rtol=1e-5)


def test_scores_start_at_the_prior(model):
    raw = model(np.zeros((1, 72, 72, 3), "float32"), training=False)
    scores = np.asarray(keras.ops.sigmoid(raw["scores"]))
    np.testing.assert_allclose(scores, CONFIG.prior, rtol=0.05)
    found = fpn.detect(raw, dataclasses.replace(CONFIG, score_threshold=0.5))
    assert np.asarray(found.count).tolist() == [0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"anchors": OctaveAnchorConfig(levels=2)}, "levels >= 3"),
        ({"channels": 0}, "channels >= 1"),
        ({"score_activation": "tanh"}, "softmax, sigmoid"),
    ],
)
def test_config_refuses(options, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(CONFIG, **options)
