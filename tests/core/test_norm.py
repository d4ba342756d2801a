"""The fused batch normalisation is keras.layers.BatchNormalization, faster."""

import keras
import numpy as np
import pytest

from keras_lightnets.layers.norm import BatchNormalization

OPTIONS = {"epsilon": 1e-3, "momentum": 0.9}


def make_pair(rank=4):
    rng = np.random.default_rng(0)
    classes = (keras.layers.BatchNormalization, BatchNormalization)
    both = [cls(**OPTIONS) for cls in classes]
    values = [rng.uniform(0.5, 1.5, 6).astype("float32") for _ in range(4)]
    for layer in both:
        layer.build((*[None] * (rank - 1), 6))
        layer.set_weights(values)
    return both


@pytest.fixture
def pair():
    return make_pair()


def images(shape=(3, 5, 4, 6)):
    return np.random.default_rng(1).normal(2, 3, shape).astype("float32")


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_statistics_equal_the_parent(pair, training):
    theirs, ours = (np.asarray(layer(images(), training=training)) for layer in pair)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for a, b in zip(pair[0].get_weights(), pair[1].get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_the_parent(pair, training):
    tf = pytest.importorskip("tensorflow")
    grads = []
    for layer in pair:
        x = tf.constant(images())
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(layer(x, training=training)))
        grads.append(tape.gradient(loss, [x, *layer.trainable_weights]))
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-5)


def test_frozen_layer_uses_and_keeps_its_statistics(pair):
    before = pair[1].get_weights()
    for layer in pair:
        layer.trainable = False
    theirs, ours = (np.asarray(layer(images(), training=True)) for layer in pair)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for a, b in zip(before, pair[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(4, 6), (2, 7, 6), (2, 3, 4, 4, 6)])
def test_other_ranks_fall_back_to_the_parent(shape):
    pair = make_pair(len(shape))
    theirs, ours = (np.asarray(layer(images(shape), training=True)) for layer in pair)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_equals_the_parent(policy):
    both = [
        cls(**OPTIONS, dtype=policy)
        for cls in (keras.layers.BatchNormalization, BatchNormalization)
    ]
    theirs, ours = (layer(images(), training=True) for layer in both)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(
        keras.ops.cast(ours, "float32"), keras.ops.cast(theirs, "float32"), atol=0.03
    )
    assert both[1].moving_mean.dtype == "float32"


def test_double_precision_is_the_parents():
    theirs, ours = (
        np.asarray(cls(**OPTIONS, dtype="float64")(images().astype("float64")))
        for cls in (keras.layers.BatchNormalization, BatchNormalization)
    )
    assert ours.dtype == np.float64
    np.testing.assert_array_equal(ours, theirs)


def test_config_weights_and_file_are_the_parents(tmp_path):
    parent = keras.layers.BatchNormalization(**OPTIONS, name="bn")
    ours = BatchNormalization.from_config(parent.get_config())
    assert ours.get_config() == parent.get_config()
    inputs = keras.Input((5, 4, 6))
    model = keras.Model(inputs, ours(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[-1]) is BatchNormalization
    np.testing.assert_array_equal(loaded(images()), model(images()))
