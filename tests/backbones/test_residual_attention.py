"""Attention over channels and branches, and the hierarchy of scales, by formula."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import keras_lightnets
from keras_lightnets import layers

SPEC = keras_lightnets.get_spec("resnet18")


def randomise(model, seed=0):
    random = np.random.RandomState(seed)
    for variable in model.weights:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_efficient_attention_is_the_papers_formula():
    inputs = keras.Input((None, None, 6))
    model = keras.Model(inputs, layers.efficient_attention(inputs, "x", 3))
    randomise(model)
    (kernel,) = (np.asarray(v).squeeze() for v in model.weights)
    x = np.random.RandomState(1).randn(2, 3, 5, 6).astype("float32")
    padded = np.pad(x.mean((1, 2)), ((0, 0), (1, 1)))
    gates = sigmoid(sum(kernel[i] * padded[:, i : i + 6] for i in range(3)))
    np.testing.assert_allclose(
        np.asarray(model(x)), x * gates[:, None, None], rtol=1e-5
    )


def test_kernel_grows_with_the_channels():
    sides = {channels: layers.eca_kernel(channels) for channels in (8, 64, 128, 1024)}
    assert sides == {8: 3, 64: 3, 128: 5, 1024: 5}


def test_selective_kernel_weighs_branches_by_softmax():
    inputs = [keras.Input((3, 4, 6)) for _ in range(3)]
    model = keras.Model(inputs, layers.selective_kernel(inputs, 5, SPEC, "x"))
    randomise(model)
    random = np.random.RandomState(2)
    branches = [random.rand(2, 3, 4, 6).astype("float32") for _ in range(3)]
    w1, gamma, beta, mean, var, w2 = (np.asarray(v).squeeze() for v in model.weights)
    y = sum(branches).mean((1, 2)) @ w1
    y = (y - mean) / np.sqrt(var + SPEC.bn_epsilon) * gamma + beta
    logits = (np.maximum(y, 0) @ w2).reshape(2, 3, 6)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = sum(b * shares[:, i, None, None] for i, b in enumerate(branches))
    found = np.asarray(model(branches, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_each_scale_reads_the_one_before_unless_the_shape_changes(stride):
    """A gradient shows which pieces of the input a piece of the output reads."""
    spec = dataclasses.replace(SPEC, reduce_ratio=4.0)
    block = dataclasses.replace(spec.blocks()[1], out=64, channels=64)
    if stride == 2:
        block = dataclasses.replace(spec.blocks()[2])
    conv = layers.Spatial(
        filters=2,
        stride=stride,
        dilation=1,
        groups=1,
        act="linear",
        name="x",
        block=block,
    )
    inputs = keras.Input((6, 6, 8))
    model = keras.Model(inputs, layers.multi_scale(inputs, spec, conv))
    randomise(model)
    x = np.random.RandomState(3).randn(1, 6, 6, 8).astype("float32")
    reads = np.zeros((4, 4), int)
    base = np.asarray(model(x, training=False))
    for piece in range(4):
        moved = x.copy()
        moved[..., 2 * piece : 2 * piece + 2] += 1
        change = np.abs(np.asarray(model(moved, training=False)) - base)
        reads[:, piece] = change.reshape(-1, 4, 2).max((0, 2)) > 1e-4
    chain = np.diag([0, 0, 0, 1]) + np.tril(np.ones((4, 4), int)) * [[1], [1], [1], [0]]
    expected = chain if stride == 1 else np.eye(4, dtype=int)
    np.testing.assert_array_equal(reads, expected)


def test_scales_refuse_what_is_no_whole_piece():
    block = SPEC.blocks()[1]
    conv = layers.Spatial(
        filters=3, stride=1, dilation=1, groups=1, act="relu", name="x", block=block
    )
    with pytest.raises(ValueError, match="8 channels and filters=3"):
        layers.multi_scale(keras.Input((4, 4, 8)), SPEC, conv)


def test_scales_serve_any_residual_network():
    """The hierarchy in a ResNeXt, the attention in a ResNet's basic units."""
    spec = keras_lightnets.get_spec("resnext50_32x4d").replace(
        rows=keras_lightnets.get_spec("resnext50_32x4d").rows[:1],
        reduce_ratio=4.0,
        groups=8,
    )
    inputs = keras.Input((32, 32, 3))

    def gate(x, _, block):
        return layers.efficient_attention(x, f"{block.name}_eca")

    maps = layers.residual_network(inputs, spec, 32, layers.multi_scale, gate)
    assert maps["c2"].shape == (None, 8, 8, 256)


def test_thinned_grid_is_what_a_strided_dilated_convolution_reads():
    x = np.random.RandomState(4).randn(1, 9, 8, 2).astype("float32")
    kernel = np.random.RandomState(5).randn(3, 3, 2, 2).astype("float32")
    dense = ops.conv(
        np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), kernel, 1, "valid", dilation_rate=2
    )
    thin, stride, dilation = layers.thinned(x, 2, 2, "x")
    assert (stride, dilation) == (1, 1)
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    found = ops.conv(np.pad(np.asarray(thin), pads), kernel, 1, "valid")
    # "dense" reads two cells around each of all positions; every second is wanted.
    np.testing.assert_allclose(
        found[:, :4], np.asarray(dense)[:, ::2, ::2][:, :4], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="stride=2, dilation=3"):
        layers.thinned(x, 2, 3, "x")
