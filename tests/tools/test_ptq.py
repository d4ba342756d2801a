"""Post-training quantisation: calibration sets, folded input, fidelity."""

import keras
import numpy as np
import pytest
from keras import layers

pytest.importorskip("tf_keras")
pytest.importorskip("ai_edge_litert")

from quant_models import classifier, detector, pictures, settle

from keras_lightnets.layers import SampleConv2D
from keras_lightnets.tools.export import tflite
from keras_lightnets.tools.quantize import _passes, bridge, ptq, rules

SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def model():
    return settle(detector())


@pytest.fixture(scope="module")
def content(model):
    return tflite.convert(model, "int8", "uint8", pictures(16, seed=5))


def folded(model, raw=True):
    graph = bridge.to_graph(model).copy()
    _passes.fold_norms(graph)
    _passes.fold_input(graph, raw)
    _passes.bake(graph)
    return graph


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ([], "empty"),
        ([np.zeros((8, 8, 3), "uint8")], r"shape \(8, 8, 3\)"),
        ([np.full(SHAPE, 300.0)], "0-255"),
        ([np.full(SHAPE, -1.0)], "0-255"),
        ([np.full(SHAPE, 0.5)], "Do not divide by 255"),
        ([np.full(SHAPE, np.nan)], "NaN"),
        (["picture.jpg"], "numeric"),
    ],
)
def test_calibration_set_that_does_not_fit(samples, text):
    with pytest.raises(ValueError, match=text):
        ptq.check_samples(samples, SHAPE)


def test_calibration_set_with_and_without_batch_axis():
    found = ptq.check_samples([pictures(1)[0], pictures(3)], SHAPE)
    assert [sample.shape for sample in found] == [SHAPE] * 4


def test_calibration_set_is_limited():
    many = (np.full(SHAPE, i % 256, "uint8") for i in range(10_000))
    assert len(ptq.check_samples(many, SHAPE)) == ptq.MAX_SAMPLES


def test_one_mean_becomes_the_zero_point(model, content):
    graph = folded(model)
    assert (graph.raw_zero_point, graph.raw_scale) == (127, 1 / 128)
    assert not {"normalise", "normalise_scale"} & set(graph.steps)
    (detail,) = tflite.interpreter(content).get_input_details()
    assert detail["quantization"] == pytest.approx((1 / 128, 127))


def test_folded_graph_equals_the_model_at_the_border_too(model):
    graph = folded(model)
    tf_model, _ = bridge.emit(graph)
    images = pictures(4)
    got = tf_model(ptq.to_real(images, graph))
    want = model(images.astype("float32"), training=False)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], atol=2e-5)


def test_half_a_grey_level_goes_into_the_bias():
    model = settle(classifier())
    graph = folded(model)
    assert graph.raw_zero_point in (127, 128)
    first = next(iter(graph))
    assert first.kind == "conv"
    stem = keras.Model(model.input, model.get_layer("stem_bn").output)
    graph.outputs = {"output": first.name}
    graph.steps = {first.name: first}
    tf_model, _ = bridge.emit(graph)
    images = pictures(4)
    got = np.asarray(tf_model(ptq.to_real(images, graph)))
    want = np.asarray(stem(images.astype("float32"), training=False))
    np.testing.assert_allclose(got[:, :-1, :-1], want[:, :-1, :-1], atol=1e-5)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


def test_distant_means_become_one_depthwise_convolution():
    model = settle(detector(mean=[124.0, 116.0, 104.0]))
    graph = folded(model)
    assert graph.steps["normalise"].kind == "depthwise"
    assert (graph.raw_zero_point, graph.raw_scale) == (0, 1.0)
    content = tflite.convert(model, "int8", "uint8", pictures(8))
    (detail,) = tflite.interpreter(content).get_input_details()
    assert detail["quantization"] == pytest.approx((1.0, 0))


@pytest.mark.parametrize("io", ["uint8", "float"])
def test_file_agrees_with_the_model(io, model, content):
    images = pictures(16)
    if io == "float":
        content = tflite.convert(model, "int8", io, pictures(16, seed=5))
    got = tflite.run(content, images)
    want = model(images.astype("float32"), training=False)
    for key in want:
        error = np.abs(got[key] - want[key]).mean()
        assert error < 0.02 * np.abs(want[key]).max()


def test_input_without_normalisation_takes_the_range_of_the_samples():
    image = keras.Input(SHAPE, name="image")
    model = keras.Model(image, layers.Conv2D(4, 3, name="conv")(image))
    samples = pictures(8).astype("float32") / 255 - 0.5
    content = tflite.convert(model, "int8", "float", samples)
    got = tflite.run(content, samples)["output"]
    want = np.asarray(model(samples))
    assert np.abs(got - want).mean() < 0.02 * np.abs(want).max()


def test_two_inputs_are_refused():
    a, b = keras.Input(SHAPE, name="a"), keras.Input(SHAPE, name="b")
    model = keras.Model([a, b], layers.Add()([a, b]))
    with pytest.raises(ValueError, match="one input.*a, b"):
        ptq.prepare(model, pictures(1))


def test_a_kernel_of_each_sample_has_no_int8_form():
    image = keras.Input((16, 16, 3), name="image")
    kernels = layers.Conv2D(12, 1)(layers.GlobalAveragePooling2D(keepdims=True)(image))
    made = SampleConv2D(4, name="own_conv")([image, kernels])
    with pytest.raises(rules.NotQuantisableError, match="own_conv.*format of floats"):
        tflite.convert(keras.Model(image, made), "int8", "int8", pictures(2, 16))
