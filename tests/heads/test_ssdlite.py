"""The SSDLite head on a small stand-in backbone: structure, options, training."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_lightnets import heads
from keras_lightnets.heads import ssdlite
from keras_lightnets.heads.anchors import AnchorConfig
from keras_lightnets.heads.matching import match
from keras_lightnets.heads.ssdlite import SSDLiteConfig

SIZE = 64
CONFIG = SSDLiteConfig(classes=3, image_size=SIZE)


def backbone(size=SIZE, names=("c4", "c5"), width=8):
    height, cols = (size, size) if isinstance(size, int | None) else size
    image = keras.Input((height, cols, 3), name="image")
    c4 = keras.layers.Conv2D(width, 16, 16, padding="same", name="stem_conv")(image)
    c5 = keras.layers.Conv2D(width, 3, 2, padding="same", name="top_conv")(c4)
    return keras.Model(image, dict(zip(names, (c4, c5), strict=True)), name="tiny")


def outputs_of(model, seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, *model.input_shape[1:])
    return run(model, rng.uniform(0, 1, shape))


def run(model, images):
    found = model(images.astype("float32"), training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}


def test_outputs_have_one_row_per_default_box():
    model = heads.attach(backbone(), "ssdlite", CONFIG)
    count = len(ssdlite.default_boxes(CONFIG))
    assert count == 6 * (16 + 4 + 1 + 1 + 1 + 1)
    assert {k: tuple(v.shape) for k, v in model.output.items()} == {
        "boxes": (None, count, 4),
        "scores": (None, count, 4),
    }
    assert {k: v.shape for k, v in outputs_of(model).items()} == {
        "boxes": (2, count, 4),
        "scores": (2, count, 4),
    }


def test_rows_follow_level_then_cell_then_box():
    """Each predictor writes its own number; the rows must tell level and box."""
    model = heads.attach(backbone(), "ssdlite", CONFIG)
    for level in range(1, 7):
        layer = model.get_layer(f"head_level{level}_boxes_conv")
        kernel, bias = layer.get_weights()
        numbers = 1000.0 * level + np.arange(24).reshape(6, 4)
        layer.set_weights([kernel * 0.0, numbers.reshape(bias.shape)])
    rows = outputs_of(model)["boxes"][0]
    levels = np.repeat([1, 2, 3, 4, 5, 6], [96, 24, 6, 6, 6, 6])
    np.testing.assert_array_equal(rows[:, 0] // 1000, levels)
    np.testing.assert_array_equal(rows[:, 0] % 1000, np.tile(np.arange(6) * 4, 24))
    np.testing.assert_array_equal(rows[:, 3] - rows[:, 0], 3)


def test_cells_are_row_major():
    model = heads.attach(backbone(), "ssdlite", CONFIG)
    image = np.zeros((1, SIZE, SIZE, 3), "float32")
    image[0, 48:, :16] = 255.0  # cell in row 3, column 0 of the 4 x 4 map
    dark = np.zeros_like(image)
    moved = np.abs(run(model, image)["boxes"] - run(model, dark)["boxes"])
    per_cell = moved[0, :96].reshape(16, -1).sum(1).reshape(4, 4)
    reached = np.zeros((4, 4), bool)
    reached[2:, :2] = True  # the depthwise 3x3 reaches one cell further
    np.testing.assert_array_equal(per_cell > 0, reached)


def test_graph_is_flat_and_plain():
    model = heads.attach(backbone(), "ssdlite", CONFIG)
    names = [layer.name for layer in model.layers if layer.name.startswith("head_")]
    assert len(names) == len(set(names)) == len(model.layers) - 3
    allowed = {
        "DepthwiseConv2D",
        "Conv2D",
        "BatchNormalization",
        "ReLU",
        "Reshape",
        "Concatenate",
        "InputLayer",
    }
    assert {type(layer).__name__ for layer in model.layers} == allowed
    biased = [
        layer.name
        for layer in model.layers
        if getattr(layer, "use_bias", False) and layer.name.startswith("head_")
    ]
    assert sorted(biased) == sorted(
        f"head_level{k}_{out}_conv" for k in range(1, 7) for out in ("boxes", "scores")
    )


def test_symmetric_padding_pads():
    config = dataclasses.replace(CONFIG, padding="symmetric")
    model = heads.attach(backbone(), "ssdlite", config)
    padding = [
        x.name for x in model.layers if isinstance(x, keras.layers.ZeroPadding2D)
    ]
    assert padding == [f"head_extra{i}_dw_pad" for i in range(1, 5)]


def test_parameter_count():
    """By the paper's layers: 3x3 depthwise, BN, 1x1 with bias; three-part blocks."""
    model = heads.attach(backbone(), "ssdlite", CONFIG)
    widths, expected = [8, 8, 512, 256, 256, 128], 0
    for before, after in zip(widths[1:], widths[2:], strict=False):
        half = after // 2
        expected += before * half + 2 * half + 9 * half + 2 * half
        expected += half * after + 2 * after
    for channels in widths:
        for columns in (4, 4):
            expected += 11 * channels + channels * 6 * columns + 6 * columns
    trainable = sum(
        int(np.prod(w.shape))
        for layer in model.layers
        if layer.name.startswith("head_")
        for w in layer.trainable_weights
    )
    assert trainable == expected


@pytest.mark.parametrize(
    ("flavour", "activation", "box_loss"),
    [
        pytest.param("mobilenet_v2", "sigmoid", "giou", marks=pytest.mark.full),
        ("mobilenet_v3", "softmax", "smooth_l1"),
    ],
)
def test_trains(flavour, activation, box_loss):
    """Three steps on two images lower the loss, and reach every weight."""
    keras.utils.set_random_seed(1)
    config = SSDLiteConfig(
        classes=3,
        image_size=SIZE,
        flavour=flavour,
        score_activation=activation,
        box_loss=box_loss,
        extra_widths=(32, 32),
    )
    model = heads.attach(backbone(), "ssdlite", config)
    anchors = ssdlite.default_boxes(config)
    boxes = np.array([[0.1, 0.1, 0.5, 0.6], [0.3, 0.4, 0.95, 0.9]], "float32")
    encodings, labels = match(boxes, np.array([0, 2]), anchors)
    target = {
        "boxes": np.concatenate([encodings, (labels > 0)[:, None]], 1)[None].repeat(
            2, 0
        ),
        "scores": labels[None].repeat(2, 0),
    }
    images = np.random.default_rng(0).uniform(0, 1, (2, SIZE, SIZE, 3))
    model.compile(
        keras.optimizers.Adam(3e-3),
        loss=ssdlite.build_losses(config),
        run_eagerly=keras.backend.backend() == "tensorflow",  # tracing takes longer
        jit_compile=keras.backend.backend() == "jax",
    )
    before = [w.numpy().copy() for w in model.trainable_weights]
    history = model.fit(images, target, batch_size=2, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert set(history) >= {"boxes_loss", "scores_loss", "loss"}
    still = [
        weight.path
        for weight, old in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(weight.numpy(), old)
    ]
    # At 64 px no object belongs to a small level, so its box predictor may rest.
    assert all("boxes" in path for path in still)


def test_focal_head_starts_at_the_prior():
    config = SSDLiteConfig(classes=3, image_size=SIZE, score_activation="sigmoid")
    model = heads.attach(backbone(), "ssdlite", config)
    _, scores = ssdlite.decode(outputs_of(model), config)
    assert np.asarray(scores).mean() == pytest.approx(0.01, rel=0.2)
    assert scores.shape[-1] == 3


def test_decode_clips_and_drops_background():
    count = len(ssdlite.default_boxes(CONFIG))
    rng = np.random.default_rng(0)
    raw = {
        "boxes": rng.normal(0, 9, (2, count, 4)).astype("float32"),
        "scores": rng.normal(0, 1, (2, count, 4)).astype("float32"),
    }
    boxes, scores = (np.asarray(part) for part in ssdlite.decode(raw, CONFIG))
    assert boxes.min() == 0.0
    assert boxes.max() == 1.0
    assert scores.shape == (2, count, 3)
    assert (scores.sum(-1) < 1.0).all()
    found = ssdlite.detect(raw, dataclasses.replace(CONFIG, max_detections=7))
    assert np.asarray(found.boxes).shape == (2, 7, 4)
    assert np.asarray(found.count).tolist() == [7, 7]
    assert (np.diff(np.asarray(found.scores)) <= 0).all()


def test_save_and_load(tmp_path):
    model = heads.attach(backbone(), "ssdlite", CONFIG)
    path = tmp_path / "detector.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    for name, value in outputs_of(model).items():
        np.testing.assert_allclose(outputs_of(again)[name], value, atol=1e-6)


def test_rectangular_and_unknown_sizes():
    config = dataclasses.replace(CONFIG, image_size=(64, 96))
    fixed = heads.attach(backbone((64, 96)), "ssdlite", config)
    count = len(ssdlite.default_boxes(config))
    assert fixed.output["boxes"].shape == (None, count, 4)
    free = heads.attach(backbone(None), "ssdlite", config)
    assert free.output["boxes"].shape == (None, None, 4)
    free.set_weights(fixed.get_weights())
    image = np.random.default_rng(0).uniform(0, 1, (1, 64, 96, 3))
    for name, value in run(fixed, image).items():
        np.testing.assert_allclose(run(free, image)[name], value, atol=1e-5)


def test_endpoints_by_preference():
    levels = ["c3", "c4", "c4_expand", "c5", "features"]
    assert heads.pick_endpoints("ssdlite", levels) == ("c4_expand", "features")
    assert heads.pick_endpoints("ssdlite", ["c4", "c5"]) == ("c4", "features")
    with pytest.raises(ValueError, match="'c4_expand' or 'c4'"):
        heads.pick_endpoints("ssdlite", ["c3", "c5"])
    with pytest.raises(ValueError, match="'features' or 'c5'"):
        heads.attach(backbone(names=("c4", "c6")), "ssdlite", CONFIG)
    with pytest.raises(ValueError, match="Did you mean 'ssdlite'"):
        heads.pick_endpoints("ssdlight", levels)
    with pytest.raises(ValueError, match="'c4_expand' or 'c4'"):
        heads.attach(backbone(names=("c2", "c5")), "ssdlite", CONFIG)


def test_wrong_image_size_is_refused():
    with pytest.raises(ValueError, match="image_size"):
        heads.attach(backbone(96), "ssdlite", CONFIG)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"flavour": "mobilenet_v4"}, "Did you mean 'mobilenet_v"),
        ({"score_activation": "tanh"}, "softmax, sigmoid"),
        ({"padding": "valid"}, "same, symmetric"),
        ({"box_loss": "l2"}, "smooth_l1"),
        ({"classes": 0}, "classes >= 1"),
        ({"prior": 1.0}, "0 < prior < 1"),
        ({"anchors": AnchorConfig(levels=3)}, "levels=6"),
    ],
)
def test_config_refuses(options, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(CONFIG, **options)


def test_default_boxes_are_shared_and_read_only():
    anchors = ssdlite.default_boxes(CONFIG)
    assert anchors is ssdlite.default_boxes(dataclasses.replace(CONFIG))
    with pytest.raises(ValueError, match="read-only"):
        anchors[0] = 0.0
