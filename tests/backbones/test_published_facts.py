"""Facts of papers and publishers that are easily built another way.

Networks are cut to the rows that show a fact, or only their data are read.
"""

import keras
import pytest

import keras_lightnets
from keras_lightnets import cost

# Side of the evaluation crop, share of the shortest side, and whether the input is
# scaled to -1..1 instead of ImageNet's mean and deviation.
RULES = {
    "efficientnet_b0": (224, 0.875, False),
    "efficientnet_b7": (600, 0.949, False),
    "efficientnet_lite0": (224, 0.875, True),
    "efficientnet_v2_b0": (224, 0.875, False),
    "efficientnet_v2_b3": (300, 0.904, False),
    "efficientnet_v2_s": (384, 1.0, True),
    "efficientnet_v2_l": (480, 1.0, True),
    "fbnet_v2_f1": (128, 128 / 151, False),
    "fbnet_v3_a": (224, 224 / 242, False),
    "gpunet_p0": (224, 0.875, False),
    "mobilenet_v3_large": (224, 0.875, True),
    "repvgg_d2se": (320, 1.0, False),
    "xception": (299, 0.8975, True),
}


@pytest.mark.parametrize("name", RULES)
def test_evaluation_of_the_default_weights(name):
    rule = keras_lightnets.get_spec(name).preprocessing
    size, crop, scaled = RULES[name]
    assert rule.size == size
    assert rule.crop == pytest.approx(crop, abs=1e-6)
    assert (rule.mean == rule.std == (127.5,) * 3) is scaled
    assert scaled or rule.mean == (123.675, 116.28, 103.53)


def rows_of(name, count):
    return keras_lightnets.get_spec(name).rows[:count]


def cut(name, count, **options):
    """Build the first rows of a network, without its top."""
    return keras_lightnets.create_model(
        name,
        weights=None,
        include_top=False,
        rows=rows_of(name, count),
        input_shape=(64, 64, 3),
        **options,
    )


def filters(model, pattern):
    """Return the channels of the layers whose name holds a text."""
    return [
        layer.filters
        for layer in model.layers
        if pattern in layer.name and hasattr(layer, "filters")
    ]


def test_mnasnet_squeezes_to_a_share_of_the_blocks_input():
    """A quarter of 24 and 40 channels, not of the 72 and 120 expanded ones."""
    model = cut("mnasnet_a1", 3)
    assert filters(model, "se_squeeze_conv") == [6, 10, 10]
    gate = model.get_layer("stage3_block1_se_excite_act")
    assert gate.activation.__name__ == "sigmoid"
    assert isinstance(
        model.get_layer("stage3_block1_se_squeeze_act"), keras.layers.ReLU
    )


@pytest.mark.parametrize(
    ("name", "stem", "top", "repeats"),
    [
        ("efficientnet_lite4", 32, 1280, [1, 4, 1]),
        ("efficientnet_b4", 48, 1792, [2, 4, 2]),  # the same factors
    ],
)
def test_lite_scales_neither_stem_nor_top_nor_the_outer_depths(
    name, stem, top, repeats
):
    rows = keras_lightnets.get_spec(name).rows
    model = keras_lightnets.create_model(
        name,
        weights=None,
        include_top=False,
        rows=(*rows[:2], rows[-1]),
        input_shape=(64, 64, 3),
    )
    assert filters(model, "stem_conv") == [stem]
    assert filters(model, "top_conv") == [top]
    projected = [la.name for la in model.layers if la.name.endswith("_project_conv")]
    found = [sum(f"stage{i}_" in name for name in projected) for i in (1, 2, 5)]
    assert found == repeats


def test_lite_has_no_gates_and_bounded_activations():
    model = cut("efficientnet_lite0", 3)
    acts = [layer for layer in model.layers if isinstance(layer, keras.layers.ReLU)]
    assert {float(layer.max_value) for layer in acts} == {6.0}
    assert not any(isinstance(layer, keras.layers.Multiply) for layer in model.layers)


def test_a_fused_block_that_does_not_expand_is_one_convolution():
    model = cut("efficientnet_v2_b0", 1)
    convs = [la.name for la in model.layers if isinstance(la, keras.layers.Conv2D)]
    assert len([name for name in convs if name.startswith("stage1_block1_")]) == 1


def test_fbnet_shuffles_where_its_pointwise_convolutions_are_grouped():
    """Of the authors' networks only A has such blocks."""
    grouped = {
        name: any(row.groups == 2 for row in keras_lightnets.get_spec(name).rows)
        for name in ("fbnet_a", "fbnet_b", "fbnet_c")
    }
    assert grouped == {"fbnet_a": True, "fbnet_b": False, "fbnet_c": False}


def test_micronet_mixes_behind_pointwise_convolutions_up_to_m2():
    names = [f"micronet_m{i}" for i in range(4)]
    mixes = [keras_lightnets.get_spec(name).mixes for name in names]
    assert mixes == [True, True, True, False]


def test_condensenet_doubles_its_growth():
    rows = keras_lightnets.get_spec("condensenet_74_c4_g4").rows
    assert [(row.repeat, row.growth) for row in rows] == [
        (4, 8),
        (6, 16),
        (8, 32),
        (10, 64),
        (8, 128),
    ]


def test_the_authors_shufflenet_has_a_classifier_without_bias():
    """A thousand parameters fewer than pytorchcv's."""
    spec = keras_lightnets.get_spec("shufflenet_v1_g3")
    assert not spec.classifier_bias
    counts = [
        cost.total(cut_classifier("shufflenet_v1_g3", classifier_bias=bias)).params
        for bias in (False, True)
    ]
    assert counts[1] - counts[0] == 1000


def cut_classifier(name, **options):
    return keras_lightnets.create_model(
        name, weights=None, rows=rows_of(name, 1), input_shape=(64, 64, 3), **options
    )


def test_squeezenet_normalises_nothing_and_joins_the_point_branch_first():
    model = keras_lightnets.SqueezeNet11(
        weights=None, include_top=False, input_shape=(64, 64, 3)
    )
    kinds = {type(layer).__name__ for layer in model.layers}
    assert "BatchNormalization" not in kinds
    joined = next(la for la in model.layers if la.name.endswith("_concat"))
    sides = []
    for tensor in joined.input:
        conv = tensor._keras_history.operation.input._keras_history.operation
        sides.append(conv.kernel_size[0])
    assert sides == [1, 3]


@pytest.mark.parametrize(
    ("name", "row", "squeezed"), [("sknet50", 0, 32), ("sknet50", 3, 64)]
)
def test_selective_kernels_squeeze_to_a_sixteenth_but_to_32_at_least(
    name, row, squeezed
):
    """Branches of 128 channels in the first stage, of 1024 in the last."""
    spec = keras_lightnets.get_spec(name)
    model = keras_lightnets.create_model(
        name,
        weights=None,
        include_top=False,
        rows=(spec.rows[row].__class__(2, spec.rows[row].out, 1),),
        input_shape=(64, 64, 3),
    )
    assert filters(model, "squeeze_conv") == [squeezed]


def test_senet154_drops_before_its_classifier():
    assert keras_lightnets.get_spec("senet154").dropout == 0.2


def test_nexception_activates_before_it_normalises_its_stem():
    names = [layer.name for layer in cut("nexception_t", 1).layers]
    stem = [name for name in names if name.startswith("stem_")]
    assert stem.index("stem_act") < stem.index("stem_bn")


def test_peleenets_bottlenecks():
    """Section 2: 3, 4, 8, 6 layers of growth 32 and bottlenecks of 1, 2, 4, 4 x 16."""
    spec = keras_lightnets.get_spec("peleenet")
    assert [(row.repeat, row.mid) for row in spec.rows] == [
        (3, 16),
        (4, 32),
        (8, 64),
        (6, 64),
    ]
    assert spec.growth == 32
