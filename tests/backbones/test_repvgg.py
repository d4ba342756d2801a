"""RepVGG: the deployed form is the trained one, with the published counts."""

import math
import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost
from keras_lightnets.tools.fuse import fuse, plan

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import contracts  # noqa: E402

# Parameters and multiply-adds (M) at 224 of timm's networks after reparameterize(),
# for two groups of the authors' with deploy=True (D2se's are equal in both); the
# paper's table 4 has them rounded to 0.01 M.
DEPLOYED = {
    "repvgg_a0": (8309384, 1361.45),
    "repvgg_a1": (12789864, 2363.97),
    "repvgg_a2": (25499944, 5116.95),
    "repvgg_b0": (14339048, 3057.6),
    "repvgg_b1": (51829480, 11815.49),
    "repvgg_b1g2": (41360104, 8809.74),
    "repvgg_b1g4": (36125416, 7306.87),
    "repvgg_b2": (80315112, 18376.61),
    "repvgg_b2g2": (63956712, 13680.14),
    "repvgg_b2g4": (55777512, 11331.9),
    "repvgg_b3": (110960872, 26208.88),
    "repvgg_b3g2": (87404776, 19445.96),
    "repvgg_b3g4": (75626728, 16064.5),
    "repvgg_d2se": (120387572, 32829.55),
}


def test_every_variant_is_counted():
    assert set(DEPLOYED) == set(keras_lightnets.list_models("repvgg*"))
    assert all(keras_lightnets.get_spec(name).fusable for name in DEPLOYED)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "repvgg_a0" else pytest.mark.full)
        for name in DEPLOYED
    ],
)
def test_deployed_form(name):
    """In double precision, so that equal means equal; counts are the published."""
    spec = keras_lightnets.get_spec(name)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = contracts.build(
            spec, input_shape=(64, 64, 3), classifier_activation=None
        )
    finally:
        keras.config.set_dtype_policy(policy)
    contracts.seeded_values(model)
    x = contracts.images(count=1)
    expected = np.asarray(model(x, training=False))
    deployed = fuse(model)
    found = np.asarray(deployed(x, training=False))
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    params, madds = DEPLOYED[name]
    rows = cost.costs(deployed)
    assert sum(row.params for row in rows) == params
    # 224 = 3.5 x 64 pixels; what works on means (gates, classifier) does not grow.
    fixed = sum(row.madds for row in rows if math.prod(row.shape[:-1]) == 1)
    at_224 = (sum(row.madds for row in rows) - fixed) * 3.5**2 + fixed
    assert at_224 / 1e6 == pytest.approx(madds, rel=1e-5)


def test_one_convolution_per_block_is_left():
    """Squeeze-and-excite, a groups' map and an identity do not hinder the merging."""
    row = type(keras_lightnets.get_spec("repvgg_a0").rows[0])
    model = keras_lightnets.create_model(
        "repvgg_a0",
        weights=None,
        rows=(row(2, 16, 2), row(3, 16, 3), row(4, 32, 2), row(5, 64, 1)),
        stem=8,
        groups=2,
        se=1 / 4,
        input_shape=(64, 64, 3),
        classifier_activation=None,
    )
    contracts.seeded_values(model)
    merged = plan(model)
    assert [f.branches for f in merged.fused if f.branches > 1] == [
        2,
        2,
        3,
        2,
        3,
        3,
        2,
        3,
        2,
    ]
    assert merged.kept == ()
    deployed = fuse(model)
    kinds = [type(layer).__name__ for layer in deployed.layers]
    assert kinds.count("BatchNormalization") == kinds.count("Add") == 0
    groups = [
        layer.groups for layer in deployed.layers if layer.name.endswith("_dense_conv")
    ]
    assert groups == [1, 1, 2, 1, 2, 1, 2, 1, 2]
    expected = np.asarray(model(contracts.images(), training=False))
    found = np.asarray(deployed(contracts.images(), training=False))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
