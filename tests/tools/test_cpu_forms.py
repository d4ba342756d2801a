"""Forms for XNNPACK: equal in float, and an int8 file in one part."""

import keras
import numpy as np
import pytest
from keras import layers, ops

pytest.importorskip("tf_keras")
pytest.importorskip("ai_edge_litert")

from quant_models import pictures, settle

from keras_lightnets.layers import BatchNormalization, BlurPool, SelectChannels
from keras_lightnets.layers.shuffle import channel_shuffle
from keras_lightnets.tools.export import cpu, opened, tflite, verify
from keras_lightnets.tools.quantize import _passes, bridge, ptq, qat

SIDE, MEAN, STD = 16, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def relu_of_two_readers(x):
    return layers.Add()([layers.ReLU(6.0)(x), x])


def prelu(x):
    slopes = keras.initializers.RandomUniform(-0.5, 1.0, seed=1)
    return layers.PReLU(slopes, shared_axes=[1, 2])(x)


def gathered(x):
    taken = SelectChannels([5, 0, 3, 3])(x)
    both = layers.Concatenate()([SelectChannels([7, 1, 2, 4])(x), taken])
    return layers.Conv2D(8, 1, groups=2)(SelectChannels([6, 1, 0, 3, 7, 2, 5, 4])(both))


def gated(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Activation("hard_sigmoid")(layers.Conv2D(8, 1)(gate))
    return layers.Multiply()([layers.Activation("hard_swish")(x), gate])


def padded_pool(x):
    return layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(layers.ReLU()(x)))


def shuffled(x):
    for i in range(2):
        x = layers.Conv2D(8, 1, groups=4, name=f"groups{i}")(x)
        x = channel_shuffle(x, 4, f"swap{i}")
    return layers.ReLU()(BatchNormalization()(x))


def moved(x):
    """Two moves of channels in a row, without a convolution beside them."""
    x = layers.Add()([x, layers.Conv2D(8, 1, name="summand")(x)])
    x = channel_shuffle(channel_shuffle(x, 4, "first"), 2, "second")
    return layers.DepthwiseConv2D(3, padding="same")(x)


def selected(x):
    """Two branches weighed per channel by weights that sum to one, as in SKNet."""
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Reshape((2, 8))(layers.Conv2D(16, 1, name="select")(y))
    y = layers.Softmax(axis=1)(y)
    gates = [
        layers.Reshape((1, 1, 8))(layers.Cropping1D((i, 1 - i))(y)) for i in (0, 1)
    ]
    branches = [x, layers.Conv2D(8, 1, name="other")(x)]
    pairs = zip(branches, gates, strict=True)
    return layers.Add()([layers.Multiply()(list(pair)) for pair in pairs])


def thin(x):
    """Two averages of one channel, with the same kernel; one behind a convolution."""
    x = layers.Conv2D(1, 1, name="thin")(x)
    y = layers.AveragePooling2D(2)(layers.Conv2D(1, 3, padding="same", name="more")(x))
    x = layers.Conv2D(1, 3, padding="same", name="last")(layers.AveragePooling2D(2)(x))
    return layers.Concatenate()([x, y])


def closed(x):
    """A gate behind units that no picture of the calibration set opens."""
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(4, 1, name="squeeze")(y)
    y = layers.ReLU()(layers.Rescaling(1.0, -1000.0)(y))
    y = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(y)
    return layers.Multiply()([x, y])


def cut(x):
    """A sum of which a ReLU6 keeps less than a step of its summands."""
    large = layers.Rescaling(1000.0)
    parts = [layers.Conv2D(8, 1, name=f"part{i}")(large(x)) for i in "12"]
    return layers.Conv2D(8, 1, name="behind")(layers.ReLU(6.0)(layers.Add()(parts)))


# What stands between two convolutions of 8 channels.
FORMS = {
    "average": layers.AveragePooling2D(2),
    "average, padded": lambda x: layers.AveragePooling2D(3, 2)(
        layers.ZeroPadding2D(1)(x)
    ),
    "averages of one channel": thin,
    "every second value": layers.MaxPooling2D(1, 2),
    "padded pooling": padded_pool,
    "prelu": prelu,
    "prelu of nothing negative": lambda x: prelu(layers.ReLU()(x)),
    "moved channels": moved,
    "maximum": lambda x: layers.Maximum()([x, layers.Conv2D(8, 1)(x)]),
    "minimum": lambda x: ops.minimum(x, layers.Conv2D(8, 1)(x)),
    "gather": gathered,
    "nearest": layers.UpSampling2D((2, 3), interpolation="nearest"),
    "relu": relu_of_two_readers,
    "seven": lambda x: layers.Concatenate()(
        [layers.Conv2D(2, 1)(x) for _ in "1234567"]
    ),
    "gate": gated,
    "closed gate": closed,
    "sum far above its clamp": cut,
    "selective kernel": selected,
    "shuffled groups": shuffled,
    "blur": BlurPool(),
    "windows": layers.AdaptiveAveragePooling2D(4),
    "copies": layers.AdaptiveAveragePooling2D(16),
    "small groups": lambda x: layers.Conv2D(8, 3, groups=4, padding="same")(x),
    "groups of one": lambda x: layers.Conv2D(16, (1, 3), groups=8, name="one")(x),
}


def network(form):
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Normalization(mean=MEAN, variance=np.square(STD), name="norm")(image)
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.Conv2D(8, 3, 2, name="stem")(x)
    x = layers.Conv2D(8, 3, padding="same", name="top")(form(x))
    return settle(keras.Model(image, {"map": x}))


def folded(model):
    graph = bridge.to_graph(model).copy()
    _passes.fold_norms(graph)
    _passes.fold_shifts(graph)
    _passes.fold_input(graph, raw=True)
    _passes.bake(graph)
    return graph


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_equal_in_float(form):
    model = network(form)
    graph = folded(model)
    for change in cpu.INT8:
        change(graph)
    twin, _ = bridge.emit(graph)
    batch = pictures(2, SIDE)
    found = np.asarray(twin(ptq.to_real(batch, graph))["map"])
    expected = np.asarray(model(batch.astype("float32"))["map"])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# One of each kind of change; the float test above sees them all.
CONVERTED = (
    *("average, padded", "prelu", "gather"),
    *("closed gate", "sum far above its clamp", "selective kernel", "small groups"),
)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(f, id=name, marks=() if name in CONVERTED else pytest.mark.export)
        for name, f in FORMS.items()
    ],
)
def test_int8_file_in_one_part(form):
    model = network(form)
    samples = pictures(8, SIDE)
    content = tflite.convert(model, "int8", "int8", samples)
    file = opened.TFLiteFile(content)
    assert (file.xnnpack_partitions, file.float_ops) == (1, ())
    assert file.xnnpack_outside == ()
    assert verify.verify(content, model, samples[:2], "int8").problems == ()


@pytest.mark.export
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_trained_int8_file_in_one_part(form):
    """Joined maps take the range of the whole: the one in front has none of its own."""

    def joined(x):
        y = form(x)
        more = [(0, y.shape[i] - x.shape[i]) for i in (1, 2)]
        beside = layers.ZeroPadding2D([np.maximum(ends, 0) for ends in more])(x)
        beside = layers.Cropping2D([np.maximum(np.negative(e), 0) for e in more])(
            beside
        )
        return layers.Concatenate()([y, layers.Conv2D(4, 1)(beside)])

    made = qat.prepare(network(joined), [pictures(8, SIDE)])
    file = opened.TFLiteFile(tflite.convert(made, "int8", "int8"))
    assert (file.xnnpack_partitions, file.float_ops) == (1, ())


def test_factors_of_gates_leave_no_operation():
    graph = folded(network(gated))
    for change in cpu.INT8:
        change(graph)
    kinds = [step.kind for step in graph]
    assert "scale" not in kinds
    assert kinds.count("multiply") == 2


def test_linear_runs_become_one_convolution():
    graph = folded(network(shuffled))
    plain = len(graph.steps)
    cpu.linear.multiply_out(graph)
    assert [step.kind for step in graph].count("conv") == 3
    # Two groups, two shuffles of three operations and a factor are one convolution.
    assert len(graph.steps) == plain - 8


def test_trained_kernels_are_not_multiplied():
    """Each of them keeps the rounding that it was trained with."""
    graph = folded(network(shuffled))
    for step in graph:
        step.range = (-1.0, 1.0)
    cpu.linear.multiply_out(graph)
    assert [step.kind for step in graph].count("conv") == 4


def test_groups_are_joined_until_they_fill_blocks():
    kernel = np.ones((3, 3, 2, 200), "float32")
    assert cpu.linear.best_join(200, 200, 100, taps=9)[0] == 4
    joined = cpu.groups.join(kernel, 100, 4)
    assert joined.shape == (3, 3, 8, 200)
    assert joined.sum() == kernel.sum()
    # Wide groups stay: joined ones would only multiply zeros.
    assert cpu.linear.best_join(240, 240, 3)[0] == 1


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(
    ("size", "side"), [(2, 16), (3, 16), (5, 16), (3, 17), (7, 19)]
)
def test_paired_columns(size, side, padding):
    keras.utils.set_random_seed(0)
    image = keras.Input((side, side, 3), name="image")
    x = layers.ZeroPadding2D(padding)(image) if padding else image
    model = keras.Model(image, layers.Conv2D(4, size, 2)(x))
    graph = bridge.to_graph(model).copy()
    cpu.picture.pair_columns(graph)
    assert any(step.shape[-1] == 6 for step in graph)
    twin, _ = bridge.emit(graph)
    batch = pictures(2, side).astype("float32")
    expected = np.asarray(model(batch))
    error = np.abs(np.asarray(twin(batch)) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()


def test_a_split_file_is_a_problem_in_words():
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(8, 3, name="stem")(image)
    x = layers.Softmax(name="middle")(x)
    model = keras.Model(image, {"map": layers.Conv2D(8, 3, name="top")(x)})
    samples = pictures(4, SIDE)
    content = tflite.convert(model, "int8", "int8", samples)
    found = verify.verify(content, model, samples[:1], "int8")
    assert found.xnnpack_partitions == 2
    (problem,) = [text for text in found.problems if "XNNPACK" in text]
    assert "2 parts" in problem
    assert "SOFTMAX" in problem
    float_file = tflite.convert(model)
    assert verify.verify(float_file, model, samples[:1], "float32").problems == ()
