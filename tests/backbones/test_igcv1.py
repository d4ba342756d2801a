"""IGCV1: the properties of interleaved group convolutions (section 3 of the paper)."""

import numpy as np
import pytest
from channel_paths import count_paths

import keras_lightnets
from keras_lightnets.backbones.igcv1 import Row

PRIMARY = (2, 3, 6)


def small(primary):
    """Build a network of 12 channels with this many primary partitions."""
    rows = (
        Row(stage=2, out=12, primary=primary, repeat=1, stride=1),
        Row(stage=3, out=24, primary=primary, repeat=1, stride=2),
    )
    return keras_lightnets.IGCV1L100M2(
        weights=None,
        rows=rows,
        stem=12,
        include_top=False,
        input_shape=(32, 32, 3),
    )


@pytest.mark.parametrize("primary", PRIMARY)
def test_one_path_joins_every_input_and_output_channel(primary):
    name = "stage2_block1_first"
    ways = count_paths(small(primary), "stem_pool", f"{name}_back_shuffle")
    np.testing.assert_array_equal(ways, np.ones((12, 12), int))


@pytest.mark.parametrize("primary", PRIMARY)
def test_the_second_reordering_undoes_the_first(primary):
    """With identities for secondary kernels only the primary convolution is left."""
    import keras

    model = small(primary)
    name = "stage2_block1_first"
    kernel = np.tile(np.eye(primary), 12 // primary)[None, None]
    model.get_layer(f"{name}_secondary_conv").set_weights([kernel])
    ends = [f"{name}_primary_conv", f"{name}_back_shuffle"]
    pair = keras.Model(model.input, [model.get_layer(end).output for end in ends])
    images = np.random.RandomState(0).rand(1, 32, 32, 3).astype("float32")
    before, after = (np.asarray(t) for t in pair(images))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    "name",
    [
        "igcv1_l100m2",
        pytest.param("igcv1_l16m16", marks=pytest.mark.full),
        pytest.param("igcv1_l4m32", marks=pytest.mark.full),
    ],
)
def test_partitions_complement_each_other(name):
    """L primary partitions of M channels: M secondary ones of L."""
    model = keras_lightnets.create_model(name, weights=None, input_shape=(32, 32, 3))
    pairs = 0
    for layer in model.layers:
        if layer.name.endswith("_primary_conv"):
            second = model.get_layer(layer.name.replace("primary", "secondary"))
            assert layer.groups * second.groups == layer.filters == second.filters
            assert not (layer.use_bias or second.use_bias)
            pairs += 1
    assert pairs == 16
