"""IGCV2: the conditions and counts that its paper states.

There is no published code, so nothing here compares with a reference network.
"""

import numpy as np
import pytest
from channel_paths import count_paths

import keras_lightnets
from keras_lightnets import _weights, cost
from keras_lightnets._blocks import StageRow
from keras_lightnets.backbones.igcv2 import balanced

PUBLISHED = [
    pytest.param("igcv2_025", 0.5, 46, id="0.25"),
    pytest.param("igcv2_050", 1.3, 156, id="0.5", marks=pytest.mark.full),
    pytest.param("igcv2", 4.1, 564, id="1.0", marks=pytest.mark.full),
]


def small(partitions):
    """Build a network whose second block has 8 input and 16 output channels."""
    rows = (StageRow(1, 8, 1, 1), StageRow(2, 16, 2, 1))
    return keras_lightnets.IGCV2(
        weights=None,
        rows=rows,
        stem=8,
        partitions=partitions,
        include_top=False,
        endpoints=("c2",),
        input_shape=(32, 32, 3),
    )


@pytest.mark.parametrize("partitions", [0, 2, 4, 8])
def test_one_path_joins_every_input_and_output_channel(partitions):
    """The complementary condition, also where the channels change."""
    model = small(partitions)
    for before, name in (
        ("stage1_block1_act", "stage2_block1"),
        ("stage2_block1_act", "stage2_block2"),
    ):
        ways = count_paths(model, before, f"{name}_back_shuffle")
        np.testing.assert_array_equal(ways, np.ones_like(ways))
        assert ways.shape[1] == 16


@pytest.mark.parametrize("channels", [64, 100, 128, 256, 1024])
def test_balanced_partitions_have_the_fewest_weights(channels):
    """At equal sizes both convolutions see the root of the channels (section 3.2)."""
    first = balanced(channels, channels)
    second = channels // first
    assert channels % first == 0
    root = np.sqrt(channels)
    assert max(first, second) <= np.sqrt(2) * root + 1e-9
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    weights = {n: channels * (n + channels // n) for n in divisors}
    assert weights[first] == min(weights.values())


def test_balanced_network_uses_them():
    model = keras_lightnets.IGCV2(weights=None, partitions=0, input_shape=(32, 32, 3))
    groups = {}
    for part in ("first", "second"):
        layer = model.get_layer(f"stage5_block3_{part}_conv")
        groups[part] = layer.groups
    assert groups == {"first": 32, "second": 32}


@pytest.mark.parametrize(("name", "params", "madds"), PUBLISHED)
def test_counts_are_near_the_papers(name, params, madds):
    whole = cost.total(keras_lightnets.create_model(name, weights=None))
    # The paper rounds to 0.1 M.
    assert whole.params / 1e6 == pytest.approx(params, abs=0.05)
    assert whole.madds / 1e6 == pytest.approx(madds, rel=0.03)


def test_negative_partitions_are_refused():
    with pytest.raises(ValueError, match="or 0 for balanced"):
        keras_lightnets.IGCV2(weights=None, partitions=-1)


def test_own_files_load_with_and_without_the_classifier(tmp_path):
    options = {"input_shape": (32, 32, 3)}
    model = keras_lightnets.IGCV2W025(weights=None, **options)
    path = tmp_path / "own.safetensors"
    _weights.save(model, path)
    for top in (True, False):
        again = keras_lightnets.IGCV2W025(weights=path, include_top=top, **options)
        pairs = zip(again.get_weights(), model.get_weights(), strict=top)
        assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
