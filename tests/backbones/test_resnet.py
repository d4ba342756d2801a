"""ResNet: where it strides, shortcuts without weights, keras.applications' files."""

import warnings

import keras
import numpy as np
import pytest

import keras_lightnets

SIDE = 64


def test_v1_strides_in_the_first_pointwise_convolution():
    strides = {}
    for name in ("resnet50", "resnet50_v1"):
        rows = keras_lightnets.get_spec(name).rows[:2]
        model = keras_lightnets.create_model(
            name, weights=None, include_top=False, rows=rows
        )
        strides[name] = [
            model.get_layer(f"stage3_block1_{part}_conv").strides[0]
            for part in ("reduce", "spatial", "expand", "shortcut")
        ]
    assert strides == {"resnet50": [1, 2, 1, 2], "resnet50_v1": [2, 1, 1, 2]}


def test_the_shortcut_of_option_a_has_no_weights():
    model = keras_lightnets.ResNetCifar20(
        weights=None, include_top=False, input_shape=(32, 44, 3)
    )
    before = model.get_layer("stage1_block1_shortcut_pool").input
    after = model.get_layer("stage1_block1_shortcut_pad").output
    shortcut = keras.Model(before, after)
    assert shortcut.weights == []
    x = np.random.RandomState(0).randn(2, 32, 44, 16).astype("float32")
    found = np.asarray(shortcut(x))
    assert found.shape == (2, 16, 22, 32)
    np.testing.assert_array_equal(found[..., 8:24], x[:, ::2, ::2])
    assert not found[..., :8].any()
    assert not found[..., 24:].any()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet_cifar_20", 269722),
        ("resnet_cifar_20_projection", 272474),
        pytest.param("resnet_cifar_56", 853018, marks=pytest.mark.full),
        pytest.param("resnet_cifar_110", 1727962, marks=pytest.mark.full),
    ],
)
def test_counts_of_ten_classes(name, params):
    model = keras_lightnets.create_model(name, weights=None, classes=10)
    moving = sum(layer.count_params() // 2 for layer in norms(model))
    assert model.count_params() - moving == params


def norms(model):
    kind = keras.layers.BatchNormalization
    return [layer for layer in model.layers if isinstance(layer, kind)]


def test_refuses_unknown_parts():
    with pytest.raises(ValueError, match="Unknown shortcut 'pol'.*'pool'"):
        keras_lightnets.ResNet50(weights=None, shortcut="pol")


@pytest.mark.full
def test_files_of_keras_applications(tmp_path):
    reference = keras.applications.ResNet50(
        weights=None, input_shape=(SIDE, SIDE, 3), classifier_activation=None
    )
    random = np.random.RandomState(8)
    for variable in reference.weights:
        shape = tuple(variable.shape)
        value = random.uniform(0.6, 1.4, shape)
        if len(shape) > 1:
            value = random.randn(*shape) / np.sqrt(np.prod(shape[:-1]))
        elif variable.name in ("beta", "bias", "moving_mean"):
            value = random.uniform(-0.3, 0.3, shape)
        variable.assign(value.astype("float32"))
    path = tmp_path / "published.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.save(path)
    ours = keras_lightnets.ResNet50V1(
        weights=path, input_shape=(SIDE, SIDE, 3), classifier_activation=None
    )
    images = random.randint(0, 256, (2, SIDE, SIDE, 3)).astype("float32")
    theirs = keras.applications.resnet.preprocess_input(images.copy())
    expected = np.asarray(reference(theirs, training=False))
    found = np.asarray(ours(images, training=False))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
