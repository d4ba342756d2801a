"""ShuffleNet: the shuffle, the dilated pool, and what publishers differ in."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_lightnets
from keras_lightnets import layers
from keras_lightnets.tools.convert import make_parity as parity

SIDE = 64


def through(function, x):
    """Run a function on tensors as a model."""
    import keras

    inputs = keras.Input(x.shape[1:])
    return np.asarray(keras.Model(inputs, function(inputs))(x))


def test_shuffle_reads_from_every_group_and_is_undone_by_its_complement():
    x = np.arange(12, dtype="float32").reshape(1, 1, 1, 12) + np.zeros((1, 2, 3, 1))
    once = through(lambda t: layers.channel_shuffle(t, 3, "a"), x)
    assert once[0, 1, 2].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    twice = through(lambda t: layers.channel_shuffle(t, 4, "a"), once)
    np.testing.assert_array_equal(twice, x)


def test_shuffle_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="divides by groups=5"):
        layers.channel_shuffle(np.zeros((1, 2, 2, 12)), 5, "a")


def test_pool_counts_the_zeros_of_its_padding():
    x = np.ones((1, 4, 4, 1), "float32")
    found = through(lambda t: layers.avg_pool(t, 3, 2, (1, 1), "a"), x)[0, :, :, 0]
    np.testing.assert_allclose(found, [[4 / 9, 6 / 9], [6 / 9, 1]], rtol=1e-6)


def test_dilated_pool_is_the_strided_one_between():
    x = np.random.RandomState(0).rand(2, 9, 7, 3).astype("float32")
    dense = through(lambda t: layers.avg_pool(t, 3, 1, (1, 1), "a", 2), x)
    thin = x[:, ::2, ::2]
    plain = through(lambda t: layers.avg_pool(t, 3, 1, (1, 1), "a"), thin)
    assert dense.shape == x.shape
    np.testing.assert_allclose(dense[:, ::2, ::2], plain, rtol=1e-5)
    with pytest.raises(ValueError, match="stride=2, dilation=2"):
        layers.avg_pool(x, 3, 2, (1, 1), "a", 2)


def test_the_first_pointwise_convolution_is_not_grouped():
    model = keras_lightnets.ShuffleNetV1G8W050(
        weights=None, endpoints=("c3",), input_shape=(SIDE, SIDE, 3)
    )
    assert model.get_layer("stage3_block1_reduce_conv").groups == 1
    assert model.get_layer("stage3_block2_reduce_conv").groups == 8


def test_authors_stem_reads_blue_first(tmp_path):
    """The file's stem is for B, G, R images; the network's is for R, G, B."""
    name = "shufflenet_v1_g3_050-megvii"
    with np.load(parity.FOLDER / f"{name}.npz") as file:
        shapes = json.loads(file["state"].tobytes())
    state = parity.seeded_state(shapes)
    path = tmp_path / "published.safetensors"
    save_file(state, path)
    model = keras_lightnets.ShuffleNetV1G3W050(
        weights=path, include_top=False, input_shape=(SIDE, SIDE, 3)
    )
    theirs = state["first_conv.0.weight"].transpose(2, 3, 1, 0)
    ours = np.asarray(model.get_layer("stem_conv").kernel)
    np.testing.assert_array_equal(ours, theirs[:, :, ::-1])
    rescaling = model.get_layer("normalise")
    assert (rescaling.scale, rescaling.offset) == (1.0, 0.0)
