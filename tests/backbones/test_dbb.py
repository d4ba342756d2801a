"""DBB: the deployed form is a plain ResNet or MobileNet; the block elsewhere."""

import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost, layers
from keras_lightnets.tools.fuse import fuse, plan

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import contracts  # noqa: E402

# Parameters of the authors' networks as trained. Multiply-adds are not compared:
# here the border is padded in front of 1x1 convolutions, which compute it too.
TRAINED = {
    "dbb_resnet18": 26288296,
    "dbb_resnet50": 40684456,
    "dbb_mobilenet": 4372183,
}
# What the deployed form must be, but for biases in the place of normalisations.
PLAIN = {
    "dbb_resnet18": "resnet18",
    "dbb_resnet50": "resnet50",
    "dbb_mobilenet": "mobilenet_v1",
}
# Blocks: all 3x3 convolutions, of a MobileNet the stem's too.
BLOCKS = {"dbb_resnet18": 16, "dbb_resnet50": 16, "dbb_mobilenet": 14}


def kernels(model):
    """Return the shapes of all kernels, sorted."""
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
    found = [layer for layer in model.layers if isinstance(layer, kinds)]
    return sorted(tuple(layer.kernel.shape) for layer in found)


@pytest.mark.full
@pytest.mark.parametrize("name", ["dbb_mobilenet", "dbb_resnet18", "dbb_resnet50"])
def test_deployed_form(name):
    """In double precision, so that equal means equal."""
    spec = keras_lightnets.get_spec(name)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        options = {"input_shape": (64, 64, 3), "classifier_activation": None}
        model = contracts.build(spec, **options)
    finally:
        keras.config.set_dtype_policy(policy)
    assert cost.total(model).params == TRAINED[name]
    contracts.seeded_values(model)
    merged = plan(model)
    assert sum(f.branches > 1 for f in merged.fused) == BLOCKS[name]
    assert merged.kept == ()
    deployed = fuse(model)
    x = contracts.images(count=1)
    expected, found = (np.asarray(m(x, training=False)) for m in (model, deployed))
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    plain = keras_lightnets.create_model(PLAIN[name], weights=None, **options)
    assert kernels(deployed) == kernels(plain)
    assert cost.total(deployed).madds == cost.total(plain).madds


def build_block(channels, filters, kernel, side=9, **sizes):
    spec = keras_lightnets.get_spec("dbb_resnet18")
    image = keras.Input((side, side, channels))
    x = layers.diverse_branches(image, filters, kernel, spec, "stage1_block1", **sizes)
    model = keras.Model(image, x)
    contracts.seeded_values(model)
    return model


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "sizes"),
    [
        (4, 6, 3, {}),
        (4, 4, 5, {"stride": 2}),
        (4, 8, 3, {"stride": 2, "groups": 2}),
        (4, 4, 3, {"groups": 4}),
        (4, 4, 5, {"stride": 2, "groups": 4}),
    ],
)
def test_one_convolution_is_left_of_a_block(channels, filters, kernel, sizes):
    model = build_block(channels, filters, kernel, **sizes)
    deployed = fuse(model)
    kinds = [type(layer).__name__ for layer in deployed.layers]
    assert len([kind for kind in kinds if "Conv2D" in kind]) == 1
    assert not {"Add", "BatchNormalization", "AveragePooling2D"} & set(kinds)
    x = np.random.default_rng(0).normal(size=(2, 9, 9, channels)).astype("float32")
    expected, found = (np.asarray(m(x, training=False)) for m in (model, deployed))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_dilated_block_computes_the_dense_one_on_every_second_cell():
    dense, dilated = build_block(4, 4, 3, 7), build_block(4, 4, 3, 14, dilation=2)
    x = np.random.default_rng(0).normal(size=(1, 14, 14, 4)).astype("float32")
    found = np.asarray(dilated(x, training=False))[:, ::2, ::2]
    expected = np.asarray(dense(x[:, ::2, ::2], training=False))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_series_starts_as_the_identity():
    """Its first kernel is learned as a difference, as in the authors' code."""
    spec = keras_lightnets.get_spec("dbb_resnet18")
    image = keras.Input((5, 5, 4))
    model = keras.Model(
        image, layers.diverse_branches(image, 4, 3, spec, "stage1_block1")
    )
    name = "stage1_block1_series_first_add"
    first = keras.Model(image, model.get_layer(name).output)
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 4)).astype("float32")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_array_equal(first(x), padded)


def test_refuses_strides_that_branches_see_differently():
    spec = keras_lightnets.get_spec("dbb_resnet18").replace(padding="same")
    with pytest.raises(ValueError, match="symmetric.*Received: padding='same'"):
        layers.diverse_branches(keras.Input((8, 8, 4)), 4, 3, spec, "a", stride=2)


_PARTS = {
    "origin_conv": "dbb_origin.conv",
    "origin_bn": "dbb_origin.bn",
    "point_conv": "dbb_1x1.conv",
    "point_bn": "dbb_1x1.bn",
    "mean_first_conv": "dbb_avg.conv",
    "mean_first_bn": "dbb_avg.bn.bn",
    "mean_bn": "dbb_avg.avgbn",
    "series_first_bn": "dbb_1x1_kxk.bn1.bn",
    "series_conv": "dbb_1x1_kxk.conv2",
    "series_bn": "dbb_1x1_kxk.bn2",
}
_STATISTICS = ("mean", "var")
_ROLES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_training_step_is_the_authors(number):
    """Outputs, gradients and moving statistics: the border counts in none of these."""
    path = pathlib.Path(__file__).resolve().parents[1] / "parity" / "dbb_training.npz"
    with np.load(path) as file:
        channels, filters, kernel, stride, groups = map(int, file["cases"][number])
        mark = f"{number}/"
        stored = {k.removeprefix(mark): file[k] for k in file if k.startswith(mark)}
    spec = keras_lightnets.get_spec("dbb_resnet18")
    image = keras.Input(stored["x"].shape[1:])
    y = layers.diverse_branches(
        image, filters, kernel, spec, "a", stride=stride, groups=groups
    )
    model = keras.Model(image, y)
    first = "conv1" if groups == channels else "idconv1"
    names = {**_PARTS, "series_first_conv": f"dbb_1x1_kxk.{first}"}
    used = [layer for layer in model.layers if layer.weights]
    for layer in used:
        theirs = f"before/{names[layer.name.removeprefix('a_')]}"
        for variable in layer.weights:
            value = stored[f"{theirs}.{_ROLES.get(variable.name, 'weight')}"]
            if value.ndim == 4:
                value = value.transpose(2, 3, 1, 0).reshape(variable.shape)
            variable.assign(value)
    assert len(used) == (7 if groups == channels else 11)

    import tensorflow as tf

    x = tf.constant(stored["x"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = model(x, training=True)
        loss = tf.reduce_sum(out * stored["factors"])
    grad = tape.gradient(loss, x)
    for found, expected in ((out, stored["out"]), (grad, stored["grad"])):
        apart = np.abs(np.asarray(found) - expected).max()
        # The border is what the moving variance says, of which see below.
        assert apart <= 1e-3 * np.abs(expected).max()
    for layer in used:
        if not layer.name.endswith("_bn"):
            continue
        theirs = names[layer.name.removeprefix("a_")]
        mean, variance = (stored[f"after/{theirs}.running_{r}"] for r in _STATISTICS)
        kept = 0.9 * stored[f"before/{theirs}.running_var"]
        # Torch averages the unbiased variance, Keras the biased one.
        inside = "_first_" in layer.name
        count = (stored["x"] if inside else stored["out"])[..., 0].size
        variance = kept + (variance - kept) * (count - 1) / count
        # What the border is said to be follows from it.
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-3, atol=3e-4)
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=2e-3)


def test_without_the_border_the_statistics_would_differ():
    layer = layers.BatchNormalization(border=1, momentum=0.0)
    x = np.zeros((2, 4, 4, 3), "float32")
    x[:, 1:-1, 1:-1] = np.random.default_rng(0).normal(2.0, 1.0, (2, 2, 2, 3))
    y = np.asarray(layer(x, training=True))
    inner = x[:, 1:-1, 1:-1]
    np.testing.assert_allclose(layer.moving_mean, inner.mean((0, 1, 2)), rtol=1e-5)
    # What training gives at the border is what it gives later.
    np.testing.assert_allclose(
        y[:, 0], np.asarray(layer(x, training=False))[:, 0], rtol=1e-5
    )
    again = layers.BatchNormalization.from_config(layer.get_config())
    assert again.border == 1
    assert "border" not in layers.BatchNormalization().get_config()
