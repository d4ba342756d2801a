"""MicroNet: Dynamic Shift-Max, channels by index, strided separable convolutions."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_lightnets
from keras_lightnets import layers
from keras_lightnets.layers.shift_max import shifted


def sigmoid6(x):
    return np.clip(x + 3, 0, 6) / 6


def test_partner_is_the_next_channel_of_the_next_group():
    assert shifted(6, 3) == [3, 2, 5, 4, 1, 0]
    assert shifted(4, 1) == [1, 2, 3, 0]
    assert sorted(shifted(24, 4)) == list(range(24))
    with pytest.raises(ValueError, match="divides by groups=4. Received: 6"):
        shifted(6, 4)


@pytest.mark.parametrize("start", [(1.0, 0.0, 0.5, 0.5), (1.0, 0.0)])
def test_shift_max_is_the_papers_formula(start):
    random = np.random.RandomState(0)
    inputs = keras.Input((3, 5, 8))
    out = layers.dynamic_shift_max(inputs, 2, 4, start, "x")
    model = keras.Model(inputs, out)
    for variable in model.weights:
        variable.assign(random.randn(*variable.shape))
    x = random.randn(2, 3, 5, 8).astype("float32")
    w1, b1, w2, b2 = (np.asarray(v).squeeze() for v in model.weights)
    gates = sigmoid6(np.maximum(x.mean((1, 2)) @ w1 + b1, 0) @ w2 + b2)
    factors = (gates.reshape(2, len(start), 8) - 0.5) * 4 + np.array(start)[:, None]
    moved = x[..., [5, 6, 7, 4, 1, 2, 3, 0]]
    a, b = (factors[:, i::2].transpose(1, 0, 2)[:, :, None, None] for i in (0, 1))
    expected = (a * x + b * moved).max(0)
    np.testing.assert_allclose(np.asarray(model(x)), expected, atol=1e-5)


def test_strided_separable_convolution_strides_one_way_at_a_time():
    model = keras_lightnets.MicroNetM0(weights=None, input_shape=(64, 64, 3))
    rows = model.get_layer("stage3_block1_dw_rows_conv")
    cols = model.get_layer("stage3_block1_dw_cols_conv")
    assert (rows.kernel_size, rows.strides) == ((3, 1), (2, 1))
    assert (cols.kernel_size, cols.strides) == ((1, 3), (1, 2))
    assert (rows.groups, cols.groups) == (8, 16)


def test_selected_channels_fixed_and_stored(tmp_path):
    inputs = keras.Input((2, 2, 6))
    x = layers.SelectChannels(indices=(5, 5, 0), name="fixed")(inputs)
    stored = layers.SelectChannels(count=2, name="stored")
    model = keras.Model(inputs, [x, stored(inputs)])
    images = np.random.RandomState(0).rand(1, 2, 2, 6).astype("float32")
    assert np.asarray(stored.index).tolist() == [0, 3]
    assert model.trainable_variables == []
    stored.index.assign([4, 1])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for found in (model(images), again(images)):
        np.testing.assert_array_equal(found[0], images[..., [5, 5, 0]])
        np.testing.assert_array_equal(found[1], images[..., [4, 1]])


def test_selected_channels_refuse_what_is_not_there():
    x = ops.zeros((1, 2, 2, 3))
    with pytest.raises(ValueError, match="of 0 to 2, as its input has 3 channels"):
        layers.SelectChannels(indices=(0, 3))(x)
    with pytest.raises(ValueError, match="either indices .* or count"):
        layers.SelectChannels()


def test_bridge_knows_selected_channels():
    pytest.importorskip("tf_keras")
    from keras_lightnets.tools.quantize import bridge

    inputs = keras.Input((4, 4, 3))
    stored = layers.SelectChannels(count=4)
    model = keras.Model(
        inputs, stored(layers.SelectChannels(indices=(2, 0, 1, 1, 0))(inputs))
    )
    stored.index.assign([4, 0, 2, 2])
    images = np.random.RandomState(0).rand(1, 4, 4, 3).astype("float32")
    found = np.asarray(bridge.to_tf_keras(model).model(images))
    np.testing.assert_array_equal(found, images[..., [0, 2, 1, 1]])
