"""Fused models compute the same: random graphs, each rule, what stays and why."""

import dataclasses
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import keras_lightnets
from keras_lightnets.__main__ import app
from keras_lightnets.layers import BatchNormalization
from keras_lightnets.tools.fuse import fuse, merge_branches, plan
from keras_lightnets.tools.fuse._operator import (
    InexactError,
    Operator,
    compose,
    composed_size,
    merge,
    regroup,
)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import contracts  # noqa: E402

WORK = ("Conv2D", "DepthwiseConv2D", "Dense", "BatchNormalization", "Add")


def randomise(model, seed=0):
    """Give every weight a random value, variances a positive one."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        for variable in layer.weights:
            value = random.normal(0, 1 / np.sqrt(9), variable.shape)
            if variable.name in ("gamma", "moving_variance"):
                value = random.uniform(0.5, 1.5, variable.shape)
            variable.assign(value)
    return model


def kinds(model):
    """Return the classes of a model's layers that fusing is about."""
    names = [type(layer).__name__ for layer in model.layers]
    return [name for name in names if name in WORK]


def outputs(model, size=None, seed=1):
    shape = size or model.input.shape[1:]
    x = np.random.default_rng(seed).normal(size=(2, *shape)).astype("float32")
    found = model(x, training=False)
    return [np.asarray(t) for t in keras.tree.flatten(found)]


def check_equal(model, size=None, tolerance=1e-5):
    """Fuse a model, compare all outputs, return the fused one."""
    randomise(model)
    fused = fuse(model)
    for ours, theirs in zip(outputs(fused, size), outputs(model, size), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
    return fused


class Branches:
    """Draws parallel linear branches of one input, as the papers have them."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.stride = int(self.random.choice([1, 1, 2]))
        self.kernel = int(self.random.choice([3, 5]))
        self.bias = bool(self.random.integers(2))

    def norm(self, x):
        kind = self.random.choice([BatchNormalization, layers.BatchNormalization])
        return kind(epsilon=1e-3)(x)

    def conv(self, x, size, depthwise, stride=None, padding="same"):
        stride = stride or self.stride
        options = {"strides": stride, "padding": padding, "use_bias": self.bias}
        if depthwise:
            return layers.DepthwiseConv2D(size, **options)(x)
        return layers.Conv2D(x.shape[-1], size, **options)(x)

    def padded(self, x, channels_first):
        """1x1, then the large kernel on a border that the 1x1 has made too."""
        k = self.kernel
        x = layers.ZeroPadding2D(k // 2)(x) if self.stride == 1 else x
        x = self.norm(self.conv(x, 1, channels_first, 1))
        padding = "valid" if self.stride == 1 else "same"
        if self.stride == 1:
            return self.norm(self.conv(x, k, False, 1, padding))
        return self.norm(self.conv(x, 1, False))

    def pooled(self, x):
        """1x1, then the mean of windows; DBB's third branch."""
        k = self.kernel
        if self.stride > 1:
            return self.norm(self.conv(x, 1, False))
        x = layers.ZeroPadding2D(k // 2)(x)
        x = self.norm(self.conv(x, 1, False, 1))
        return self.norm(layers.AveragePooling2D(k, 1)(x))

    def block(self, x, depthwise):
        k = self.kernel
        makers = [
            lambda: self.norm(self.conv(x, 1, depthwise)),
            lambda: self.norm(self.conv(x, (1, k), depthwise)),
            lambda: self.norm(self.conv(x, (k, 1), depthwise)),
            lambda: self.norm(self.conv(x, 3, depthwise)),
        ]
        if self.stride == 1:
            makers += [lambda: x, lambda: self.norm(x)]
        if not depthwise:
            makers += [lambda: self.padded(x, False), lambda: self.pooled(x)]
            makers += [lambda: self.norm(self.conv(x, k, True))]
        chosen = self.random.permutation(len(makers))[: self.random.integers(1, 5)]
        terms = [makers[i]() for i in chosen]
        terms.insert(
            int(self.random.integers(len(terms) + 1)),
            self.norm(self.conv(x, k, depthwise)),
        )
        if len(terms) > 2 and self.random.integers(2):  # as nested additions
            terms = [layers.Add()(terms[:2]), *terms[2:]]
        return layers.ReLU()(layers.Add()(terms))


@pytest.mark.parametrize("seed", range(8))
def test_random_branches_become_one_convolution(seed):
    draw = np.random.default_rng(seed)
    channels = int(draw.integers(2, 5))
    inputs = x = keras.Input((*(int(v) for v in draw.integers(7, 12, 2)), channels))
    blocks = [Branches(100 * seed + i) for i in range(3)]
    flags = [bool(draw.integers(2)) for _ in blocks]
    for block, depthwise in zip(blocks, flags, strict=True):
        x = block.block(x, depthwise)
    fused = check_equal(keras.Model(inputs, x))
    found = {True: "DepthwiseConv2D", False: "Conv2D"}
    assert kinds(fused) == [found[flag] for flag in flags]
    assert sum(type(layer).__name__ == "ReLU" for layer in fused.layers) == 3


def convolve(operator, x):
    """Apply an operator to (height, width, channels) by its definition."""
    (top, bottom), (left, right) = operator.pads
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    reach = [(k - 1) * d for k, d in zip(operator.size, operator.dilation, strict=True)]
    rows, cols = (range(0, x.shape[a] - reach[a], operator.strides[a]) for a in (0, 1))
    d, kernel = operator.dilation, regroup(operator, 1).kernel
    out = np.empty((len(rows), len(cols), operator.outputs))
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            window = x[row : row + reach[0] + 1 : d[0], col : col + reach[1] + 1 : d[1]]
            out[i, j] = np.einsum("hwi,hwio->o", window, kernel) + operator.bias
    return out


def draw_operator(random, channels, outputs=0):
    groups = int(random.choice([1, 2, channels]))
    size = tuple(int(v) for v in random.integers(1, 4, 2))
    outputs = outputs or groups * int(random.integers(1, 4))
    return Operator(
        random.normal(size=(*size, channels // groups, outputs)),
        random.normal(size=outputs) * random.integers(2),
        groups,
        tuple(int(v) for v in random.choice([1, 1, 2], 2)),
        (1, 1) if random.integers(3) else (2, 2),
        tuple(tuple(int(v) for v in random.choice([0, 0, 1], 2)) for _ in "hw"),
    )


def test_composed_operators_do_both():
    """Of 300 random pairs all that compose are exact; the others say why not."""
    random, done, reasons_ = np.random.default_rng(0), 0, set()
    for _ in range(300):
        first = draw_operator(random, 4)
        channels = first.outputs
        second = draw_operator(random, channels) if channels % 2 == 0 else None
        if second is None:
            continue
        x = random.normal(size=(13, 12, 4))
        try:
            both = compose(first, second)
        except InexactError as error:
            reasons_.add(str(error))
            continue
        expected = convolve(second, convolve(first, x))
        found = convolve(both, x)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert both.kernel.size == composed_size(first, second)
        done += 1
    assert done > 20
    assert {text.split()[0] for text in reasons_} == {"what", "the", "one"}


def test_merged_operators_add_up():
    """Whatever the padding of either side, where the outputs have one size."""
    random, done = np.random.default_rng(1), 0
    for _ in range(1000):
        first, second = (draw_operator(random, 4, 4) for _ in range(2))
        second = dataclasses.replace(second, strides=first.strides)
        x = random.normal(size=(9, 8, 4))
        parts = [convolve(o, x) for o in (first, second)]
        if parts[0].shape != parts[1].shape:
            continue
        try:
            both = merge([first, second], (9, 8))
        except InexactError:
            continue
        np.testing.assert_allclose(convolve(both, x), sum(parts), atol=1e-12)
        done += 1
    assert done > 20


@pytest.mark.parametrize("seed", range(3))
def test_the_algebra_is_exact(seed):
    """In double precision nothing but rounding of the sixteenth digit is left."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        inputs = keras.Input((9, 10, 3))
        x = inputs
        for block in (Branches(50 + seed), Branches(60 + seed)):
            block.norm = lambda t: layers.BatchNormalization(epsilon=1e-3)(t)
            x = block.block(x, False)
        fused = check_equal(keras.Model(inputs, x), tolerance=1e-13)
    finally:
        keras.config.set_dtype_policy(policy)
    assert kinds(fused) == ["Conv2D", "Conv2D"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_around_a_convolution_fold(groups, bias):
    inputs = keras.Input((6, 6, 4))
    x = layers.BatchNormalization()(inputs)
    options = {"groups": groups, "use_bias": bias, "activation": "relu"}
    x = layers.Conv2D(6, 1, **options)(x)
    x = BatchNormalization()(layers.Conv2D(4, 3, use_bias=bias, name="stem_conv")(x))
    fused = check_equal(keras.Model(inputs, x))
    assert kinds(fused) == ["Conv2D", "Conv2D"]
    assert fused.layers[-1].name == "stem_conv"


def test_dense_layers_and_dilation_fold():
    inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(4, 3, padding="same", dilation_rate=2, use_bias=False)(inputs)
    y = layers.Conv2D(4, 1, use_bias=False)(inputs)
    x = layers.Add()([layers.BatchNormalization()(x), y])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    x = layers.BatchNormalization()(layers.Dense(5)(layers.BatchNormalization()(x)))
    fused = check_equal(keras.Model(inputs, x))
    assert kinds(fused) == ["Conv2D", "Dense"]
    assert fused.layers[1].dilation_rate == (2, 2)


def test_a_series_becomes_one_where_that_is_no_more_work():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(16, 1, use_bias=False)(inputs)
    x = layers.Conv2D(6, 3, padding="same", name="a_conv")(x)  # 4 -> 6 is less
    x = layers.Conv2D(2, 1, name="b_conv")(x)
    wide = layers.Conv2D(12, 1, name="c_conv")(x)  # 6 -> 12 by way of 2 is less
    fused = check_equal(keras.Model(inputs, wide))
    assert [layer.name for layer in fused.layers[1:]] == ["a_conv", "c_conv"]
    assert fused.get_layer("a_conv").kernel.shape == (3, 3, 4, 2)
    assert plan(keras.Model(inputs, wide)).kept == ()


def reasons(outputs_, inputs):
    model = randomise(keras.Model(inputs, outputs_))
    before, after = outputs(model, (6, 6, 4)), outputs(fuse(model), (6, 6, 4))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())
    return {k.name: k.reason for k in plan(model).kept}


def test_what_is_inexact_stays_and_is_reported():
    inputs = keras.Input((6, 6, 4))
    x = layers.BatchNormalization(name="early_bn")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="a_conv")(x)
    found = reasons(x, inputs)
    assert "zeros" in found["a_conv"]
    assert "behind the input" in found["early_bn"]

    x = layers.BatchNormalization(name="a_bn")(layers.ReLU()(inputs))
    assert "ReLU" in reasons(x, inputs)["a_bn"]

    x = layers.Conv2D(4, 1, activation="relu", name="a_conv")(inputs)
    x = layers.BatchNormalization(name="a_bn")(x)
    assert "activation" in reasons(x, inputs)["a_bn"]

    x = layers.Conv2D(4, 1, name="a_conv")(inputs)
    y = layers.BatchNormalization(name="a_bn")(x)
    assert "also read by" in reasons([x, y], inputs)["a_bn"]

    shared = layers.BatchNormalization(name="a_bn")
    a, b = (layers.Conv2D(4, 1, name=f"{n}_conv")(inputs) for n in "ab")
    found = reasons(layers.Add()([shared(a), shared(b)]), inputs)
    assert "several times" in found["a_bn"]


def test_statistics_of_the_batch_do_not_fold():
    inputs = keras.Input((6, 6, 4))
    x = layers.BatchNormalization()(layers.Conv2D(4, 1)(inputs), training=True)
    model = randomise(keras.Model(inputs, x))
    fused = fuse(model)
    assert kinds(fused) == ["Conv2D", "BatchNormalization"]
    np.testing.assert_allclose(outputs(fused)[0], outputs(model)[0], atol=1e-5)


def test_padding_gets_a_name_of_its_own():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 1, use_bias=False)(inputs)
    x = layers.ZeroPadding2D(((1, 0), (0, 1)))(x)
    x = layers.Conv2D(4, 2, name="a_conv")(x)
    x = layers.ZeroPadding2D(1, name="a_pad")(layers.ReLU()(x))
    fused = check_equal(keras.Model(inputs, x))
    names = [layer.name for layer in fused.layers[1:]]
    assert names[:2] == ["fused_a_pad", "a_conv"]
    assert names[-1] == "a_pad"


def test_branches_that_would_cost_more_stay_and_are_reported():
    inputs = keras.Input((6, 6, 4))
    wide = layers.DepthwiseConv2D(5, padding="same", name="a_conv")(inputs)
    dense = layers.Conv2D(4, 1, name="b_conv")(inputs)
    x = layers.Add(name="ab_add")([wide, inputs, dense])
    model = randomise(keras.Model(inputs, x))
    fused, found = fuse(model), plan(model)
    assert kinds(fused) == ["DepthwiseConv2D", "Conv2D", "Add"]
    assert [f.branches for f in found.fused] == [2]
    assert "more multiplications" in {k.name: k.reason for k in found.kept}["ab_add"]
    np.testing.assert_allclose(outputs(fused)[0], outputs(model)[0], atol=1e-5)


def test_unknown_sizes():
    """At stride 1 the border is the same for any size; TensorFlow's strided is not."""
    inputs = keras.Input((None, None, 4))
    for stride, expected in ((1, ["Conv2D"]), (2, ["Conv2D", "Conv2D", "Add"])):
        options = {"strides": stride, "padding": "same"}
        x = layers.Conv2D(4, 3, **options, name="a_conv")(inputs)
        y = layers.Conv2D(4, 1, **options, name="b_conv")(inputs)
        model = keras.Model(inputs, layers.Add(name="ab_add")([x, y]))
        assert kinds(check_equal(model, (7, 8, 4))) == expected
    assert "unknown" in plan(model).kept[0].reason
    x = layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(x))
    assert kinds(check_equal(model, (7, 8, 4))) == ["Conv2D"]


def test_operations_and_several_inputs_and_outputs_stay():
    a, b = keras.Input((6, 6, 4), name="a"), keras.Input((6, 6, 4), name="b")
    x = layers.Conv2D(4, 3, padding="same")(a) + layers.Conv2D(4, 1)(a) + b
    left, right = keras.ops.split(x, 2, axis=-1)
    outs = {"left": left, "right": layers.BatchNormalization()(right), "x": x}
    model = randomise(keras.Model({"a": a, "b": b}, outs))
    fused = fuse(model)
    random = np.random.default_rng(3)
    x = {k: random.normal(size=(2, 6, 6, 4)).astype("float32") for k in "ab"}
    before, after = model(x), fused(x)
    assert list(after) == ["left", "right", "x"]
    for key, value in before.items():
        np.testing.assert_allclose(after[key], value, atol=1e-5)
    assert kinds(fused).count("Conv2D") == 1


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2_035", pytest.param("ghostnet_050", marks=pytest.mark.full)],
)
def test_networks_keep_endpoints_and_preprocessing(name, tmp_path):
    model = keras_lightnets.create_model(
        name, weights=None, input_shape=(64, 64, 3), endpoints=("c3", "c5", "logits")
    )
    contracts.seeded_values(model)
    path = tmp_path / "fused.keras"
    fuse(model).save(path)
    fused = keras.saving.load_model(path)
    assert list(fused.output) == ["c3", "c5", "logits"]
    assert fused.layers[1].name == "normalise"
    assert "BatchNormalization" not in kinds(fused)
    assert {layer.name for layer in fused.layers} < {la.name for la in model.layers}
    images = contracts.images()
    found, expected = fused(images, training=False), model(images, training=False)
    for key, value in expected.items():
        apart = np.abs(np.asarray(found[key]) - value).max()
        assert apart <= 1e-5 * np.abs(value).max(), key


def small_model():
    inputs = x = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 3, padding="same", use_bias=False, name="a_conv")(x)
    y = BatchNormalization(name="a_bn")(y)
    x = layers.Add(name="a_add")([x, y, layers.Conv2D(4, 1, name="b_conv")(x)])
    x = layers.ReLU(name="a_act")(x)
    return randomise(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))


def test_command_line(tmp_path):
    small_model().save(tmp_path / "model.keras")
    paths = [str(tmp_path / name) for name in ("model.keras", "fused.keras")]
    arguments = ["fuse", paths[0], "-o", paths[1], "--rounds", "2"]
    shown = CliRunner().invoke(app, arguments).stdout
    for text in ("a_conv: ", "(3 branches)", "layers", "madds", "latency ms", "148"):
        assert text in shown
    fused = keras.saving.load_model(paths[1])
    assert kinds(fused) == ["Conv2D"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["before"]["params"] == 9 * 16 + 8 + 20
    assert found["after"] | {"latency_ms": 0} == {
        "layers": 4,
        "params": 9 * 16 + 4,
        "madds": 64 * 9 * 16,
        "latency_ms": 0,
    }
    assert found["after"]["latency_ms"] > 0
    assert found["difference"] < 1e-5
    result = CliRunner().invoke(app, ["fuse", paths[0], "-o", paths[0]])
    assert "another .keras file" in str(result.exception)
    for arguments, text in (
        (["-o", str(tmp_path / "none" / "a.keras")], "no folder"),
        (["-o", paths[1], "--rounds", "-1"], "Received: -1"),
    ):
        result = CliRunner().invoke(app, ["fuse", paths[0], *arguments])
        assert text in str(result.exception)


def test_command_line_takes_out_residuals(tmp_path):
    image = keras.Input((8, 8, 4))
    y = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a_conv")(image)
    y = layers.ReLU(name="a_act")(BatchNormalization(name="a_bn")(y))
    y = layers.Conv2D(4, 3, padding="same", name="b_conv")(y)
    x = layers.Add(name="b_add")([image, y])
    y = layers.MaxPooling2D(3, 1, padding="same", name="c_pool")(x)
    model = randomise(keras.Model(image, layers.Add(name="c_add")([x, y])))
    model.save(tmp_path / "model.keras")
    paths = [str(tmp_path / name) for name in ("model.keras", "plain.keras")]
    arguments = ["fuse", paths[0], "-o", paths[1], "--residuals", "--rounds", "2"]
    shown = CliRunner().invoke(app, arguments).stdout
    for text in ("b_add: a_conv + a_act + b_conv (2 branches)", "latency ms"):
        assert text in shown
    assert "c_add stays: no summand is a chain of convolutions" in shown
    plain = keras.saving.load_model(paths[1])
    assert kinds(plain) == ["Conv2D", "Conv2D", "Add"]
    for ours, theirs in zip(outputs(plain), outputs(model), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    result = CliRunner().invoke(app, [*arguments, "--branches"])
    assert "Leave one of them out" in str(result.exception)


def test_only_branches_are_merged_for_int8():
    x = keras.Input((8, 8, 4))
    plain = BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    model = keras.Model(x, layers.ReLU()(plain))
    assert merge_branches(model) is model
    both = layers.Add()([plain, BatchNormalization()(x)])
    y = BatchNormalization()(layers.ReLU()(both))
    model = randomise(keras.Model(x, y))
    merged = merge_branches(model)
    assert kinds(merged) == ["Conv2D", "BatchNormalization"]
    (ours,), (theirs,) = outputs(merged), outputs(model)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_only_functional_models():
    class Own(keras.Model):
        pass

    with pytest.raises(ValueError, match="functional"):
        fuse(Own())
