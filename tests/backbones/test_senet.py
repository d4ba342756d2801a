"""SENet: what its networks have that ResNets have not."""

import numpy as np

import keras_lightnets


def two_stages(name):
    rows = keras_lightnets.get_spec(name).rows[:2]
    return keras_lightnets.create_model(
        name, weights=None, include_top=False, rows=rows, input_shape=(64, 64, 3)
    )


def test_the_deepest_network_halves_its_first_convolutions():
    model = two_stages("senet154")
    widths = [
        model.get_layer(f"stage3_block1_{part}_conv").filters
        for part in ("reduce", "spatial", "expand")
    ]
    assert widths == [256, 512, 512]
    assert model.get_layer("stage3_block1_spatial_conv").groups == 64
    sides = [
        model.get_layer(f"stage{stage}_block1_shortcut_conv").kernel_size
        for stage in (2, 3)
    ]
    assert sides == [(1, 1), (3, 3)]
    stems = [model.get_layer(f"stem_{i}_conv") for i in (1, 2, 3)]
    assert [(c.filters, c.strides[0]) for c in stems] == [(64, 2), (64, 1), (128, 1)]


def test_gates_lie_between_zero_and_one_and_scale_before_the_sum():
    model = two_stages("se_resnet18")
    block = "stage2_block1"
    gate = model.get_layer(f"{block}_se_excite_act")
    assert gate.activation.__name__ == "sigmoid"
    assert model.get_layer(f"{block}_se_squeeze_conv").filters == 64 // 16
    total = model.get_layer(f"{block}_add")
    names = {t._keras_history.operation.name for t in total.input}
    assert names == {"stem_pool", f"{block}_se_scale"}


def test_residual_networks_stride_first_and_the_grouped_ones_do_not():
    for name, expected in (("se_resnet50", (2, 1)), ("se_resnext50", (1, 2))):
        model = two_stages(name)
        parts = ("reduce", "spatial")
        strides = [
            model.get_layer(f"stage3_block1_{part}_conv").strides[0] for part in parts
        ]
        np.testing.assert_array_equal(strides, expected)
