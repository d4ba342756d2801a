"""EfficientNet: keras.applications' files, and what differs from the paper's table."""

import warnings

import numpy as np
import pytest

import keras_lightnets

SIDE = 64
full = pytest.mark.full
KERAS = [
    pytest.param("EfficientNetB0", id="b0"),
    pytest.param("EfficientNetB3", id="b3", marks=full),
    pytest.param("EfficientNetV2B0", id="v2_b0", marks=full),
    pytest.param("EfficientNetV2B3", id="v2_b3", marks=full),
    pytest.param("EfficientNetV2S", id="v2_s", marks=full),
]


def randomise(model):
    """Give weights of a trained network's size, the input's statistics left alone."""
    random = np.random.RandomState(8)
    for layer in model.layers:
        if layer.name.startswith("normalization"):
            continue
        for variable in layer.weights:
            shape = tuple(variable.shape)
            value = random.uniform(0.6, 1.4, shape)
            if len(shape) > 1:
                fan_in = np.prod(shape[:2] if shape[-1] == 1 else shape[:-1])
                value = random.randn(*shape) / np.sqrt(fan_in)
            elif variable.name in ("beta", "bias", "moving_mean"):
                value = random.uniform(-0.3, 0.3, shape)
            variable.assign(value.astype("float32"))


@pytest.mark.parametrize("name", KERAS)
def test_files_of_keras_applications(tmp_path, name):
    import keras

    reference = getattr(keras.applications, name)(
        weights=None, input_shape=(SIDE, SIDE, 3), classifier_activation=None
    )
    randomise(reference)
    path = tmp_path / "published.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.save(path)
    ours = getattr(keras_lightnets, name)(
        weights=path, input_shape=(SIDE, SIDE, 3), classifier_activation=None
    )
    images = np.random.RandomState(1).randint(0, 256, (2, SIDE, SIDE, 3))
    images = images.astype("float32")
    # Without a published file keras' first family only divides by 255.
    theirs = images if "V2" in name else _normalised(images) * 255
    expected = np.asarray(reference(theirs, training=False))
    found = np.asarray(ours(images, training=False))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def _normalised(images):
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    return ((images - np.array(mean)) / np.array(std)).astype("float32")


def test_the_squeeze_is_a_quarter_of_the_input():
    model = keras_lightnets.EfficientNetB0(weights=None, input_shape=(SIDE, SIDE, 3))
    squeeze = model.get_layer("stage2_block1_se_squeeze_conv")
    assert squeeze.kernel.shape == (1, 1, 96, 4)


def test_v2_does_not_round_up():
    # 1.2 * 16 is 19.2; V1's rule gives 24 because 16 is below 90 % of it.
    maps = keras_lightnets.EfficientNetV2B3(
        weights=None, include_top=False, endpoints=("c1", "c2")
    )
    assert [t.shape[-1] for t in maps.output.values()] == [16, 40]


def test_drop_connect_grows_with_depth():
    model = keras_lightnets.EfficientNetB0(weights=None, drop_connect=0.2)
    rates = [layer.rate for layer in model.layers if layer.name.endswith("_drop")]
    assert len(rates) == 9
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.2 * 14 / 16)
