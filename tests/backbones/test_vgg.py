"""VGG and AlexNet: published counts, cells that the dense layers read."""

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost, layers


@pytest.mark.parametrize(
    ("depth", "params", "madds"),
    [
        (11, 9231114, 152.77),
        # The pruning papers' base network: 14.7 M parameters, 313 M multiply-adds.
        (16, 14728266, 313.20),
    ],
)
def test_counts_of_the_networks_for_cifar(depth, params, madds):
    """Of kuangliu/pytorch-cifar, whose convolutions have a redundant bias."""
    model = keras_lightnets.create_model(
        f"vgg_cifar_{depth}", weights=None, classes=10, conv_bias=True
    )
    whole = cost.total(model)
    assert whole.params == params
    assert whole.madds / 1e6 == pytest.approx(madds, rel=1e-3)


def test_pool_to_cells_is_pytorchs():
    """Cell i averages the cells from floor(i n / 3) to ceil((i + 1) n / 3)."""
    x = np.random.RandomState(0).rand(1, 4, 2, 5).astype("float32")
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layers.adaptive_pool(inputs, 3, "x"))
    rows, cols = ([(0, 2), (1, 3), (2, 4)], [(0, 1), (0, 2), (1, 2)])
    expected = [[x[0, a:b, c:d].mean((0, 1)) for c, d in cols] for a, b in rows]
    np.testing.assert_allclose(np.asarray(model(x))[0], expected, rtol=1e-5)


def test_cells_need_a_known_size_and_are_left_alone_where_they_fit():
    fitting = keras.Input((3, 3, 5))
    assert layers.adaptive_pool(fitting, 3, "x") is fitting
    with pytest.raises(ValueError, match="3 x 3 cells and needs a known image"):
        layers.adaptive_pool(keras.Input((None, None, 5)), 3, "x")


def test_dense_layers_read_channel_by_channel():
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, layers.hidden_classifier(inputs, (), 12, (0.0,)))
    model.get_layer("top_classifier").kernel.assign(np.eye(12))
    x = np.arange(12, dtype="float32").reshape(1, 2, 2, 3)
    expected = x.transpose(0, 3, 1, 2).reshape(1, 12)
    np.testing.assert_array_equal(np.asarray(model(x)), expected)


def test_alexnet_narrow():
    """All but the widths of AlexNet, whose 61 million parameters take long."""
    model = keras_lightnets.AlexNet(
        weights=None, width=0.25, hidden=(32, 16), input_shape=(97, 75, 3), classes=4
    )
    found = np.asarray(model(np.ones((2, 97, 75, 3)), training=False))
    assert found.shape == (2, 4)
    stem = model.get_layer("stem_conv")
    assert (stem.kernel_size, stem.strides, stem.filters) == ((11, 11), (4, 4), 16)
    names = [layer.name for layer in model.layers if "dropout" in layer.name]
    assert names == ["top_hidden1_dropout", "top_hidden2_dropout"]


def test_local_response_divides_by_the_channels_around(tmp_path):
    """Section 3.3 of Krizhevsky et al. 2012, with PyTorch's mean of five squares."""
    inputs = keras.Input((None, None, 7))
    model = keras.Model(inputs, layers.local_response(inputs, "stem"))
    x = 30 * np.random.RandomState(0).randn(1, 2, 3, 7).astype("float32")
    expected = np.empty_like(x)
    for i in range(7):
        around = x[..., max(0, i - 2) : i + 3]
        mean = (around**2).sum(-1) / 5
        expected[..., i] = x[..., i] / (2 + 1e-4 * mean) ** 0.75
    np.testing.assert_allclose(np.asarray(model(x)), expected, rtol=1e-5)
    model.save(tmp_path / "response.keras")
    again = keras.saving.load_model(tmp_path / "response.keras")
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))
