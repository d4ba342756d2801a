"""ESPNet: equal to the authors' code, with seeded weights and with their files."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_lightnets
from keras_lightnets import cost, heads
from keras_lightnets.heads import espnet
from keras_lightnets.heads._labels import CAMVID, VOID
from keras_lightnets.layers import spatial_pyramid
from keras_lightnets.tasks import label_metrics
from keras_lightnets.tools.convert import make_espnet_parity as source
from keras_lightnets.tools.convert.make_ssdlite_parity import seeded_tensor

PARITY = Path(__file__).parents[1] / "parity"
# Counted on the authors' code: parameters, and multiply-adds in millions at 1024x512.
COUNTS = {
    "espnet": (364_569, 4709.44),
    "espnet_c": (349_449, 3470.16),
    "espnet_c_q3": (187_529, 2159.44),
    "espnet_c_q5": (252_297, 2683.72),
    "espnet_q3": (202_649, 3398.72),
    "espnet_q5": (267_417, 3923.01),
}
FILES = {  # names by which a file's own tag is known
    "espnet:camvid": "espnet_p_2_q_8_camvid.pth",
    "espnet_q3:cityscapes": "espnet_p_2_q_3.pth",
    "espnet_c_q3:cityscapes": "espnet_p_2_q_3.pth",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith("_q3") else pytest.mark.full)
        for name in COUNTS
    ],
)
def test_counts_of_the_authors_code(name):
    model, labels = heads.create_segmenter(name, None)
    whole = cost.total(model)
    params, millions = COUNTS[name]
    assert whole.params == params
    assert whole.madds / 1e6 == pytest.approx(millions, abs=0.006)
    assert len(labels) == 20 and labels[-1] == VOID


def test_counts_of_pytorchcvs_depths():
    """Its ESPNet-C has 5 and 3 repetitions; the authors' have 2 and 3, 5 or 8."""
    spec = keras_lightnets.get_spec("espnet_encoder_q3")
    rows = [
        dataclasses.replace(row, repeat=count)
        for row, count in zip(spec.rows, (5, 3), strict=True)
    ]
    encoder = keras_lightnets.ESPNetEncoderQ3(
        weights=None, include_top=False, rows=tuple(rows), input_shape=(64, 64, 3)
    )
    assert cost.total(encoder).params + 256 * 19 == 210_889


@pytest.mark.parametrize("case", FILES)
def test_equals_the_authors_code(case, tmp_path):
    with np.load(PARITY / "espnet_seeded.npz") as file:
        shapes = json.loads(file[f"{case}_state"].tobytes())
        params, expected = int(file[f"{case}_parameters"]), file[case]
        size = tuple(int(side) for side in file[f"{case}_size"])
    state = {key: seeded_tensor(key, tuple(shape)) for key, shape in shapes.items()}
    path = tmp_path / FILES[case]
    save_file(state, path)
    name, _, tag = case.partition(":")
    model, labels = heads.create_segmenter(name, path, size)
    assert cost.total(model).params == params
    assert len(labels) == (12 if tag == "camvid" else 20)
    image = source.seeded_image(size)[None].astype("float32")
    logits = np.asarray(model(image, training=False)["logits"])[0]
    limit = 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(source.thinned(logits), expected, atol=limit)


def test_pyramid_adds_all_branches_but_the_first():
    """Figure 1b of the paper, by hand: with kernels that copy their one input."""
    x = keras.Input((9, 9, 1))
    model = keras.Model(x, spatial_pyramid(x, 6, "a"))
    for layer in model.layers:
        for variable in layer.weights:
            value = np.zeros(variable.shape, "float32")
            centre = variable.shape[0] // 2
            value[centre, centre, 0] = 1
            variable.assign(value)
    image = np.random.RandomState(0).randn(1, 9, 9, 1).astype("float32")
    found = np.asarray(model(image, training=False)) / image
    np.testing.assert_allclose(found[0, 4, 4], [1, 1, 1, 2, 3, 4], atol=1e-5)


def test_odd_sides_and_few_classes():
    backbone = keras_lightnets.ESPNetEncoderQ3(
        weights=None, endpoints=("c1", "c2", "c3"), input_shape=(67, 93, 3)
    )
    model = heads.attach(backbone, "espnet", espnet.ESPNetConfig(classes=2))
    assert model.output["logits"].shape == (None, 68, 94, 2)
    with pytest.raises(ValueError, match="classes=0"):
        espnet.ESPNetConfig(classes=0)


def test_void_counts_in_no_mean():
    """A pixel found to be void is wrong for its class, and nothing else."""
    names = ("a", "b", VOID)
    counts = label_metrics.Confusion(3)
    counts.update(np.array([0, 0, 1, 255]), np.array([0, 2, 1, 2]))
    result = counts.result(names)
    assert result["per_class_iou"] == {"a": 0.5, "b": 1.0, VOID: None}
    assert result["miou"] == result["class_accuracy"] == 0.75
    edges = label_metrics.BoundaryF1(2)
    truth = np.array([[0, 0, 1, 1]] * 4)
    edges.update(truth, np.array([[0, 0, 1, 2]] * 4))
    assert edges.result() == 1.0


@pytest.fixture
def mirror(shared, monkeypatch):
    """Official files under the shared folder, and no network."""
    folder = shared / "weights"
    if not folder.is_dir():
        pytest.skip(f"no official weights in {folder}")
    monkeypatch.setenv("KERAS_LIGHTNETS_MIRROR", str(folder))
    monkeypatch.setenv("KERAS_LIGHTNETS_OFFLINE", "1")
    return folder


def test_official_files_fit(mirror):
    for name in ("espnet", "espnet_c"):
        model, _ = heads.create_segmenter(name, "cityscapes", (64, 96))
        alpha = model.get_layer("stem_join_act").alpha
        assert np.abs(np.asarray(alpha)).max() > 0.01


def test_official_weights_label_camvid_as_the_authors_code(mirror, shared):
    """More than 99.9 % of the pixels of a validation image; of four images `full`."""
    check_images(shared, 1)


@pytest.mark.full
def test_official_weights_label_four_images(mirror, shared):
    check_images(shared, 4)


def check_images(shared, count):
    from keras_lightnets.tasks.data import images

    with np.load(PARITY / "espnet_camvid.npz") as file:
        stored = {key: file[key] for key in file.files if key.endswith(".jpg")}
    model, labels = heads.create_segmenter("espnet", "camvid")
    assert labels == (*CAMVID, VOID)
    for name in list(stored)[:count]:
        image = images.read_image(shared / "data" / "camvid" / "val" / name)
        logits = model(image[None].astype("float32"), training=False)["logits"]
        found = np.asarray(logits)[0].argmax(-1)
        assert (found == stored[name]).mean() > 0.999, name


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if "_c:" in case else pytest.mark.full)
        for case in source.OFFICIAL
    ],
)
def test_official_files_label_as_the_authors_code(case, mirror, shared):
    """Cityscapes' and VOC's weights, of both networks, on a picture of CamVid."""
    from keras_lightnets.tasks.data import images

    with np.load(PARITY / "espnet_official.npz") as file:
        expected = file[case]
    name, _, tag = case.partition(":")
    model, _ = heads.create_segmenter(name, tag, source.CROP)
    image = images.read_image(shared / "data" / "camvid" / "val" / source.PICTURE)
    batch = image[None, : source.CROP[0], : source.CROP[1]].astype("float32")
    found = np.asarray(model(batch, training=False)["logits"])[0].argmax(-1)
    assert (found == expected).mean() > 0.999


def test_public_functions(mirror):
    model = keras_lightnets.ESPNet("camvid", (64, 96))
    assert model.output["logits"].shape == (None, 64, 96, 12)
    assert keras_lightnets.ESPNetC(None, (64, 96), q=3).output["logits"].shape[1] == 8
    with pytest.raises(ValueError, match="q"):
        keras_lightnets.ESPNet(None, q=4)
    with pytest.raises(ValueError, match="width"):
        keras_lightnets.ESPNetV2Segmenter(None, width=1.25)


def test_stored_scores_of_the_authors_code():
    """What `tasks/segment.py eval` gave too, on all 101 images: 0.6947 and 0.7925."""
    with np.load(PARITY / "espnet_camvid.npz") as file:
        counts = label_metrics.Confusion(12)
        counts.counts[:11] = file["confusion"][:11]
    result = counts.result((*CAMVID, VOID))
    assert result["miou"] == pytest.approx(0.6946, abs=1e-4)
    assert result["class_accuracy"] == pytest.approx(0.7925, abs=1e-4)
