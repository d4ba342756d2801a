"""RepGhostNet: the deployed form is the trained one, with the published counts."""

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

# timm's networks after convert_to_deploy, which leaves lone normalisations.
DEPLOYED = {
    "repghostnet_050": 2306528,
    "repghostnet_058": 2537736,
    "repghostnet_080": 3267112,
    "repghostnet": 4058772,
    "repghostnet_111": 4523568,
    "repghostnet_130": 5459316,
    "repghostnet_150": 6553064,
    "repghostnet_200": 9766460,
}


def test_every_width_is_counted():
    assert set(DEPLOYED) == set(keras_lightnets.list_models("repghostnet*"))
    assert all(keras_lightnets.get_spec(name).fusable for name in DEPLOYED)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith("_050") else pytest.mark.full)
        for name in DEPLOYED
    ],
)
def test_deployed_form(name):
    """In double precision, so that equal means equal; counts are the published."""
    spec = keras_lightnets.get_spec(name)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        size = (contracts.SIZE, contracts.SIZE, 3)
        model = contracts.build(spec, input_shape=size, classifier_activation=None)
    finally:
        keras.config.set_dtype_policy(policy)
    contracts.seeded_values(model)
    expected = np.asarray(model(contracts.images(), training=False))
    merged = plan(model, norms=False)
    assert [f.branches for f in merged.fused] == [2] * 2 * len(spec.rows)
    assert merged.kept == ()
    for norms in (False, True):
        deployed = fuse(model, norms=norms)
        found = np.asarray(deployed(contracts.images(), training=False))
        assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
        whole, before = cost.total(deployed), cost.total(model)
        assert whole.madds == before.madds
        if norms:
            assert not any(
                isinstance(layer, keras.layers.BatchNormalization)
                for layer in deployed.layers
            )
            assert whole.params < DEPLOYED[name]
        else:
            assert whole.params == DEPLOYED[name]


@pytest.mark.full
def test_deployed_form_in_single_precision():
    model = contracts.logits_model(keras_lightnets.get_spec("repghostnet_050"))
    contracts.seeded_values(model)
    expected = np.asarray(model(contracts.images(), training=False))
    found = np.asarray(fuse(model)(contracts.images(), training=False))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
