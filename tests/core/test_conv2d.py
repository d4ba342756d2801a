"""Our convolution is keras.layers.Conv2D, faster."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_lightnets.layers.conv2d import Conv2D

OPTIONS = [
    {"kernel_size": 3, "padding": "same", "strides": 2},
    {"kernel_size": 3, "padding": "same", "dilation_rate": 2},
    {"kernel_size": (1, 5), "padding": "valid", "use_bias": False},
    {"kernel_size": 1, "strides": 2, "activation": "relu"},
]


def images(dtype="float32", sides=(9, 7)):
    return np.random.default_rng(1).normal(size=(2, *sides, 12)).astype(dtype)


def make_pair(options):
    options = {"groups": 3, **options}
    layers = [cls(24, **options) for cls in (keras.layers.Conv2D, Conv2D)]
    for layer in layers:
        layer.build((None, None, None, 12))
    layers[1].set_weights(layers[0].get_weights())
    return layers


def worst(options, sides=(9, 7)):
    """Return the largest difference of outputs and gradients from the parent's."""
    import tensorflow as tf

    found = []
    for layer in make_pair(options):
        x = tf.constant(images(sides=sides))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.sin(y))
        found.append([y, *tape.gradient(loss, [x, *layer.trainable_weights])])
    return max(
        float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for theirs, ours in zip(*found, strict=True)
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_and_gradients_equal_the_parent(options):
    pytest.importorskip("tensorflow")
    assert worst(options) < 1e-5


def test_pooled_maps_are_multiplied():
    pytest.importorskip("tensorflow")
    assert worst({"kernel_size": 1, "groups": 1}, sides=(1, 1)) < 1e-5
    assert worst({"kernel_size": 3, "groups": 1, "padding": "same"}, (1, 1)) < 1e-5
    assert worst({"kernel_size": 1, "groups": 3}, sides=(1, 1)) < 1e-5


def test_types_without_a_kernel_gradient_are_split():
    tf = pytest.importorskip("tensorflow")
    theirs, ours = (
        cls(24, 3, groups=3, dtype="float16") for cls in (keras.layers.Conv2D, Conv2D)
    )
    for layer in (theirs, ours):
        layer.build((None, None, None, 12))
    ours.set_weights(theirs.get_weights())
    x = tf.constant(images("float16"))
    with tf.GradientTape() as tape:
        y = ours(x)
    np.testing.assert_allclose(y, theirs(x), atol=2e-2)
    assert tape.gradient(y, ours.kernel.value).dtype == "float16"


@pytest.mark.full
def test_without_onednn_it_is_the_same():
    code = "import test_conv2d as t; print(t.worst(t.OPTIONS[0]))"
    here = str(pathlib.Path(__file__).parent)
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": here}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment, check=True, capture_output=True)
    assert float(done.stdout) < 1e-5


def test_saved_and_loaded(tmp_path):
    inputs = keras.Input((9, 7, 12))
    model = keras.Model(inputs, Conv2D(24, 3, groups=3)(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.layers[1], Conv2D)
    np.testing.assert_array_equal(again(images()), model(images()))
