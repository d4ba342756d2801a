"""G-Ghost-RegNet: what the paper says of a stage; the rest is parity."""

import numpy as np
import pytest

import keras_lightnets
from keras_lightnets.backbones import g_ghost_regnet

SMALLEST = g_ghost_regnet.SPECS[0]


@pytest.fixture(scope="module")
def model():
    return keras_lightnets.create_model(
        SMALLEST.name, weights=None, include_top=False, input_shape=(64, 64, 3)
    )


def test_chain_is_narrow_and_has_whole_groups(model):
    """Stage 4 of the smallest: 152 channels, groups of 8 and of 6 in the chain."""
    names = [layer.name for layer in model.layers]
    assert not any(name.startswith("stage3") and "cheap" in name for name in names)
    for number, channels, groups in ((1, 152, 19), (2, 72, 12), (4, 152, 19)):
        layer = model.get_layer(f"stage4_block{number}_group_conv")
        assert layer.kernel.shape[-1] == channels
        assert layer.groups == groups
    cheap = model.get_layer("stage4_block4_cheap_conv")
    assert cheap.kernel.shape == (1, 1, 80, 80)
    # Means of the first block's output and of both of the chain.
    assert model.get_layer("stage4_block4_mix_squeeze_conv").kernel.shape[2] == 296


def test_cheap_channels_depend_on_the_means_of_the_chain(model):
    """Only the mix hands what the chain computes to the cheap channels."""
    import keras

    wanted = [
        model.get_layer(f"stage4_block{n}").output
        for n in ("2_add_act", "4_cheap_act", "1_add_act")
    ]
    part = keras.Model(model.input, wanted)
    x = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    conv = model.get_layer("stage4_block2_reduce_conv")
    before = [np.asarray(t) for t in part(x, training=False)]
    kernel = np.asarray(conv.kernel)
    conv.kernel.assign(kernel[..., ::-1] * 2)
    after = [np.asarray(t) for t in part(x, training=False)]
    conv.kernel.assign(kernel)
    assert np.abs(after[0] - before[0]).max() > 1e-3
    # The same shift everywhere before the ReLU: one value per channel.
    moved = after[1] - before[1]
    both = (after[1] > 0) & (before[1] > 0)
    spread = [
        np.ptp(moved[..., c][both[..., c]]) for c in range(80) if both[..., c].any()
    ]
    assert np.abs(moved).max() > 1e-4
    assert max(spread) <= 1e-5 * np.abs(after[1]).max()
    np.testing.assert_array_equal(after[2], before[2])


def test_short_stages_are_plain(model):
    """Stages 2 and 3 of the smallest have one block each, 4 and 5 have 4 and 7."""
    assert [row.repeat for row in SMALLEST.rows] == [1, 1, 4, 7]
    cheap = {layer.name[:6] for layer in model.layers if "_cheap" in layer.name}
    assert cheap == {"stage4", "stage5"}
