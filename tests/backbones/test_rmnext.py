"""RMNeXt: the deployed form has no additions and the authors' sizes."""

import pathlib
import sys

import keras
import numpy as np

import keras_lightnets
from keras_lightnets.tools.fuse import reserve

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import contracts  # noqa: E402


def test_deployed_form():
    """Its groups stay as large as trained: carried channels are groups of their own.

    The authors' deployed unit has `in + (expand - 1) x out` channels within.
    """
    spec = keras_lightnets.get_spec("rmnext41_5x16")
    row = type(spec.rows[0])
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = contracts.build(
            spec,
            rows=(row(2, 32, 2, 1), row(3, 64, 2, 2)),
            stem=32,
            include_top=False,
            input_shape=(64, 64, 3),
        )
    finally:
        keras.config.set_dtype_policy(policy)
    contracts.seeded_values(model)
    merged = reserve.merge_residuals(model)
    x = contracts.images()
    expected, found = (np.asarray(m(x, training=False)) for m in (model, merged))
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()
    kinds = {type(layer).__name__ for layer in merged.layers}
    assert kinds == {"InputLayer", "Rescaling", "Normalization", "ZeroPadding2D"} & (
        kinds
    ) | {"Conv2D", "ReLU"}
    sizes = {
        layer.name: (layer.filters, layer.groups)
        for layer in merged.layers
        if layer.name.endswith("_spatial_conv")
    }
    assert sizes == {
        "stage2_block1_spatial_conv": (32 + 128, 10),
        "stage2_block2_spatial_conv": (32 + 128, 10),
        "stage3_block1_spatial_conv": (32 + 256, 9),
        "stage3_block2_spatial_conv": (64 + 256, 10),
    }
