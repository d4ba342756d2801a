"""CondenseNet: learning the groups, and the deployed form that computes the same."""

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import cost, layers
from keras_lightnets.layers.learned_group import condensation_stage
from keras_lightnets.tools.condense import condense

TINY = {"rows": None, "classes": 10, "input_shape": (32, 32, 3), "weights": None}


def tiny(**changes):
    rows = keras_lightnets.get_spec("condensenet_cifar_50").rows
    few = tuple(type(rows[0])(row.stage, 2, row.growth) for row in rows)
    return keras_lightnets.CondenseNetCifar50(**{**TINY, "rows": few, **changes})


def learned(model):
    return [la for la in model.layers if isinstance(la, layers.LearnedGroupConv2D)]


def randomise(model):
    random = np.random.RandomState(2)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(random.uniform(-0.3, 0.3, variable.shape))


def images(count=2):
    return np.random.RandomState(0).uniform(0, 255, (count, 32, 32, 3))


@pytest.mark.parametrize(("groups", "factor"), [(4, 4), (2, 4), (8, 2)])
def test_masked_convolution_equals_index_and_groups(groups, factor):
    inputs = keras.Input((3, 5, 16))
    x = layers.BatchNormalization(name="a_bn")(inputs)
    x = keras.layers.ReLU(name="a_act")(x)
    x = layers.learned_group_conv(x, 24, groups, factor, "a")
    model = keras.Model(inputs, x)
    randomise(model)
    learned(model)[0].advance(factor - 1)
    small = condense(model)
    convolution = small.get_layer("a_conv")
    assert convolution.kernel.shape == (1, 1, 16 // factor, 24)
    assert small.get_layer("a_bn").gamma.shape == (16 * groups // factor,)
    x = np.random.RandomState(1).randn(2, 3, 5, 16).astype("float32")
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)


def test_condensed_network_equals_the_trained_one_and_the_deployed_form():
    model = tiny(learned=True)
    randomise(model)
    for layer in learned(model):
        layer.advance(3)
    x = images().astype("float32")
    np.testing.assert_allclose(condense(model)(x), model(x), atol=1e-5)
    small, form = condense(model, "top_classifier"), tiny()
    assert cost.total(small).params == cost.total(form).params
    own = {v.path: v for v in small.weights}
    assert {v.path: tuple(v.shape) for v in form.weights} == {
        path: tuple(v.shape) for path, v in own.items()
    }
    for variable in form.weights:
        variable.assign(own[variable.path])
    np.testing.assert_allclose(form(x), small(x), atol=1e-6)


def test_what_is_not_condensed_to_the_end_is_refused():
    model = tiny(learned=True)
    learned(model)[0].advance(2)
    with pytest.raises(ValueError, match="passed 2 of 3 condensation stages"):
        condense(model)
    with pytest.raises(ValueError, match="no learned group convolution"):
        condense(tiny())


def test_each_stage_drops_the_weakest_inputs_of_each_group():
    layer = layers.LearnedGroupConv2D(4, learned_groups=2, condense=4)
    layer.build((None, 3, 3, 8))
    strength = np.array(
        [[5, 1], [1, 5], [6, 2], [2, 6], [7, 3], [3, 7], [8, 4], [4, 8]]
    )
    layer.kernel.assign(np.tile(strength, 2)[None, None] * [1, -1, -1, 1])
    layer.advance(1)
    assert np.flatnonzero(np.asarray(layer.mask)[:, 0] == 0).tolist() == [1, 3]
    assert np.flatnonzero(np.asarray(layer.mask)[:, 1] == 0).tolist() == [0, 2]
    layer.kernel.assign(np.ones((1, 1, 8, 4)))  # the dropped ones stay dropped
    layer.advance(3)
    assert np.asarray(layer.mask).sum(axis=0).tolist() == [2.0, 2.0]
    assert np.asarray(layer.mask)[[1, 3], 0].tolist() == [0.0, 0.0]


def test_stages_fill_the_first_half_of_training():
    assert [condensation_stage(p / 12, 4) for p in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert condensation_stage(1.0, 8) == 7


def test_training_condenses_and_the_lasso_ends_with_the_last_stage():
    inputs = keras.Input((2, 2, 8))
    x = layers.learned_group_conv(inputs, 4, 2, 4, "a", lasso=0.1)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    (layer,) = learned(model)
    x = np.random.RandomState(0).rand(8, 2, 2, 8).astype("float32")
    kernel = np.asarray(layer.kernel)[0, 0]
    groups = [np.sqrt((kernel[:, g::2] ** 2).sum(1)).sum() for g in (0, 1)]
    model(x)
    assert float(sum(model.losses)) == pytest.approx(0.1 * sum(groups), rel=1e-4)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(int(layer.stage))
    )
    model.compile("sgd", "mse")
    calls = [layers.Condensation(), watch]
    model.fit(x, np.zeros((8, 4)), batch_size=4, epochs=4, callbacks=calls, verbose=0)
    assert seen == [0, 0, 1, 2, 3, 3, 3, 3]
    model(x)
    assert float(sum(model.losses)) == 0.0


def test_training_form_survives_a_file(tmp_path):
    model = tiny(learned=True, lasso=1e-5)
    for layer in learned(model):
        layer.advance(2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = images().astype("float32")
    np.testing.assert_array_equal(again(x), model(x))
    assert [int(la.stage) for la in learned(again)] == [2] * 6


def test_readme_counts_of_cifar():
    """The authors count the whole classifier; the deployed one reads half of it."""

    name = "condensenet_cifar_50"
    model = keras_lightnets.create_model(name, weights=None, classes=10)
    whole = cost.total(model).params + 232 * 10
    assert round(whole / 1e6, 2) == 0.22
