"""IGCV3: what its blocks join, and the authors' MXNet names."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_lightnets
from keras_lightnets import layers
from keras_lightnets._layout import pairs
from keras_lightnets.layers.stride import DilatedStride
from keras_lightnets.tools.convert import make_parity as parity

SIDE = 32


def reached(groups):
    """Return which outputs of a block depend on which inputs, and how often."""
    import keras

    spec = keras_lightnets.get_spec("igcv3")
    block = layers.Bottleneck(
        kernel=3,
        expand=12,
        out=6,
        stride=1,
        act="linear",
        always_expand=True,
        groups=groups,
        skip=False,
    )
    inputs = keras.Input((3, 3, 4))
    stride = DilatedStride()
    outputs, _ = layers.inverted_residual(inputs, block, spec, stride, "a")
    model = keras.Model(inputs, outputs)
    for layer in model.layers:
        if layer.name.endswith("conv"):
            layer.set_weights([np.ones_like(w) for w in layer.get_weights()])
    # One pixel in the middle, seen by a 3x3 kernel of ones.
    images = np.zeros((4, 3, 3, 4), "float32")
    images[np.arange(4), 1, 1, np.arange(4)] = 1
    scale = (1 + spec.bn_epsilon) ** 1.5
    return np.asarray(model(images, training=False))[:, 1, 1] * scale


def test_two_groups_and_a_shuffle_join_every_channel_equally():
    # 12 expanded channels, of which an input reaches 6 and an output reads 6;
    # the shuffle makes them meet in 3.
    np.testing.assert_allclose(reached(2), np.full((4, 6), 3.0), rtol=1e-5)
    np.testing.assert_allclose(reached(1), np.full((4, 6), 12.0), rtol=1e-5)


def test_expansion_is_linear_and_both_pointwise_convolutions_grouped():
    model = keras_lightnets.IGCV3W025(weights=None, input_shape=(SIDE, SIDE, 3))
    names = {layer.name for layer in model.layers}
    acts = {name for name in names if name.endswith("_act")}
    blocks = {name.removesuffix("_dw_conv") for name in names if "_dw_conv" in name}
    assert len(blocks) == 32
    assert acts == {"stem_act", "top_act", *(f"{name}_dw_act" for name in blocks)}
    for name in blocks:
        for part in ("expand", "project"):
            assert model.get_layer(f"{name}_{part}_conv").groups == 2, name


def test_parameters_of_the_authors_symbol_have_mxnet_names():
    layouts = keras_lightnets.backbones.igcv3.LAYOUTS
    names = layouts["mxnet"].names(keras_lightnets.get_spec("igcv3"))
    found = pairs("stage5_block7_dw", "seq-6-block0-depthwise-", {"bn": "batchnorm"})
    assert found.items() <= names.items()


@pytest.mark.full
def test_the_authors_files_bring_their_normalisation(tmp_path):
    with np.load(parity.FOLDER / "igcv3-igcv3.npz") as file:
        shapes = json.loads(file["state"].tobytes())
    path = tmp_path / "igcv3.safetensors"
    save_file(parity.seeded_state(shapes), path)
    model = keras_lightnets.IGCV3(weights=path, input_shape=(SIDE, SIDE, 3))
    rescaling = model.get_layer("normalise")
    np.testing.assert_allclose(rescaling.scale, 1.0)
    np.testing.assert_allclose(rescaling.offset, [-123.68, -116.779, -103.939])
