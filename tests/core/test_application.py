"""Arguments of the applications: legal ones work, the others are explained."""

import inspect

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost

SMALL = {"weights": None, "width": 0.25, "input_shape": (64, 64, 3)}


def small(**changes):
    return keras_lightnets.MobileNetV1(**{**SMALL, **changes})


def test_signature_starts_like_keras_applications():
    theirs = list(inspect.signature(keras.applications.MobileNetV3Small).parameters)
    ours = list(inspect.signature(keras_lightnets.MobileNetV3Small).parameters)
    shared = [name for name in theirs if name in ours]
    assert ours[:8] == [
        "include_top",
        "weights",
        "input_tensor",
        "input_shape",
        "pooling",
        "classes",
        "classifier_activation",
        "name",
    ]
    assert set(ours[:8]) <= set(shared)


def test_wrong_arguments_list_the_legal_ones():
    cases = {
        "pooling": ({"pooling": "agv", "include_top": False}, "avg, max"),
        "endpoint": ({"endpoints": ("c6",)}, "c1, c2, c3, c4"),
        "a tuple": ({"endpoints": "c3"}, "must be a tuple of names"),
        "output_stride": ({"output_stride": 4}, "32, 16, 8"),
        "option": ({"widht": 0.5}, "Did you mean 'width'"),
        "height": ({"input_shape": (64, 64)}, "(height, width, channels)"),
        "small": ({"input_shape": (16, 64, 3)}, "at least 32"),
        "tensor": ({"input_tensor": 3}, "must be a Keras tensor"),
        "width": ({"width": 0}, "positive channel multiplier"),
    }
    for name, (arguments, text) in cases.items():
        with pytest.raises(ValueError) as caught:
            small(**arguments)
        assert text in str(caught.value), name


def test_pooling_and_no_top_shapes():
    shapes = {
        None: (None, 2, 2, 256),
        "avg": (None, 256),
        "max": (None, 256),
    }
    found = {p: small(include_top=False, pooling=p).output_shape for p in shapes}
    assert found == shapes


def test_endpoints_are_a_dict_that_survives_clone_and_file(tmp_path):
    model = small(endpoints=("c2", "c5", "logits"), classes=7)
    assert model.output["logits"].shape == (None, 7)
    clone = keras.models.clone_model(model)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    want, got = model(x), loaded(x)
    assert set(clone.output) == set(want) == set(got) == {"c2", "c5", "logits"}
    for key in want:
        np.testing.assert_array_equal(want[key], got[key])


def test_input_tensor_is_built_upon():
    inputs = keras.Input((64, 64, 3), name="camera")
    model = small(input_tensor=inputs * 2.0, input_shape=None, classes=3)
    assert model.inputs[0] is inputs
    assert model.output_shape == (None, 3)


def test_contradicting_input_shape_is_refused():
    with pytest.raises(ValueError, match="contradicts the shape"):
        small(input_tensor=keras.Input((96, 96, 3)))


def test_preprocessing_in_the_graph_equals_preprocess_input():
    keras.utils.set_random_seed(1)
    inside = small(classes=5)
    keras.utils.set_random_seed(1)
    outside = small(classes=5, include_preprocessing=False)
    outside.set_weights(inside.get_weights())
    x = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    prepare = keras_lightnets.mobilenet_v1.preprocess_input
    ready = prepare(x, include_preprocessing=False, name=inside.name)
    np.testing.assert_allclose(outside(ready), inside(prepare(x)), atol=1e-5)
    assert abs(ready).max() < 3


def test_a_change_that_is_a_registered_variant_finds_it():
    by_width = keras_lightnets.MobileNetV1(weights=None, width=0.5)
    by_name = keras_lightnets.create_model("mobilenet_v1_050", weights=None)
    assert by_width.count_params() == by_name.count_params()
    assert by_width.name == by_name.name == "mobilenet_v1_050"


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="channels_last networks only"):
            small()
    finally:
        keras.config.set_image_data_format("channels_last")


def test_unknown_names_suggest_the_closest():
    with pytest.raises(ValueError, match="Did you mean 'ghostnet"):
        keras_lightnets.create_model("gostnet")
    with pytest.raises(AttributeError, match="GhostNet"):
        _ = keras_lightnets.GostNet


def test_decode_predictions_names_classes():
    decode = keras_lightnets.ghostnet.decode_predictions
    assert decode(np.eye(1, 1000, 2), top=1)[0][0][1] == "great white shark"
    with pytest.raises(ValueError, match="shape \\(batch, 1000\\)"):
        decode(np.eye(1, 10))


def test_cost_counts_what_papers_count():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Conv2D(8, 1, groups=2)(x)
    x = keras.layers.Dense(5)(keras.layers.Flatten()(x))
    whole = cost.total(keras.Model(inputs, x))
    conv, depthwise, grouped, dense = (
        16 * 6 * 9 * 4,
        16 * 9 * 6,
        16 * 8 * 3,
        16 * 8 * 5,
    )
    assert whole.madds == conv + depthwise + grouped + dense
    assert whole.params == 216 + 12 + (54 + 6) + (24 + 8) + (640 + 5)
    assert whole.activation_bytes == 4 * 16 * 8


def test_cost_needs_a_size():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ValueError, match="Give an input_shape"):
        cost.costs(model)
    assert cost.total(model, (6, 5, 3)).madds == 4 * 3 * 9 * 3 * 4
    for wrong in ((6, 5, 1), (6, 5), (6, None, 3)):
        with pytest.raises(ValueError, match=r"takes \(None, None, 3\).* Received"):
            cost.costs(model, wrong)
    fixed = keras.Model(i := keras.Input((6, 5, 3)), model(i))
    with pytest.raises(ValueError, match=r"takes \(6, 5, 3\)"):
        cost.costs(fixed, (8, 8, 3))


def test_cost_at_another_size_is_that_of_a_network_built_for_it():
    """Through a model inside a model, a layer used twice and a plain operation."""
    inner_input = keras.Input((None, None, 4))
    inner = keras.layers.Conv2D(4, 3, padding="same")(inner_input)
    inner = keras.Model(inner_input, inner, name="inner")
    twice = keras.layers.DepthwiseConv2D(3, name="twice")

    def build(side):
        inputs = keras.Input((side, side, 3))
        x = keras.layers.Conv2D(4, 3, strides=2)(inputs)
        x = twice(twice(inner(inner(x)) * 2.0))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(5, name="dense")(x))

    found = cost.costs(build(None), (21, 21, 3))
    expected = cost.costs(build(21))
    facts = [(r.shape, r.params, r.madds, r.activation_bytes) for r in found]
    assert facts == [(r.shape, r.params, r.madds, r.activation_bytes) for r in expected]
    assert [row.name for row in found].count("twice") == 2


def test_preprocess_input_knows_variants_and_weights():
    prepare = keras_lightnets.mobilenet_v2.preprocess_input
    grey = np.full((1, 2, 2, 3), 255.0, "float32")
    half = prepare(grey, include_preprocessing=False, name="mobilenet_v2_035")
    np.testing.assert_allclose(half, 1.0, atol=1e-6)
    assert prepare(grey, include_preprocessing=False).max() > 2
    with pytest.raises(ValueError, match="Did you mean 'mobilenet_v2_035'"):
        prepare(grey, include_preprocessing=False, name="mobilenet_v2_03")
    with pytest.raises(ValueError, match="Unknown weights"):
        prepare(grey, include_preprocessing=False, weights="nobody")


class Foreign(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def test_a_file_of_unknown_classes_is_an_error_in_words(tmp_path):
    image = keras.Input((4,))
    keras.Model(image, Foreign()(image)).save(tmp_path / "foreign.keras")
    with pytest.raises(ValueError, match="Could not locate class 'Foreign'") as caught:
        keras_lightnets.load_model(tmp_path / "foreign.keras")
    assert str(caught.value).startswith(str(tmp_path))
    assert "config" not in str(caught.value)


def test_what_is_no_model_file_is_an_error_in_words(tmp_path):
    cut, other = tmp_path / "cut.keras", tmp_path / "model.py"
    for path in (cut, other):
        path.write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match=r"is none, or was cut off"):
            keras_lightnets.load_model(path)
    with pytest.raises(ValueError, match=r"\.h5 file .* does not exist"):
        keras_lightnets.load_model(tmp_path / "none.keras")
