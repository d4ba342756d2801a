"""Models without residual connections compute the same as those that had them."""

import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_lightnets
from keras_lightnets.layers import BatchNormalization, Conv2D
from keras_lightnets.tools.fuse import reserve

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import contracts  # noqa: E402


@pytest.fixture(autouse=True)
def double_precision():
    """Equal means equal: rounding is 1e-16 of a value, not 1e-7."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(policy)


def randomise(model, seed):
    random = np.random.default_rng(seed)
    for variable in model.weights:
        value = random.normal(0, 0.5, variable.shape)
        if variable.name in ("gamma", "moving_variance"):
            value = random.uniform(0.5, 1.5, variable.shape)
        variable.assign(value)


def check(model, scale=4.0, additions=0):
    """Merge, compare, count the additions left; return the new model."""
    merged = reserve.merge_residuals(model)
    x = np.random.default_rng(1).normal(0, scale, (2, *model.input.shape[1:]))
    expected, found = (np.asarray(m(x, training=False)) for m in (model, merged))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    assert kinds(merged).count("Add") == additions
    return merged


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


class Blocks:
    """Draws a stack of residual blocks as ResNets and MobileNets have them."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.act = str(self.random.choice(["relu", "relu6", "prelu", "hard_swish"]))
        self.end = bool(self.random.integers(2))  # an activation behind the sum

    def activate(self, x):
        if self.act == "prelu":
            return layers.PReLU(shared_axes=[1, 2])(x)
        if self.act == "relu6":
            return layers.ReLU(max_value=6.0)(x)
        return (
            layers.ReLU()(x) if self.act == "relu" else layers.Activation(self.act)(x)
        )

    def conv(self, x, filters, size, stride=1, groups=1):
        if stride > 1 and size > 1 and self.random.integers(2):
            x, padding = layers.ZeroPadding2D(size // 2)(x), "valid"
        else:
            padding = "same"
        options = {"strides": stride, "padding": padding, "use_bias": False}
        if groups == x.shape[-1] == filters:
            x = layers.DepthwiseConv2D(size, **options)(x)
        else:
            x = Conv2D(filters, size, groups=groups, **options)(x)
        return BatchNormalization()(x)

    def block(self, x):
        channels = x.shape[-1]
        kind = self.random.choice(["basic", "bottleneck", "inverted", "grouped"])
        stride = int(self.random.choice([1, 1, 2]))
        out = int(self.random.choice([channels, channels + 2]))
        wide, size = 2 * channels, int(self.random.choice([3, 5]))
        groups = {"inverted": wide, "grouped": 2}.get(str(kind), 1)
        if kind == "basic":
            y = self.activate(self.conv(x, channels, size, stride))
            y = self.conv(y, out, 3)
        else:
            y = self.activate(self.conv(x, wide, 1))
            y = self.activate(self.conv(y, wide, size, stride, groups))
            y = self.conv(y, out, 1)
        if stride > 1 or out != channels:
            x = self.conv(x, out, 1, stride)
        x = layers.Add()([x, y] if self.random.integers(2) else [y, x])
        return self.activate(x) if self.end else x


@pytest.mark.parametrize("seed", range(8))
def test_random_residual_networks(seed):
    draw = Blocks(seed)
    # Symmetric padding of a strided kernel asks for odd sides, as does "same".
    image = x = keras.Input((9, 13, 4))
    for _ in range(3):
        x = draw.block(x)
    model = keras.Model(image, x)
    randomise(model, seed)
    merged = check(model)
    assert "BatchNormalization" not in kinds(merged)
    found = reserve.plan(model)
    assert (len(found.fused), found.kept) == (3, ())


def inverted(act):
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 1, name="expand_conv")(image)
    x = layers.ReLU(max_value=act, name="expand_act")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="dw_conv")(x)
    x = layers.ReLU(max_value=act, name="dw_act")(x)
    x = layers.Conv2D(4, 1, name="project_conv")(x)
    model = keras.Model(image, layers.Add(name="add")([image, x]))
    randomise(model, 0)
    return model


def test_relu6_caps_all_but_the_carried_channels():
    """The input is far below 0 and above 6, and so is what is capped."""
    model = inverted(6.0)
    merged = check(model, scale=50.0)
    x = np.random.default_rng(2).normal(0, 50.0, (1, 8, 8, 4)).astype("float32")
    part = keras.Model(merged.input, merged.get_layer("dw_concat").output)
    carried, others = np.split(np.asarray(part(x)), [4], axis=-1)
    np.testing.assert_array_equal(carried, x)
    assert carried.min() < 0 and carried.max() > 6
    assert others.min() == 0 and others.max() == 6


def test_a_plain_relu_becomes_a_prelu_with_slopes():
    merged = check(inverted(None))
    assert kinds(merged).count("PReLU") == 2
    slopes = np.asarray(merged.get_layer("dw_act").alpha).reshape(-1)
    np.testing.assert_array_equal(slopes, [1] * 4 + [0] * 8)
    assert merged.get_layer("dw_conv").output.shape[-1] == 12


@pytest.mark.parametrize(
    ("name", "side", "rows"),
    [
        ("resnet18", 32, 2),
        ("mobilenet_v2_035", 32, 3),
        pytest.param("resnet_cifar_20_projection", 32, 3, marks=pytest.mark.full),
        pytest.param("resnet_cifar_20", 32, 3, marks=pytest.mark.full),
        pytest.param("resnet50", 64, 4, marks=pytest.mark.full),
        pytest.param("mobilenet_v2_035", 64, 7, marks=pytest.mark.full),
        pytest.param("rmnext41_5x16", 64, 4, marks=pytest.mark.full),
        pytest.param("dbb_resnet18", 64, 4, marks=pytest.mark.full),
    ],
)
def test_networks(name, side, rows):
    spec = keras_lightnets.get_spec(name)
    model = keras_lightnets.create_model(
        name,
        weights=None,
        include_top=False,
        input_shape=(side, side, 3),
        rows=spec.rows[:rows],
    )
    contracts.seeded_values(model)
    merged = check(model, scale=100.0)
    if "resnet" in name:  # one map after the other, activated by ReLU alone
        assert not {"PReLU", "Concatenate", "Cropping2D"} & set(kinds(merged))


def test_what_is_no_residual_branch_stays_and_is_reported():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="a_conv")(image)
    x = layers.ReLU()(x)
    y = layers.MaxPooling2D(3, 1, padding="same", name="a_pool")(x)
    y = layers.Conv2D(4, 1, name="b_conv")(y)
    x = layers.Add(name="pooled_add")([x, y])
    y = layers.Conv2D(4, 3, padding="same", groups=2, name="c_conv")(x)
    y = layers.Conv2D(4, 1, name="d_conv")(layers.ReLU()(y))
    x = layers.Add(name="grouped_add")([x, y])
    model = keras.Model(image, x)
    randomise(model, 0)
    check(model, additions=2)
    found = reserve.plan(model)
    assert found.fused == ()
    assert {k.name: k.reason for k in found.kept} == {
        "pooled_add": "no summand is a chain of convolutions of the other's input",
        "grouped_add": "its first convolution has groups",
    }


def test_tensors_that_are_read_elsewhere_keep_their_branch():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same")(image)
    inner = layers.ReLU(name="inner_act")(x)
    y = layers.Conv2D(4, 3, padding="same")(inner)
    model = keras.Model(image, [layers.Add(name="out_add")([image, y]), inner])
    randomise(model, 0)
    assert [k.name for k in reserve.plan(model).kept] == ["out_add"]
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4))
    pairs = zip(model(x), reserve.merge_residuals(model)(x), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_network_that_was_merged_saves_and_loads(tmp_path):
    model = inverted(6.0)
    merged = reserve.merge_residuals(model)
    merged.save(tmp_path / "merged.keras")
    again = keras.saving.load_model(tmp_path / "merged.keras")
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4))
    np.testing.assert_array_equal(again(x), merged(x))
