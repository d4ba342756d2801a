"""MGIC: linear growth, full coupling, the correction's form, as the paper states."""

import math

import keras
import numpy as np

import keras_lightnets
from keras_lightnets import layers
from keras_lightnets.backbones.mgic_resnet import SPECS

SPEC = SPECS[0]


def smooth(tensor, grid, part):
    """Convolve linearly: a plain stand-in for a level's own step."""
    return layers.conv_bn(tensor, grid.planes, 1, SPEC, part, groups=grid.groups)


def block(channels, group=8, step=smooth):
    grids = layers.mgic_grids(channels, channels, group, group)
    inputs = keras.Input((4, 4, channels))
    name = "stage2_block1"
    return keras.Model(inputs, layers.mgic_block(inputs, grids, step, SPEC, name))


def test_levels_halve_until_they_are_small_enough():
    found = layers.mgic_grids(160, 960, 32, 32)
    shown = [(g.planes, g.mid, g.groups, g.number) for g in found]
    expected = [(160, 960, 5, 1), (80, 480, 2, 2), (40, 240, 1, 3), (20, 120, 1, 0)]
    assert shown == expected
    # 112 / 32 is 3, which does not divide it.
    assert layers.mgic_grids(112, 672, 32, 32)[0].groups == 2
    # Even what is small at once is restricted once.
    assert [g.planes for g in layers.mgic_grids(16, 16, 64, 64)] == [16, 8]


def test_parameters_grow_linearly_with_the_width():
    """A full convolution has four times as many at twice the width."""
    counts = [block(width).count_params() for width in (64, 128, 256, 512)]
    ratios = [b / a for a, b in zip(counts, counts[1:], strict=False)]
    assert all(1.95 < ratio < 2.1 for ratio in ratios)
    full = keras.layers.Conv2D(512, 1, use_bias=False)
    full.build((None, 4, 4, 512))
    assert counts[-1] < math.prod(full.kernel.shape) / 5


def test_every_output_depends_on_every_input_channel():
    model = block(64)
    random = np.random.RandomState(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            # Positive kernels: no path cancels another one by chance.
            variable.assign(random.uniform(0.1, 1, variable.shape))
    x = random.rand(1, 4, 4, 64).astype("float32")
    before = np.asarray(model(x))[0, 1, 1]
    for channel in range(64):
        moved = x.copy()
        moved[..., channel] += 10
        apart = np.abs(np.asarray(model(moved))[0, 1, 1] - before)
        assert (apart > 0).all(), channel


def test_without_the_coarse_levels_only_groups_are_coupled():
    model = block(64)
    for layer in model.layers:
        if layer.name.endswith("_prolong_conv"):
            layer.kernel.assign(np.zeros(layer.kernel.shape))
    random = np.random.RandomState(0)
    x = random.rand(1, 4, 4, 64).astype("float32")
    moved = x.copy()
    moved[..., 0] += 10
    apart = np.abs(np.asarray(model(moved) - model(x)))[0, 1, 1]
    assert (apart[:8] > 0).all()
    np.testing.assert_array_equal(apart[8:], 0)


def test_a_coarse_part_that_changes_nothing_corrects_nothing():
    """The correction is of y - r, not of y."""
    model = block(32, group=8, step=lambda tensor, grid, part: tensor)
    x = np.random.RandomState(0).rand(2, 4, 4, 32).astype("float32")
    np.testing.assert_allclose(np.asarray(model(x)), x, atol=1e-6)


def test_stated_sizes():
    """Group and coarsest level of the networks as built, and what they cost."""
    spec = keras_lightnets.get_spec("mgic_resnet50")
    assert (spec.group, spec.coarsest, spec.expansion) == (64, 64, 4)
    model = keras_lightnets.MGICResNet34(
        weights=None, endpoints=("c3",), input_shape=(64, 64, 3)
    )
    assert model.get_layer("stage3_block1_level1_step1_conv").groups == 2
    assert model.get_layer("stage3_block1_coarse_step1_conv").groups == 1
    assert model.get_layer("stage3_block1_connect_conv").groups == 64
