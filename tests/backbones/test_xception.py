"""Xception: pooling of negative values, sizes, and how its forms differ."""

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import layers


@pytest.mark.parametrize("side", [7, 8])
def test_pooling_is_centred_and_pads_nothing_that_could_win(side):
    image = keras.Input((side, side, 2))
    model = keras.Model(image, layers.centred_max_pool(image, 2, "symmetric", "a"))
    x = np.random.default_rng(0).normal(-5, 1, (1, side, side, 2)).astype("float32")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    count = (side + 1) // 2
    expected = np.zeros((1, count, count, 2), "float32")
    for i in range(count):
        for j in range(count):
            window = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[0, i, j] = window.max((0, 1))
    np.testing.assert_array_equal(model(x), expected)


def test_maps_at_the_published_size():
    model = keras_lightnets.Xception(
        weights=None,
        include_top=False,
        endpoints=("c1", "c2", "c3", "c4", "c5"),
        input_shape=(299, 299, 3),
    )
    shapes = {k: tuple(v.shape[1:]) for k, v in model.output.items()}
    assert shapes == {
        "c1": (147, 147, 64),
        "c2": (74, 74, 128),
        "c3": (37, 37, 256),
        "c4": (19, 19, 728),
        "c5": (10, 10, 2048),
    }


def test_only_the_aligned_form_normalises_behind_depthwise_convolutions():
    names = {}
    for name in ("xception", "xception41"):
        rows = keras_lightnets.get_spec(name).rows[:2]
        model = keras_lightnets.create_model(
            name, weights=None, include_top=False, rows=rows, input_shape=(64, 64, 3)
        )
        names[name] = {layer.name for layer in model.layers}
    assert "stage2_block1_sep1_dw_bn" in names["xception41"]
    assert "stage2_block1_sep1_dw_bn" not in names["xception"]
    assert "stage2_block1_pool" in names["xception"]
    assert "stage2_block1_pool" not in names["xception41"]


def test_a_pooling_that_lost_its_stride_is_not_dilated_further():
    with pytest.raises(ValueError, match="Unknown output_stride 8.*16"):
        keras_lightnets.Xception(weights=None, output_stride=8)
