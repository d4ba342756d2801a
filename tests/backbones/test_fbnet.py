"""FBNet, V2 and V3: shuffles, narrow padding, timm's variants, licences."""

import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost, layers

# Counted on timm's networks: registry name, size, parameters, multiply-adds (M).
TIMM = [
    pytest.param("fbnet_v3_b", 224, 8598464, 407.51, id="b"),
    pytest.param("fbnet_v3_d", 224, 10306272, 501.97, id="d", marks=pytest.mark.full),
    pytest.param("fbnet_v3_g", 240, 16623888, 1253.58, id="g", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("name", "size", "params", "madds"), TIMM)
def test_timm_counts(name, size, params, madds):
    changes = dict(keras_lightnets.get_spec(name).find_weights("ra2_in1k").changes)
    model = keras_lightnets.create_model(
        name, weights=None, input_shape=(size, size, 3), **changes
    )
    total = cost.total(model)
    assert total.params == params
    assert total.madds / 1e6 == pytest.approx(madds, rel=1e-3)


def test_narrow_padding_makes_smaller_maps():
    sides = {}
    for narrow in (True, False):
        maps = keras_lightnets.FBNetV3A(
            weights=None,
            input_shape=(224, 224, 3),
            include_top=False,
            endpoints=("c3", "c4", "c5"),
            narrow=narrow,
        )
        sides[narrow] = [t.shape[1] for t in maps.output.values()]
    assert sides == {True: [28, 13, 6], False: [28, 14, 7]}


def test_channel_shuffle_interleaves_the_groups():
    import keras

    x = np.arange(2 * 3 * 4 * 6, dtype="float32").reshape(2, 3, 4, 6)
    inputs = keras.Input((3, 4, 6))
    model = keras.Model(inputs, layers.channel_shuffle(inputs, 2, "x"))
    found = np.asarray(model(x))
    np.testing.assert_array_equal(found, x[..., [0, 3, 1, 4, 2, 5]])
    back = keras.Model(inputs, layers.channel_shuffle(inputs, 3, "y"))
    np.testing.assert_array_equal(np.asarray(back(found)), x)


def test_channel_shuffle_needs_whole_groups():
    import keras

    with pytest.raises(ValueError, match="divides by groups=4. Received: 6 channels"):
        layers.channel_shuffle(keras.Input((3, 4, 6)), 4, "x")


def test_skipped_blocks_keep_their_number():
    model = keras_lightnets.FBNetC(weights=None, input_shape=(64, 64, 3))
    names = {layer.name.rsplit("_", 2)[0] for layer in model.layers}
    assert {"stage2_block1", "stage2_block3", "stage2_block4"} <= names
    assert "stage2_block2" not in names


@pytest.mark.parametrize("name", ["fbnet_a", "fbnet_v2_f1", "fbnet_v3_a"])
def test_the_authors_files_ask_for_the_licence(name):
    with pytest.raises(ValueError, match="CC-BY-NC-4.0"):
        keras_lightnets.create_model(name, weights="imagenet")


def test_an_unknown_size_is_refused_where_channels_are_shuffled():
    with pytest.raises(ValueError, match="known size"):
        keras_lightnets.FBNetA(
            weights=None, include_top=False, input_shape=(None, None, 3)
        )
