"""Equalisation: the same outputs, channels of like range, better int8 files."""

import keras
import numpy as np
import pytest
from keras import layers

pytest.importorskip("tf_keras")

from quant_models import pictures, settle

from keras_lightnets.tools.quantize import bridge, equalise


def network():
    """ESPNet's trouble in small: the image, of tiny values, joins other channels."""
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 25500, -0.004, name="normalise")(image)
    y = layers.Conv2D(6, 3, 2, "same", use_bias=False, name="a_conv")(x)
    y = layers.BatchNormalization(name="a_bn")(y)
    y = layers.PReLU(shared_axes=[1, 2], name="a_act")(y)
    y = layers.Concatenate(name="join")([y, layers.AveragePooling2D(2)(x)])
    y = layers.BatchNormalization(name="join_bn")(y)
    y = layers.PReLU(shared_axes=[1, 2], name="join_act")(y)
    parts = [
        layers.Conv2D(8, 3, padding="same", name="b_conv")(y),
        layers.Conv2D(8, 1, name="c_conv")(y),
    ]
    y = layers.Add(name="sum")([parts[0], parts[1]])
    y = layers.Concatenate(name="again")([parts[0], y])
    y = layers.DepthwiseConv2D(3, padding="same", name="d_conv")(y)
    y = layers.ReLU(name="d_act")(y)
    y = layers.Conv2D(8, 1, groups=4, name="e_conv")(y)
    y = layers.LeakyReLU(negative_slope=0.25, name="e_act")(y)
    y = layers.Conv2DTranspose(5, 2, 2, name="f_conv")(y)
    y = layers.ZeroPadding2D(1, name="f_pad")(y)
    y = layers.Conv2D(4, 3, name="g_conv")(y)
    y = layers.ReLU(6.0, name="g_act")(y)  # not linear: what feeds it stays
    return keras.Model(image, {"logits": layers.Conv2D(3, 1, name="out_conv")(y)})


@pytest.fixture(scope="module")
def model():
    made = settle(network())
    rng = np.random.default_rng(3)
    for layer in made.layers:
        for weight in layer.weights:
            if weight.name in ("gamma", "alpha"):
                # Spread over three orders of magnitude.
                value = 10.0 ** rng.uniform(-2, 1, weight.shape)
                weight.assign(np.where(weight.name == "alpha", value / 20, value))
    return made


@pytest.fixture(scope="module")
def images():
    return pictures(12, 32)


@pytest.fixture(scope="module")
def even(model, images):
    return equalise.equalise(model, images)


def tops(model, name, images):
    part = keras.Model(model.input, model.get_layer(name).output)
    return np.abs(np.asarray(part(images.astype("float32")))).max((0, 1, 2))


@pytest.mark.export
def test_outputs_are_equal(model, even, images):
    batch = images.astype("float32")
    before, after = (
        np.asarray(m(batch, training=False)["logits"]) for m in (model, even)
    )
    np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())
    assert [la.name for la in even.layers] == [la.name for la in model.layers]
    assert even is not model


@pytest.mark.export
def test_channels_have_like_ranges(model, even, images):
    for name in ("join", "join_act", "again", "d_act", "e_act"):
        before, after = tops(model, name, images), tops(even, name, images)
        share = [(top / top.max()).mean() for top in (before, after)]
        assert share[1] > 1.2 * share[0], name
        assert after.max() <= 1 + 1e-4, name
    # Channels that nothing ties to others use the whole range, each one of them.
    found = tops(even, "d_act", images)
    np.testing.assert_allclose(found[found > 0], 1.0, rtol=1e-4)
    # The three of the image have one factor, and the mean of four pixels is less.
    assert 0.3 < tops(even, "join", images)[6:].max() < 1.0
    assert tops(model, "join", images)[6:].max() < 0.01  # the image


@pytest.mark.export
def test_what_is_not_linear_keeps_its_values(model, even, images):
    for name in ("g_conv", "g_act", "out_conv"):
        np.testing.assert_allclose(
            tops(even, name, images), tops(model, name, images), rtol=1e-4
        )


def test_a_network_of_relu6_stays_as_it_is(images):
    image = keras.Input((32, 32, 3))
    y = layers.ReLU(6.0)(layers.Conv2D(4, 3, name="conv")(image))
    plain = keras.Model(image, layers.Conv2D(2, 1, name="out")(y))
    made = equalise.equalise(plain, images)
    for new, old in zip(made.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_refuses_several_inputs():
    one, two = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="two")
    model = keras.Model([one, two], layers.Add()([one, two]))
    with pytest.raises(ValueError, match="one input. Received inputs: one, two"):
        equalise.equalise(model, [np.zeros((8, 8, 3), "uint8")])


@pytest.mark.export
def test_int8_file_is_closer(model, even, images):
    pytest.importorskip("ai_edge_litert")
    from keras_lightnets.tools import runtime
    from keras_lightnets.tools.export import tflite

    truth = np.asarray(model(images.astype("float32"), training=False)["logits"])
    errors = []
    for source in (model, even):
        content = tflite.convert(source, "int8", "uint8", images)
        file = runtime.TFLiteModel(content, 1)
        found = np.concatenate([file.run(x[None])[0] for x in images])
        errors.append(np.abs(found - truth).mean())
    assert errors[1] < 0.5 * errors[0]
    graph = bridge.to_graph(even)
    assert graph.outputs.keys() == {"logits"}
