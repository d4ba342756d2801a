"""The bridge: equal outputs, named failures, weights back."""

import os

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_lightnets

pytest.importorskip("tf_keras")

from quant_models import classifier, detector, exactly, pictures, settle

from keras_lightnets.layers import BlurPool, channels, weightnet
from keras_lightnets.tools.quantize import bridge


def largest_difference(model, low=0, high=255, values=None):
    """Largest |difference| relative to the largest |output|, over all outputs."""
    shapes = [(2, *tensor.shape[1:]) for tensor in model.inputs]
    rng = np.random.default_rng(1)
    if values is None:
        values = [rng.uniform(low, high, shape).astype("float32") for shape in shapes]
        values = values[0] if len(values) == 1 else values
    twin = bridge.to_tf_keras(model)
    want = model(values, training=False)
    got = twin.model(values, training=False)
    assert type(want) is type(got) or not isinstance(want, dict)
    if isinstance(want, dict):
        assert set(want) == set(got)
        got = [got[key] for key in want]
        want = list(want.values())
    worst = 0.0
    for w, g in zip(keras.tree.flatten(want), keras.tree.flatten(got), strict=True):
        assert w.shape == g.shape
        assert np.abs(w).max() > 0
        worst = max(worst, float(np.abs(w - g).max() / np.abs(w).max()))
    return worst


def per_sample(x, filters, **options):
    summary = layers.GlobalAveragePooling2D(keepdims=True)(x)
    conv = weightnet.Generated(filters, kernel=3, groups=1)
    return weightnet.weightnet_conv(x, summary, conv, "own", **options)


def test_detector_with_every_layer_of_our_networks():
    assert largest_difference(settle(detector())) < 1e-5


def test_separate_means_per_channel():
    assert largest_difference(settle(detector(mean=[124.0, 116.0, 104.0]))) < 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.Conv2D(4, 3, activation="hard_sigmoid")(x),
        lambda x: layers.Conv2D(4, 3, dilation_rate=2, activation="hard_silu")(x),
        lambda x: layers.Conv2DTranspose(4, 3, 2, padding="same")(x),
        lambda x: layers.SeparableConv2D(4, 3, depth_multiplier=2)(x),
        lambda x: layers.DepthwiseConv2D(3, 2, depth_multiplier=2)(x),
        lambda x: layers.LeakyReLU(0.3)(layers.Conv2D(4, 1)(x)),
        lambda x: layers.PReLU("he_normal", shared_axes=[1, 2])(layers.Conv2D(4, 1)(x)),
        lambda x: layers.Dense(3, activation="tanh")(layers.Flatten()(x)),
        lambda x: layers.Softmax()(layers.GlobalMaxPooling2D()(x)),
        lambda x: layers.Average()([x, layers.AveragePooling2D(3, 1, "same")(x), x]),
        lambda x: layers.Subtract()([x, layers.ZeroPadding2D(1)(x)[:, 2:, 2:]]),
        lambda x: layers.Resizing(5, 7, interpolation="bilinear")(x),
        lambda x: layers.AdaptiveAveragePooling2D((4, 5))(x),
        lambda x: layers.AdaptiveAveragePooling2D((3, 11))(x),
        lambda x: layers.AdaptiveAveragePooling2D((18, 22))(x),
        lambda x: layers.AdaptiveAveragePooling2D(6)(layers.AveragePooling2D(4)(x)),
        lambda x: BlurPool()(x),
        lambda x: BlurPool()(layers.Cropping2D(((0, 1), (0, 1)))(x)),
        lambda x: per_sample(x, 4, stride=2),
        lambda x: per_sample(x, None, dilation=2),
        lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x),
        lambda x: layers.Permute((2, 1, 3))(layers.Cropping2D(1)(x)),
        lambda x: channels.channel_slice(x, 1, 3, "a"),
        lambda x: layers.Conv2D(2, 3)(channels.channel_pad(x, 1, 2, "a")),
        lambda x: layers.Activation("gelu")(layers.Rescaling(0.01, -1)(x)),
        lambda x: layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 6])(x),
        lambda x: layers.BatchNormalization(scale=False, center=False)(x),
    ],
)
def test_layer(make):
    image = keras.Input((9, 11, 3))
    keras.utils.set_random_seed(0)
    assert largest_difference(keras.Model(image, make(image)), -3, 9) < 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x * ops.relu6(x + 3.0) * (1.0 / 6.0),
        lambda x: (2.0 - x) / 3.0 - x,
        lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1),
        lambda x: ops.reshape(
            ops.transpose(ops.reshape(x, (-1, 6, 6, 2, 2)), (0, 1, 2, 4, 3)),
            (-1, 6, 6, 4),
        ),
        lambda x: ops.mean(x, axis=(1, 2), keepdims=True) * x,
        lambda x: ops.clip(x, 0, 5) + ops.maximum(-x, 0.0),
        lambda x: ops.image.resize(
            ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0))), (4, 4)
        ),
        lambda x: ops.max(x, axis=(1, 2)) + ops.squeeze(x[:, :1, 1:2], (1, 2)),
        lambda x: ops.average_pool(x, 2) + ops.max_pool(x, 2),
        lambda x: ops.swapaxes(ops.silu(x), 1, 2),
    ],
)
def test_operation(make):
    image = keras.Input((6, 6, 4))
    assert largest_difference(keras.Model(image, make(image)), -4, 9) < 1e-5


def test_shared_layer_and_nested_model_and_several_inputs():
    inner_in = keras.Input((8, 8, 3))
    inner = keras.Model(inner_in, layers.Conv2D(4, 3, padding="same")(inner_in))
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    conv = layers.Conv2D(4, 1, name="shared")
    x = conv(inner(a))
    y = conv(inner(b))
    model = keras.Model([a, b], [layers.Add()([x, y]), y])
    assert largest_difference(model) < 1e-5
    twin = bridge.to_tf_keras(model)
    assert twin.model.count_params() == model.count_params()


def test_sequential():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3)])
    assert largest_difference(model) < 1e-5


def test_normalisation_becomes_the_fused_layer_and_trains():
    import tensorflow as tf

    twin = bridge.to_tf_keras(classifier())
    names = [type(layer).__name__ for layer in twin.model.layers]
    assert names.count("BatchNormalization") == 2
    function = tf.function(lambda x: twin.model(x, training=True))
    graph = function.get_concrete_function(tf.TensorSpec((2, 32, 32, 3))).graph
    kinds = [node.op for node in graph.as_graph_def().node]
    assert kinds.count("FusedBatchNormV3") == 2


def test_unsupported_layer_is_named_with_its_path():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="first")(image)
    model = keras.Model(image, layers.LayerNormalization(name="odd")(x))
    with pytest.raises(bridge.UnsupportedLayerError) as caught:
        bridge.to_tf_keras(model)
    text = str(caught.value)
    assert "'odd'" in text
    assert "LayerNormalization" in text
    assert "image -> first -> odd" in text


def test_maps_with_channels_first_are_refused():
    image = keras.Input((8, 8, 3), name="image")
    pool = layers.AdaptiveAveragePooling2D(2, data_format="channels_first", name="odd")
    with pytest.raises(bridge.UnsupportedLayerError, match="'odd'.*channels_last"):
        bridge.to_tf_keras(keras.Model(image, pool(image)))


def test_unsupported_operation_and_activation_are_named():
    image = keras.Input((8, 8, 3), name="image")
    with pytest.raises(bridge.UnsupportedLayerError, match="Operation .* Cos"):
        bridge.to_tf_keras(keras.Model(image, ops.cos(image)))
    x = layers.Activation("softsign", name="soft")(image)
    with pytest.raises(
        bridge.UnsupportedLayerError, match="softsign.*\n.*image -> soft"
    ):
        bridge.to_tf_keras(keras.Model(image, x))


def test_only_functional_models():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="functional"):
        bridge.to_tf_keras(Own())


def test_registered_lowering():
    @keras.saving.register_keras_serializable("test_bridge")
    class Shift(layers.Layer):
        def call(self, x):
            return x + 2.0

    image = keras.Input((4, 4, 3))
    model = keras.Model(image, Shift(name="shift")(image))
    bridge.register(
        "Shift",
        lambda low, layer, args, _: low.constant("add_const", "s", args[0], 2.0),
    )
    assert largest_difference(model) < 1e-6


def test_weights_copy_back():
    model, other = settle(detector()), settle(detector(), seed=3)
    bridge.copy_back(bridge.to_tf_keras(model), other)
    x = pictures(2).astype("float32")
    want, got = model(x, training=False), other(x, training=False)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-6, atol=1e-6)


def test_copy_back_to_another_network_changes_nothing():
    model, other = settle(detector()), classifier()
    before = [np.array(w) for w in other.get_weights()]
    with pytest.raises(ValueError, match="no layer|has shape"):
        bridge.copy_back(bridge.to_tf_keras(model), other)
    for old, new in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_legacy_variable_is_left_alone():
    bridge.to_tf_keras(classifier())
    assert "TF_USE_LEGACY_KERAS" not in os.environ


@pytest.mark.export
def test_our_network():
    model = keras_lightnets.create_model(
        "mobilenet_v3_small_050",
        weights=None,
        input_shape=(64, 64, 3),
        classifier_activation=None,
    )
    model = settle(model)
    # Rounding of float32, which depends on the processor's kernels.
    assert largest_difference(model) < 1e-4
    assert exactly(model, seen(64)) < 1e-6


def seen(size):
    """Pictures like those that `settle` took the statistics from.

    On others, such as noise, a deep untrained network leaves the range of its
    statistics and magnifies the last bit of float32 to percents.
    """
    return pictures(2, size, seed=5).astype("float32")


@pytest.mark.export
def test_every_backbone_with_ssdlite():
    from keras_lightnets._registry import family_of
    from keras_lightnets.heads import attach, pick_endpoints
    from keras_lightnets.heads.ssdlite import SSDLiteConfig

    first = {}
    for name in keras_lightnets.list_models():
        first.setdefault(family_of(name), name)
    for name in first.values():
        spec = keras_lightnets.get_spec(name)
        levels = [level.name for level in spec.levels]
        if "c5" not in levels or not spec.exact_strides:
            continue
        backbone = keras_lightnets.create_model(
            name,
            weights=None,
            endpoints=pick_endpoints("ssdlite", levels),
            input_shape=(96, 96, 3),
        )
        config = SSDLiteConfig(classes=4, image_size=96)
        model = settle(attach(backbone, "ssdlite", config))
        assert largest_difference(model, values=seen(96)) < 5e-5, name
        assert exactly(model, seen(96)) < 1e-5, name


@pytest.mark.export
@pytest.mark.parametrize(
    "name", ["MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"]
)
def test_keras_applications(name):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(96, 96, 3), classes=10, classifier_activation=None
    )
    model = settle(model)
    # Fused against unfused normalisation: their last bits differ, and sixty random
    # layers magnify that.
    assert largest_difference(model, values=seen(96)) < 5e-5
    assert exactly(model, seen(96)) < 1e-6
