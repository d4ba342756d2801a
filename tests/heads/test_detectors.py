"""The published SSDLite detector against torchvision's stored results."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_lightnets import _weights, heads
from keras_lightnets._errors import WeightsError
from keras_lightnets.heads import _joined, detectors, losses, matching, ssdlite
from keras_lightnets.heads import boxes as box_ops
from keras_lightnets.heads.nms import nms
from keras_lightnets.tools.convert import make_ssdlite_parity as source

NAME = "ssdlite320_mobilenet_v3_large"
PARITY = Path(__file__).parents[1] / "parity" / "ssdlite_torchvision.npz"
ROWS = slice(None, None, source.ROW_STEP)
PREFIXES = {"gamma": "weight", "beta": "bias", "kernel": "weight"}
PREFIXES |= {"moving_mean": "running_mean", "moving_variance": "running_var"}


@pytest.fixture(scope="module")
def stored():
    with np.load(PARITY) as arrays:
        return dict(arrays)


def state_of(model, names):
    """The seeded state dict of torchvision's detector, in PyTorch's layout."""
    state = {}
    for layer in model.layers:
        for weight in layer.weights:
            key = f"{names[layer.name]}.{PREFIXES.get(weight.name, weight.name)}"
            shape = tuple(weight.shape)
            if len(shape) == 4:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                shape = tuple(shape[i] for i in order)
            state[key] = source.seeded_tensor(key, shape)
    return state


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The detector, loaded from a checkpoint file in torchvision's layout."""
    safetensors = pytest.importorskip("safetensors.numpy")
    row = detectors.DETECTORS[NAME]
    model, _ = heads.create_detector(NAME, weights=None)
    names = _joined.layout_of(row).names(_joined.spec_of(NAME, row))
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    safetensors.save_file(state_of(model, names), path)
    return heads.create_detector(NAME, weights=path)


@pytest.fixture(scope="module")
def raw(detector):
    model, _ = detector
    found = model(source.seeded_image()[None].astype("float32"), training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}


def test_parameters(detector, stored):
    model, _ = detector
    count = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert count == stored["parameters"] == 3_440_060


def test_raw_outputs(raw, stored):
    np.testing.assert_allclose(raw["scores"][0, ROWS], stored["logits"], atol=1e-4)
    np.testing.assert_allclose(raw["boxes"][0, ROWS], stored["encodings"], atol=1e-4)
    for name, key in (("scores", "logits_mean"), ("boxes", "encodings_mean")):
        mean = raw[name][0].mean(axis=0, dtype="float64")
        np.testing.assert_allclose(mean, stored[key], atol=1e-5)


def test_default_boxes(detector, stored):
    corners = box_ops.to_corners(ssdlite.default_boxes(detector[1])) * source.SIZE
    np.testing.assert_allclose(corners[ROWS], stored["anchors_px"], atol=1e-3)
    mean = corners.mean(axis=0, dtype="float64")
    np.testing.assert_allclose(mean, stored["anchors_mean_px"], atol=1e-3)


def test_decoded_boxes(detector, raw, stored):
    anchors = ssdlite.default_boxes(detector[1])
    decoded = box_ops.decode(raw["boxes"][0], anchors) * source.SIZE
    np.testing.assert_allclose(decoded[ROWS], stored["decoded_px"], atol=1e-3)


def test_detections(detector, raw, stored):
    boxes, scores = ssdlite.decode(raw, detector[1])
    found = nms(boxes, scores, max_detections=300, iou_threshold=0.55)
    top = slice(source.STORED_DETECTIONS)
    first = [keras.ops.convert_to_numpy(part)[0] for part in found]
    np.testing.assert_array_equal(first[2][top] + 1, stored["found_labels"])
    np.testing.assert_allclose(first[1][top], stored["found_scores"], atol=1e-5)
    boxes_px = first[0][top] * source.SIZE
    np.testing.assert_allclose(boxes_px, stored["found_boxes_px"], atol=1e-3)


def test_assignment(detector, stored):
    anchors = ssdlite.default_boxes(detector[1])
    boxes, labels = source.seeded_objects()
    _, assigned = matching.match(boxes, labels, anchors)
    owner = stored["matched"]
    expected = np.where(owner >= 0, labels[owner] + 1, 0)
    np.testing.assert_array_equal(assigned, expected)


def test_losses(detector, raw, stored):
    anchors = ssdlite.default_boxes(detector[1])
    encodings, assigned = matching.match(*source.seeded_objects(), anchors)
    target = np.concatenate([encodings, (assigned > 0)[:, None]], axis=1)[None]
    parts = ssdlite.build_losses(detector[1])
    assert isinstance(parts["scores"], losses.MultiboxLoss)
    box_loss = float(parts["boxes"](target.astype("float32"), raw["boxes"]))
    score_loss = float(parts["scores"](assigned[None], raw["scores"]))
    assert box_loss == pytest.approx(float(stored["box_loss"]), rel=1e-4)
    assert score_loss == pytest.approx(float(stored["score_loss"]), rel=1e-4)


def test_config_carries_the_publishers_numerics(detector):
    model, config = detector
    assert (config.padding, config.bn_momentum, config.classes) == (
        "symmetric",
        0.97,
        90,
    )
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {(n.epsilon, n.momentum) for n in norms} == {(1e-3, 0.97)}


def test_own_file_keeps_the_numerics(detector, tmp_path):
    model, config = detector
    _weights.save(model, tmp_path / "own.safetensors")
    again, same = heads.create_detector(NAME, weights=tmp_path / "own.safetensors")
    assert same == config
    assert [layer.name for layer in again.layers] == [x.name for x in model.layers]
    for new, old in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(new), keras.ops.convert_to_numpy(old)
        )


def test_a_classifiers_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    state = {"features.0.0.weight": np.zeros((16, 3, 3, 3), "float32")}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not a checkpoint of ssdlite320"):
        heads.create_detector(NAME, weights=tmp_path / "other.safetensors")


def test_unknown_names():
    with pytest.raises(ValueError, match=NAME):
        heads.create_detector("ssdlite_mobilenet_v3_large")
    with pytest.raises(WeightsError, match="'coco'"):
        heads.create_detector(NAME, weights="cocoa")


@pytest.mark.parametrize(
    ("classifier", "detection"),
    [
        ("features.0.0", "0.0.0"),
        ("features.12.block.3.1", "0.12.block.3.1"),
        ("features.13.block.0.1", "0.13.1"),
        ("features.13.block.2.fc1", "1.0.2.fc1"),
        ("features.16.1", "1.3.1"),
    ],
)
def test_backbone_names(classifier, detection):
    renamed = detectors._in_detector(classifier, split=13)
    assert renamed == f"backbone.features.{detection}"
