"""EfficientDet's graph through the bridge, int8 and the post-processing op."""

import dataclasses

import keras
import numpy as np
import pytest

pytest.importorskip("tf_keras")
pytest.importorskip("ai_edge_litert")

from quant_models import pictures, settle

from keras_lightnets import heads
from keras_lightnets.heads import efficientdet
from keras_lightnets.tools import runtime
from keras_lightnets.tools.export import formats, postprocess
from keras_lightnets.tools.quantize import _passes, bridge, qat

CONFIG = efficientdet.EfficientDetConfig(
    classes=3, image_size=160, channels=8, cells=1, repeats=1
)
LITE = dataclasses.replace(CONFIG, fusion="sum", act="relu6")


def detector(config):
    image = keras.Input((160, 160, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="normalise")(image)
    maps = {}
    for key, stride in (("c3", 8), ("c4", 2), ("c5", 2)):
        conv = keras.layers.Conv2D(
            8 + stride, 8, stride, padding="same", name=f"{key}_conv"
        )
        x = keras.layers.ReLU(6.0, name=f"{key}_act")(conv(x))
        maps[key] = x
    body = keras.Model(image, maps, name="tiny")
    model = settle(heads.attach(body, "efficientdet_lite0", config))
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if hasattr(layer, "edge_weights"):
            shape = layer.edge_weights.shape
            layer.edge_weights.assign(rng.uniform(0.3, 1.5, shape))
    return model


@pytest.fixture(scope="module")
def model():
    return detector(CONFIG)


def test_twin_equals_the_detector(model):
    """Weighted fusion, shared predictors and resizing in tf_keras."""
    images = pictures(2, 160).astype("float32")
    twin = bridge.to_tf_keras(model)
    for key, value in model(images, training=False).items():
        other = np.asarray(twin.model(images, training=False)[key])
        np.testing.assert_allclose(other, np.asarray(value), atol=1e-5)


def test_every_level_gets_its_normalisation_folded(model):
    graph = bridge.to_graph(model).copy()
    _passes.fold_norms(graph)
    assert not [step.name for step in graph if step.kind == "batch_norm"]
    folded = [s for s in graph if s.source == "head_boxes_repeat1_conv"]
    assert len(folded) == CONFIG.levels
    assert {s.config["norm"].source for s in folded} == {
        f"head_boxes_level{k}_repeat1_bn" for k in range(1, CONFIG.levels + 1)
    }
    assert not any(step.shared for step in folded)
    predictors = [s for s in graph if s.source == "head_boxes_conv"]
    assert [bool(s.shared) for s in predictors] == [False, True, True, True, True]


@pytest.mark.export
@pytest.mark.parametrize("config", [CONFIG, LITE], ids=["d", "lite"])
def test_quantised_files_with_the_op(config, tmp_path):
    built = detector(config)
    images = pictures(16, 160)
    meta = runtime.Meta(
        ("a", "b", "c"),
        config.size,
        scores=config.score_activation,
        anchors=efficientdet.default_boxes(config),
        box_weights=config.box_weights,
    )
    aware = qat.prepare(built, [images])
    # Random weights decide many anchors by a hair: trained networks agree better.
    for name, source, least in (("ptq", built, 0.96), ("qat", aware, 0.98)):
        artifact = formats.export(
            source,
            "edgetpu",
            tmp_path / name / "model.tflite",
            calibration=list(images) if source is built else None,
            samples=list(images),
            detector=formats.Detector(meta, postprocess.Postprocess()),
        )
        assert artifact.verification.float_ops == ()
        assert artifact.agreement >= least
        assert artifact.postprocess["detections"] > 0
        assert artifact.postprocess["unmatched"] == 0
        left = {
            op.op: op.reason for op in artifact.verdicts["edgetpu"].ops if not op.mapped
        }
        assert artifact.verdicts["edgetpu"].network_mapped, left
    copy = keras.models.clone_model(built)
    bridge.copy_back(aware, copy)
    kernel = copy.get_layer("head_boxes_repeat1_conv").kernel
    np.testing.assert_allclose(
        kernel, built.get_layer("head_boxes_repeat1_conv").kernel, atol=1e-6
    )
