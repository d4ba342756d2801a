"""ESeg: no code is public, so its structure and the paper's counts are checked."""

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost, heads
from keras_lightnets._errors import WeightsError
from keras_lightnets.heads import eseg

# Millions of parameters, moving statistics among them; billions of multiply-adds.
PAPER = {"eseg_s": (6.9, 34.5), "eseg_m": (20.0, 112), "eseg_l": (70.5, 343)}


@pytest.mark.full
@pytest.mark.parametrize("name", PAPER)
def test_counts_of_the_paper(name):
    """Multiply-adds of convolutions alone are a little less than all operations."""
    model, labels = heads.create_segmenter(name, None)
    millions, billions = PAPER[name]
    assert round(model.count_params() / 1e6, 1) == millions
    assert 0.94 < cost.total(model).madds / 1e9 / billions < 1
    assert model.output["logits"].shape == (None, 256, 512, 19)
    assert len(labels) == 19


def test_parameters_of_the_smallest_head():
    """Cells: 14 separable nodes each; projections of what has other channels."""
    sides, counts = (64, 32, 16, 8), (24, 40, 112, 320)
    maps = {
        f"c{i}": keras.Input((side, side, count), name=f"c{i}")
        for i, (side, count) in enumerate(zip(sides, counts, strict=True), 2)
    }
    options = eseg.VARIANTS["s"].options()
    logits = eseg.eseg(maps, eseg.ESegConfig(classes=19, **options))["logits"]
    model = keras.Model(maps, logits)
    c = 96
    nodes = 4 * (14 * (9 * c + c * c + 2 * c) + 8 * 2 + 6 * 3)
    # P2 is read once, P3 to P5 twice; P6 is made from C5.
    projections = (24 + 2 * (40 + 112 + 320) + 320) * c + 8 * 2 * c
    found = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert found == nodes + projections + 8 + (c + 1) * 19


def tiny(fusion="sum", levels=8):
    image = keras.Input((96, 160, 3))
    maps, x = {}, keras.layers.Conv2D(4, 2, 2)(image)
    for i in range(2, 6):
        x = keras.layers.Conv2D(4 * i, 2, 2)(x)
        maps[f"c{i}"] = x
    config = eseg.ESegConfig(
        classes=3, channels=8, cells=1, fusion=fusion, levels=levels, act="relu6"
    )
    return heads.attach(keras.Model(image, maps), "eseg_s", config)


def test_every_level_reaches_the_logits():
    """P2 to P9: the coarsest has one cell, and is spread over the whole map."""
    model = tiny()
    # Six levels behind P2 and P3 of 24 x 40 cells.
    sides = [model.get_layer(f"head_level{k}_resize").output.shape for k in range(1, 8)]
    assert {tuple(side[1:3]) for side in sides} == {(24, 40)}
    inputs = model.get_layer("head_levels_add").input
    assert len(inputs) == 8
    part = keras.Model(model.input, [x for x in inputs])
    found = part(np.zeros((1, 96, 160, 3), "float32"))
    assert {tuple(x.shape) for x in found} == {(1, 24, 40, 8)}
    coarse = next(la for la in model.layers if la.name == "head_level7_resize").input
    assert tuple(coarse.shape[1:3]) == (1, 1)


def test_weighted_sum_at_the_end():
    model = tiny("fast")
    fuse = model.get_layer("head_levels_fuse")
    np.testing.assert_allclose(np.asarray(fuse.shares()), 1 / 8, atol=1e-4)


def test_lite_quantises_without_float_ops():
    """Plain layers only: no learned shares, no gates, no swish."""
    backbone = keras_lightnets.EfficientNetLite0(
        weights=None, endpoints=("c2", "c3", "c4", "c5"), input_shape=(64, 64, 3)
    )
    options = eseg.VARIANTS["lite_s"].options()
    model = heads.attach(backbone, "eseg_lite_s", eseg.ESegConfig(classes=2, **options))
    kinds = {type(layer).__name__ for layer in model.layers}
    assert "WeightedFusion" not in kinds and "Multiply" not in kinds
    acts = {la.max_value for la in model.layers if isinstance(la, keras.layers.ReLU)}
    assert acts == {6.0}
    assert model.output["logits"].shape == (None, 16, 16, 2)


def test_bad_values_and_weights_that_nobody_published():
    with pytest.raises(ValueError, match="levels=3"):
        eseg.ESegConfig(classes=2, levels=3)
    with pytest.raises(ValueError, match="classes=0"):
        eseg.ESegConfig(classes=0)
    with pytest.raises(ValueError, match="fusion"):
        eseg.ESegConfig(classes=2, fusion="mean")
    with pytest.raises(WeightsError, match="No weights are published"):
        heads.create_segmenter("eseg_lite_s", "cityscapes", (64, 64))
