"""ESPNetv2's decoder: equal to the authors' EdgeNets, and their files."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_lightnets
from keras_lightnets import cost, heads, layers
from keras_lightnets.heads import espnet_v2
from keras_lightnets.layers.resampling import Resample2D
from keras_lightnets.tools.convert import make_espnet_parity as source
from keras_lightnets.tools.convert.make_ssdlite_parity import seeded_tensor

PARITY = Path(__file__).parents[1] / "parity" / "espnet_v2_seeded.npz"
# Of the authors' code, with 20 classes at 1024x512: parameters, those among them that
# no call reads (activations of three strided blocks), multiply-adds in millions.
COUNTS = {
    "espnet_v2_seg": (234_010, 32 + 64 + 128, 1085.28),
    "espnet_v2_seg_050": (80_342, 16 + 32 + 64, 596.25),
    "espnet_v2_seg_150": (468_362, 64 + 96 + 192, 1713.26),
    "espnet_v2_seg_200": (789_242, 96 + 128 + 256, 2697.74),
}
FILES = {
    "espnet_v2_seg_050:cityscapes": "espnetv2_s_0.5_city_1024x512.pth",
    "espnet_v2_seg:voc": "espnetv2_s_1.0_pascal_384x384.pth",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith("_050") else pytest.mark.full)
        for name in COUNTS
    ],
)
def test_counts_of_the_authors_code(name):
    model, _ = heads.create_segmenter(name, None)
    whole = cost.total(model)
    params, unread, millions = COUNTS[name]
    assert whole.params == params - unread
    assert whole.madds / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if "_050" in case else pytest.mark.full)
        for case in FILES
    ],
)
def test_equals_the_authors_code(case, tmp_path):
    with np.load(PARITY) as file:
        shapes = json.loads(file[f"{case}_state"].tobytes())
        size = tuple(int(side) for side in file[f"{case}_size"])
        expected = file[case]
    state = {key: seeded_tensor(key, tuple(shape)) for key, shape in shapes.items()}
    path = tmp_path / FILES[case]
    save_file(state, path)
    model, labels = heads.create_segmenter(case.partition(":")[0], path, size)
    assert len(labels) == (21 if case.endswith("voc") else 20)
    image = source.seeded_image(size)[None].astype("float32")
    logits = np.asarray(model(image, training=False)["logits"])[0]
    limit = 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(source.thinned(logits), expected, atol=limit)


def test_resizing_by_hand():
    """Corners stay; an area's cells are those it touches."""
    x = np.arange(1.0, 6.0, dtype="float32").reshape(1, 1, 5, 1)
    found = {
        (method, width): np.asarray(Resample2D(1, width, method)(x)).ravel().tolist()
        for method, width in (("aligned", 3), ("aligned", 9), ("area", 2), ("area", 3))
    }
    assert found["aligned", 3] == [1.0, 3.0, 5.0]
    assert found["aligned", 9] == [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]
    assert found["area", 2] == [2.0, 4.0]
    np.testing.assert_allclose(found["area", 3], [1.5, 3.0, 4.5], atol=1e-6)


def test_resizing_takes_a_plain_layer_where_it_can():
    x = keras.Input((8, 12, 3))
    made = layers.resample(x, (4, 4), "area", "a")
    model = keras.Model(x, made)
    assert isinstance(model.get_layer("a_resize"), keras.layers.AveragePooling2D)
    assert layers.resample(x, (8, 12), "area", "b") is x
    with pytest.raises(ValueError, match="'aligned' or 'area'|aligned"):
        Resample2D(2, 2, "cubic")
    with pytest.raises(ValueError, match="Received: 0 x 2"):
        Resample2D(0, 2, "area")


def test_resizing_becomes_products_for_quantisation():
    """The bridge's twin of both methods, on sides that no plain layer reaches."""
    from keras_lightnets.tools.quantize import bridge

    image = keras.Input((6, 8, 3), name="image")
    x = layers.resample(image, (9, 11), "aligned", "a")
    model = keras.Model(image, layers.resample(x, (4, 5), "area", "b"))
    batch = np.random.RandomState(0).randn(2, 6, 8, 3).astype("float32")
    found = np.asarray(bridge.to_tf_keras(model).model(batch, training=False))
    np.testing.assert_allclose(found, model(batch, training=False), atol=1e-6)


def test_survives_saving_and_refuses_unknown_sizes(tmp_path):
    maps = ("c1", "c2", "c3", "c4")
    x = image = keras.Input((96, 64, 3), name="image")
    found = {}
    for channels, name in zip((4, 8, 8, 12), maps, strict=True):
        x = keras.layers.Conv2D(channels, 3, 2, padding="same", name=f"{name}_conv")(x)
        found[name] = x
    backbone = keras.Model(image, found)
    config = espnet_v2.ESPNetV2Config(classes=3)
    model = heads.attach(backbone, "espnet_v2", config)
    assert model.output["logits"].shape == (None, 96, 64, 3)
    model.save(tmp_path / "model.keras")
    again = keras_lightnets.load_model(tmp_path / "model.keras")
    image = source.seeded_image((96, 64))[None].astype("float32")
    np.testing.assert_array_equal(
        again(image, training=False)["logits"], model(image, training=False)["logits"]
    )
    tensor = keras.Input((None, None, 8))
    with pytest.raises(ValueError, match="fixed input_shape"):
        espnet_v2.espnet_v2(dict.fromkeys(maps, tensor), config)
    with pytest.raises(ValueError, match="classes=0"):
        espnet_v2.ESPNetV2Config(classes=0)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("espnet_v2_seg", "cityscapes"),
        pytest.param("espnet_v2_seg_200", "cityscapes", marks=pytest.mark.full),
        pytest.param("espnet_v2_seg_200", "voc", marks=pytest.mark.full),
    ],
)
def test_official_files_fit(name, tag, shared, monkeypatch):
    folder = shared / "weights"
    if not folder.is_dir():
        pytest.skip(f"no official weights in {folder}")
    monkeypatch.setenv("KERAS_LIGHTNETS_MIRROR", str(folder))
    monkeypatch.setenv("KERAS_LIGHTNETS_OFFLINE", "1")
    model, labels = heads.create_segmenter(name, tag, (96, 128))
    alpha = np.asarray(model.get_layer("head_step1_branch_act").alpha)
    assert np.abs(alpha).max() > 0.01
    assert model.output["logits"].shape == (None, 96, 128, len(labels))
