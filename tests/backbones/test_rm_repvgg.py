"""RMNet's RepVGG: the deployed form is a plain stack of 3x3 convolutions."""

import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost
from keras_lightnets.tools.fuse import fuse, reserve

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import contracts  # noqa: E402


def build(name, **options):
    """Build in double precision, so that equal means equal."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        spec = keras_lightnets.get_spec(name)
        model = contracts.build(spec, classifier_activation=None, **options)
    finally:
        keras.config.set_dtype_policy(policy)
    contracts.seeded_values(model)
    return model


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


@pytest.mark.parametrize(
    ("name", "layers", "gmadds"),
    [
        pytest.param("rm_repvgg_21", 21, 2.1, marks=pytest.mark.full),
        ("rm_repvgg_21_r025", 21, 2.1),
        pytest.param("rm_repvgg_37_r025", 37, 4.0, marks=pytest.mark.full),
        pytest.param("rm_repvgg_69_r050", 69, 7.7, marks=pytest.mark.full),
        pytest.param("rm_repvgg_133_r075", 133, 15.1, marks=pytest.mark.full),
    ],
)
def test_deployed_form(name, layers, gmadds):
    """Layers as the name says, multiply-adds as the authors publish them."""
    options = {"input_shape": (32, 32, 3), "include_preprocessing": False}
    model = build(name, **options)
    deployed = reserve.merge_residuals(model)
    assert kinds(deployed).count("Conv2D") == layers
    assert kinds(deployed).count("ReLU") == layers
    assert not {"Add", "Concatenate", "Cropping2D"} & set(kinds(deployed))
    dense = 512 * 1000
    at_224 = (cost.total(deployed).madds - dense) * 7**2 + dense
    assert abs(at_224 / 1e9 - gmadds) < 0.1
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3))
    expected, found = (np.asarray(m(x, training=False)) for m in (model, deployed))
    assert np.abs(found - expected).max() <= 1e-11 * np.abs(expected).max()


def test_what_fuse_alone_leaves():
    """Carried channels cost nothing as they are: only the branches are merged."""
    row = type(keras_lightnets.get_spec("rm_repvgg_21").rows[0])
    model = build("rm_repvgg_21_r025", rows=(row(2, 64, 3),), input_shape=(32, 32, 3))
    fused = fuse(model)
    assert kinds(fused).count("Conv2D") == 4
    assert (kinds(fused).count("Cropping2D"), kinds(fused).count("Concatenate")) == (
        1,
        1,
    )
    assert cost.total(fused).madds < cost.total(model).madds
    x = contracts.images(32, 32)
    expected, found = (np.asarray(m(x, training=False)) for m in (model, fused))
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    assert reserve.plan(model).fused[0].layers[0] == "stage2_block2_carried_split"
