"""ChannelNets: channel-wise convolutions, and how many weights they have.

Body and both classifiers are compared with the authors' code, and v1 also with
pytorchcv (test_parity). Of the second variant's last block only what the paper says
is tested: the code that is published mixes the places of the image there, with 64 x
49 x 49 weights where the paper has 64.
"""

import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import _weights, cost, layers
from keras_lightnets._errors import WeightsError
from keras_lightnets.tools.convert import make_channelnet_parity as authors
from keras_lightnets.tools.convert import make_parity as parity

SIDE = 32


def through(function, x):
    """Run a function on tensors as a model with random weights."""
    import keras

    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, function(inputs))
    return np.asarray(model(x)), model


def weights(name):
    """Return parameters per layer."""
    model = keras_lightnets.create_model(name, weights=None)
    return {row.name: row.params for row in cost.costs(model)}


@pytest.mark.parametrize("top", [pytest.param("dense", marks=pytest.mark.full), "cube"])
def test_every_endpoint_equals_the_authors_code(top):
    with np.load(parity.FOLDER / "channelnet-authors.npz") as file:
        expected = {
            key.removeprefix(f"{top}_"): value
            for key, value in file.items()
            if key.startswith(f"{top}_")
        }
    found = authors.seeded_network(top)(authors.images(), training=False)
    assert set(found) == {"c1", "c2", "c3", "c4", "c5", "logits"}
    for level, value in found.items():
        apart = np.abs(parity.sample(value) - expected[level]).max()
        assert apart <= 1e-4 * expected[f"{level}_max"], (level, apart)


def features():
    return np.random.RandomState(0).rand(2, 3, 2, 12).astype("float32")


@pytest.mark.parametrize(("kernel", "groups"), [(5, 1), (8, 2), (6, 3)])
def test_a_kernel_slides_along_the_channels(kernel, groups):
    x = features()
    found, model = through(lambda t: layers.channelwise_conv(t, kernel, groups, "a"), x)
    kernels = np.asarray(model.get_layer("a_channelwise_conv").kernel)[0, :, 0]
    assert kernels.shape == (kernel, groups)
    before = (kernel - groups) // 2
    padded = np.pad(x, [(0, 0)] * 3 + [(before, kernel)])
    expected = [
        padded[..., start : start + kernel] @ kernels[:, g]
        for g in range(groups)
        for start in range(0, 12, groups)
    ]
    np.testing.assert_allclose(found, np.stack(expected, axis=-1), atol=1e-6)


def test_the_classifier_slides_a_cube_along_the_channels():
    x = features()
    found, model = through(lambda t: layers.channelwise_classifier(t, 9), x)
    cube = np.asarray(model.get_layer("top_channelwise_conv").kernel).reshape(3, 2, 4)
    expected = [
        (x[..., start : start + 4] * cube).sum(axis=(1, 2, 3)) for start in range(9)
    ]
    np.testing.assert_allclose(found, np.stack(expected, axis=-1), atol=1e-5)


def test_channels_must_divide_and_suffice():
    with pytest.raises(ValueError, match="divides by groups=5. Received: 12"):
        layers.channelwise_conv(features(), 8, 5, "a")
    with pytest.raises(ValueError, match="12 channels.*Received: classes=13"):
        layers.channelwise_classifier(features(), 13)


def test_a_shallow_kernel_replaces_most_weights():
    """Section 3: 64 weights for 1024 x 1024, and 7 x 7 x 25 for 1024 x 1000."""
    one, two, three = (weights(f"channelnet_v{i}") for i in (1, 2, 3))
    for i in (3, 4):
        assert one[f"stage4_block{i}_channelwise_conv"] == 2 * 8
    assert one["stage5_block2_pw_conv"] == 1024 * 1024
    assert two["stage5_block2_channelwise_conv"] == 64
    assert two["top_classifier"] == 1024 * 1000 + 1000
    assert three["top_channelwise_conv"] == 7 * 7 * 25
    assert three["top_dw_conv"] == 9 * 1024


@pytest.mark.parametrize(
    ("name", "params", "madds"),
    [
        ("channelnet_v1", 3.7, 407),
        ("channelnet_v2", 2.7, 361),
        ("channelnet_v3", 1.7, None),
    ],
)
def test_counts_without_early_joins_are_near_the_papers(name, params, madds):
    """The paper's counts leave out the concatenations that its code has."""
    spec = keras_lightnets.get_spec(name)
    rows = tuple(
        type(row)(row.stage, row.kind, row.out, row.stride)
        if row.join == "concat"
        else row
        for row in spec.rows
    )
    whole = cost.total(keras_lightnets.create_model(name, weights=None, rows=rows))
    assert whole.params / 1e6 == pytest.approx(params, rel=0.05)
    if madds:
        # The rest of the difference is not explained by anything the paper says.
        assert whole.madds / 1e6 == pytest.approx(madds, rel=0.2)


def test_unknown_blocks_are_refused():
    row = keras_lightnets.get_spec("channelnet_v1").rows[0]
    with pytest.raises(ValueError, match="kind of block"):
        type(row)(1, "dense", 64, 1)
    with pytest.raises(ValueError, match="join of a block"):
        type(row)(1, "separable", 64, 1, "cat")


@pytest.mark.parametrize("include_top", [True, False])
def test_the_third_variants_own_files_load(tmp_path, include_top):
    """Its classifier's kernel does not show the number of classes."""
    options = {"input_shape": (SIDE, SIDE, 3)}
    model = keras_lightnets.ChannelNetV3(weights=None, **options)
    path = tmp_path / "own.safetensors"
    _weights.save(model, path)
    again = keras_lightnets.ChannelNetV3(
        weights=path, include_top=include_top, **options
    )
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=False):
        np.testing.assert_array_equal(ours, theirs)
    if include_top:
        with pytest.raises(WeightsError, match="top_channelwise_conv"):
            keras_lightnets.ChannelNetV3(weights=path, classes=5, **options)
