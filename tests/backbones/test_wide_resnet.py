"""Wide ResNet: normalisation before convolution, counts of ten classes."""

import keras
import pytest

import keras_lightnets


def test_networks_for_cifar_normalise_before_they_convolve():
    model = keras_lightnets.WideResNetCifar16x8(weights=None, unit_dropout=0.3)
    names = [layer.name for layer in model.layers]
    part = "stage1_block1"
    order = ["first_bn", "first_act", "first_conv", "second_bn", "second_act"]
    order += ["dropout", "second_conv", "add"]
    places = [names.index(f"{part}_{name}") for name in order]
    assert places == sorted(places)
    # The shortcut reads what is normalised, and adds no normalisation.
    shortcut = model.get_layer(f"{part}_shortcut_conv")
    assert shortcut.input is model.get_layer(f"{part}_first_act").output
    assert f"{part}_shortcut_bn" not in names


@pytest.mark.parametrize(
    ("depth", "factor", "params"),
    [
        (40, 4, 8949210),
        pytest.param(16, 8, 10961370, marks=pytest.mark.full),
        pytest.param(28, 10, 36479194, marks=pytest.mark.full),
        pytest.param(40, 8, 35748314, marks=pytest.mark.full),
    ],
)
def test_counts_of_ten_classes(depth, factor, params):
    name = f"wide_resnet_cifar_{depth}_{factor}"
    model = keras_lightnets.create_model(name, weights=None, classes=10)
    kind = keras.layers.BatchNormalization
    moving = [layer for layer in model.layers if isinstance(layer, kind)]
    found = model.count_params() - sum(layer.count_params() // 2 for layer in moving)
    assert found == params
