"""Lowering for a target: equal in float, and only operations that it runs."""

from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers

pytest.importorskip("tf_keras")
pytest.importorskip("ai_edge_litert")

from ai_edge_litert.interpreter import Interpreter, OpResolverType
from quant_models import exactly, pictures, settle

from keras_lightnets.layers import SelectChannels, channel_shuffle, channel_split
from keras_lightnets.layers.channelwise import channelwise_conv
from keras_lightnets.tools.export import (
    _flatbuffer,
    edgetpu,
    lower,
    opened,
    tflite,
)
from keras_lightnets.tools.export.lower import cost, steps
from keras_lightnets.tools.quantize import _passes, bridge
from keras_lightnets.tools.quantize._graph import Graph, Step

SIDE = 8


def conv(x, filters, kernel, name, groups=1, strides=1):
    x = layers.Conv2D(
        filters, kernel, strides, "same", groups=groups, use_bias=False, name=name
    )(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def depthwise(x, name):
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def shuffle_unit(x):
    y = layers.ReLU(name="squeeze_act")(conv(x, 12, 1, "squeeze", groups=3))
    y = depthwise(channel_shuffle(y, 3, "unit"), "middle")
    y = conv(y, 24, 1, "expand", groups=3)
    return layers.ReLU(name="sum_act")(layers.Add(name="sum")([x, y]))


def split_units(x):
    for i in range(3):
        kept, y = channel_split(x, f"unit{i}")
        y = layers.ReLU(name=f"a{i}_act")(conv(y, 12, 1, f"a{i}"))
        y = conv(depthwise(y, f"b{i}"), 12, 1, f"c{i}")
        y = layers.ReLU(name=f"c{i}_act")(y)
        x = layers.Concatenate(name=f"join{i}")([kept, y])
        x = channel_shuffle(x, 2, f"mix{i}")
    return x


def interleaved(x):
    x = layers.Conv2D(24, 3, padding="same", groups=12, use_bias=False, name="a")(x)
    x = channel_shuffle(x, 12, "there")
    x = layers.Conv2D(24, 1, groups=2, use_bias=False, name="b")(x)
    x = channel_shuffle(x, 2, "back")
    return layers.ReLU(name="act")(layers.BatchNormalization(name="bn")(x))


def repeated_channels(x):
    """Each taken channel has its own normalisation, so that copies differ."""
    x = SelectChannels(indices=[5, 0, 0, 23, 7, 5, 1, 2], name="select")(x)
    x = layers.ReLU(name="act")(layers.BatchNormalization(name="bn")(x))
    return conv(x, 8, 1, "mix", groups=4)


def along_channels(x):
    x = channelwise_conv(x, 5, 2, "wide")
    return layers.ReLU(name="act")(layers.BatchNormalization(name="bn")(x))


def gated(x):
    """A shuffle in front of a gate, its other input an unshuffled convolution."""
    y = channel_shuffle(conv(x, 24, 1, "a"), 4, "mix")
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(y)
    gate = layers.Conv2D(24, 1, activation="hard_sigmoid", name="gate")(gate)
    y = layers.Multiply(name="gated")([y, gate])
    y = layers.Maximum(name="largest")([y, conv(x, 24, 1, "b")])
    return layers.Activation("hard_silu", name="act")(y)


def padded(x):
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="even_pad")(x)
    x = layers.Conv2D(8, 3, 2, use_bias=False, name="even")(x)
    x = layers.ZeroPadding2D(1, name="odd_pad")(x)
    return layers.Conv2D(8, 3, 2, use_bias=False, name="odd")(x)


def channel_by_channel(x):
    x = layers.MaxPooling2D(4, name="pool")(x)
    x = layers.Permute((3, 1, 2), name="swap")(x)
    return layers.Dense(5, name="logits")(layers.Flatten(name="flat")(x))


def both_outputs(x):
    x = channel_shuffle(layers.ReLU(name="act")(conv(x, 24, 1, "a")), 3, "mix")
    return [x, conv(x, 8, 1, "b")]


UNITS = {
    unit.__name__: unit
    for unit in (
        shuffle_unit, split_units, interleaved, repeated_channels, along_channels,
        gated, padded, channel_by_channel, both_outputs,
    )
}  # fmt: skip


def model_of(unit, channels=24):
    keras.utils.set_random_seed(3)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(channels, 3, padding="same", name="stem")(image)
    x = layers.ReLU(name="stem_act")(x)
    return settle(keras.Model(image, unit(x)))


def folded(model):
    graph = bridge.to_graph(model).copy()
    _passes.fold_norms(graph)
    _passes.bake(graph)
    return graph


def lowered(model, target="edgetpu"):
    return lower.lower(folded(model), target)


def difference(model, graph):
    """Largest difference of an output, in shares of its largest value."""
    images = pictures(2, SIDE).astype("float32") / 255 - 0.5
    twin, _ = bridge.emit(graph, batch=2)
    want, got = model(images, training=False), twin(images, training=False)
    if not isinstance(want, list):
        want, got = [want], [got]
    return max(
        np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(a)).max()
        for a, b in zip(want, got, strict=True)
    )


def check_kinds(graph):
    kinds = Counter(step.kind for step in graph)
    assert not kinds["permute"] + kinds["gather"]
    assert all(step.config.get("groups", 1) == 1 for step in graph)
    return kinds


@pytest.mark.parametrize("name", UNITS)
def test_lowered_network_equals_the_network(name):
    model = model_of(UNITS[name])
    graph = lowered(model)
    check_kinds(graph)
    assert difference(model, graph) < 1e-5


@pytest.mark.parametrize("target", lower.TARGETS)
def test_wide_depthwise_convolutions_are_cut(target):
    """TensorFlow's kernel, which also calibrates, does not return at 4833 channels."""

    def wide(x):
        x = layers.Conv2D(2 * lower.groups.WIDEST + 1, 1, name="expand")(x)
        x = layers.DepthwiseConv2D(3, 2, "same", name="wide")(x)
        return layers.Conv2D(4, 1, name="project")(layers.ReLU(6.0)(x))

    model = model_of(wide, channels=4)
    graph = lowered(model, target)
    parts = [step for step in graph if step.kind == "depthwise"]
    assert sorted(step.shape[-1] for step in parts) == [3221, 3222, 3222]
    assert difference(model, graph) < 1e-5
    content = tflite.convert(model, "int8", "int8", pictures(2, SIDE), target)
    assert opened.float_ops(_flatbuffer.read(content)) == ()
    if target == "cpu":
        assert opened.TFLiteFile(content).xnnpack_partitions == 1


def test_the_widest_uncut_depthwise_convolution_runs_without_delegates():
    image = keras.Input((2, 2, 3), name="image")
    x = layers.Conv2D(lower.groups.WIDEST, 1)(image)
    model = keras.Model(image, layers.DepthwiseConv2D(2)(x))
    content = tflite.convert(model)
    assert [op.name for op in _flatbuffer.read(content).ops].count("CONCATENATION") == 0
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    pixels = pictures(1, 2).astype("float32")
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    expected = np.asarray(model(pixels, training=False))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["shuffle_unit", "split_units", "both_outputs"])
def test_onnx_takes_channels_in_kernels_or_by_one_gather(name):
    model = model_of(UNITS[name])
    graph = folded(model)
    groups = [step.config.get("groups", 1) for step in graph]
    for change in lower.ONNX:
        change(graph)
    kinds = Counter(step.kind for step in graph)
    assert not kinds["reshape"] + kinds["crop"]
    assert kinds["permute"] == 2 * kinds["gather"]
    assert all(len(step.shape) == 4 for step in graph)
    assert sum(step.config.get("groups", 1) for step in graph) <= sum(groups)
    assert difference(model, graph) < 1e-5


def random_unit(seed):
    """Blocks drawn at random: groups, shuffles, splits, gates, selections."""
    rng = np.random.default_rng(seed)

    def unit(x):
        for i in range(6):
            size = x.shape[-1]
            kind = rng.choice(["groups", "shuffle", "split", "sum", "select", "pool"])
            if kind == "groups":
                groups = int(rng.choice([2, 3, size]))
                x = conv(x, size, int(rng.choice([1, 3])), f"conv{i}", groups=groups)
            elif kind == "shuffle":
                x = channel_shuffle(x, int(rng.choice([2, 3, 4])), f"mix{i}")
            elif kind == "split":
                kept, y = channel_split(x, f"cut{i}", left=size // 2)
                y = layers.ReLU(name=f"cut{i}_act")(depthwise(y, f"dw{i}"))
                x = layers.Concatenate(name=f"join{i}")([y, kept])
            elif kind == "sum":
                y = channel_shuffle(conv(x, size, 1, f"part{i}"), 2, f"part{i}_mix")
                x = layers.Add(name=f"sum{i}")([x, y])
            elif kind == "select":
                index = [int(k) for k in rng.integers(0, size, 24)]
                x = SelectChannels(indices=index, name=f"select{i}")(x)
            else:
                x = layers.ReLU(6.0, name=f"act{i}")(x)
                x = layers.AveragePooling2D(3, 1, "same", name=f"pool{i}")(x)
        return conv(x, 4, 1, "last")

    return unit


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_stay_equal(seed):
    model = model_of(random_unit(seed))
    graph = lowered(model)
    check_kinds(graph)
    assert difference(model, graph) < 1e-5


def test_shuffles_leave_no_operation():
    before = Counter(step.kind for step in bridge.to_graph(model_of(shuffle_unit)))
    kinds = check_kinds(lowered(model_of(shuffle_unit)))
    assert before["reshape"] == 2
    assert kinds["reshape"] == kinds["slice"] == kinds["concat"] == 0
    assert kinds["conv"] == before["conv"]


def test_norm_behind_a_shuffle_is_part_of_the_convolution():
    kinds = check_kinds(lowered(model_of(interleaved)))
    assert kinds == {"conv": 3, "relu": 2}


def test_padding_that_fuses_is_gone_and_other_padding_stays():
    graph = lowered(model_of(padded))
    pads = [step.name for step in graph if step.kind == "zero_pad"]
    assert pads == ["odd_pad"]
    assert graph.steps["even"].config["padding"] == "same"


def test_cpu_joins_groups_that_are_smaller_than_its_blocks():
    model = model_of(shuffle_unit)
    graph = lowered(model, "cpu")
    assert graph.steps["squeeze"].config["groups"] == 1
    assert difference(model, graph) < 1e-5


def test_narrow_groups_are_joined_and_wide_ones_cut():
    assert cost.best_parts((4, 32, 32), 1, (49, 49), False)[1] == 1
    assert cost.best_parts((4, 1024, 1024), 9, (196, 196), False)[1] == 4
    # Bytes that come over USB weigh more than an operation more.
    sizes, taps, area = (8, 256, 256), 9, (49, 49)
    cached = cost.best_parts(sizes, taps, area, False)[1]
    assert cost.best_parts(sizes, taps, area, True)[1] > cached


def test_cut_convolution_equals_the_whole(monkeypatch):
    """Forced: at this size a single convolution would cost less."""
    monkeypatch.setattr(cost, "best_parts", lambda *_: (0.0, 3))
    model = model_of(shuffle_unit)
    graph = lowered(model)
    kinds = check_kinds(graph)
    assert kinds["slice"] >= 3
    assert difference(model, graph) < 1e-5
    # The ReLU stands in front of the concatenation, where it fuses.
    joined = [step for step in graph if step.kind == "concat"]
    assert {graph.steps[name].kind for name in joined[0].inputs} <= {"relu", "conv"}


def test_dense_kernel_has_zeros_between_groups():
    kernel = np.arange(1, 13, dtype="float32").reshape(1, 1, 2, 6)
    made = steps.dense_kernel(kernel, 3)[0, 0]
    assert made.shape == (6, 6)
    np.testing.assert_array_equal(made[2:4, 2:4], kernel[0, 0, :, 2:4])
    assert np.count_nonzero(made) == 12


def test_steps_come_in_order_and_unread_ones_go():
    def step(name, *inputs):
        return Step(name, "relu", inputs, shape=(None, 2, 2, 1))

    made = [step("c", "b"), step("unread", "a"), step("b", "a"), step("a", "image")]
    graph = Graph(
        "g", {"image": (None, 2, 2, 1)}, {s.name: s for s in made}, {"o": "c"}, "tensor"
    )
    steps.settle(graph)
    assert list(graph.steps) == ["a", "b", "c"]


def test_unknown_target_is_refused():
    model = model_of(padded)
    with pytest.raises(ValueError, match="tpu.*edgetpu"):
        lower.lower(bridge.to_graph(model), "tpu")
    with pytest.raises(ValueError, match="tpu.*edgetpu"):
        tflite.convert(model, "int8", "int8", pictures(1), "tpu")


def everything(x):
    x = interleaved(shuffle_unit(x))
    x = split_units(x)
    x = layers.Activation("hard_silu", name="top_act")(gated_end(x))
    return channel_by_channel(x)


def gated_end(x):
    return channel_shuffle(conv(x, 24, 1, "end"), 4, "end_mix")


def test_int8_file_is_mapped_whole():
    model = model_of(everything)
    samples = pictures(4, SIDE).astype("float32") / 255 - 0.5
    content = tflite.convert(model, "int8", "int8", samples, "edgetpu")
    found = edgetpu.verdict(content, compiler=False)
    assert found.all_mapped, found.table()
    got = tflite.run(content, samples)
    want = np.asarray(model(samples, training=False))
    (array,) = got.values()
    assert np.abs(array - want).mean() < 0.05 * np.abs(want).max()


@pytest.fixture(scope="module")
def trained():
    """A network with shuffles and groups, prepared for int8 as it is published."""
    keras.utils.set_random_seed(3)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 128, -127 / 128, name="normalise")(image)
    x = layers.Conv2D(24, 3, padding="same", name="stem")(x)
    x = shuffle_unit(layers.ReLU(name="stem_act")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(split_units(x))
    model = settle(keras.Model(image, layers.Dense(5, name="logits")(x)))
    from keras_lightnets.tools.quantize import qat

    return model, qat.prepare(model, [pictures(16, SIDE), pictures(16, SIDE, seed=1)])


@pytest.mark.export
def test_lowered_file_of_a_trained_model_gives_the_same_bytes(trained, monkeypatch):
    """Scales stay with their channels: it rounds as the published form does."""
    made = trained[1]
    monkeypatch.setitem(lower.TARGETS, "published", (_passes.expand_hard_swish,))
    plain = tflite.convert(made, "int8", "int8", target="published")
    content = tflite.convert(made, "int8", "int8", target="edgetpu")
    found = edgetpu.verdict(content, compiler=False)
    assert found.all_mapped, found.table()
    images = pictures(16, SIDE, seed=7)
    (got,) = tflite.run(content, images, "reference", dequantise=False).values()
    (want,) = tflite.run(plain, images, "reference", dequantise=False).values()
    assert got.dtype == np.int8
    assert int(want.max()) - int(want.min()) > 100
    np.testing.assert_array_equal(got, want)


@pytest.mark.export
def test_trained_weights_go_back_as_they_are(trained):
    """Training sees the network as it is published: no weight is permuted."""
    model, made = trained
    before = made.source_weights()
    tflite.convert(made, "int8", "int8", target="edgetpu")
    after = made.source_weights()
    assert before.keys() == after.keys()
    kernel = np.asarray(model.get_layer("squeeze").kernel)
    assert after["squeeze"]["kernel"].shape == kernel.shape
    for name, weights in before.items():
        for role, array in weights.items():
            np.testing.assert_array_equal(after[name][role], array)
    copy = keras.models.clone_model(model)
    bridge.copy_back(made, copy)
    np.testing.assert_allclose(copy.get_layer("squeeze").kernel, kernel, atol=1e-6)


@pytest.mark.export
@pytest.mark.parametrize(
    "name",
    [
        "shufflenet_v1_g3_025", "shufflenet_v2_050", "mobilenet_v3_small", "igcv2_025",
        "igcv3_025", "condensenet_cifar_50", "channelnet_v3", "micronet_m0",
    ],
)  # fmt: skip
def test_network_is_mapped_whole(name, tmp_path):
    """Written through the export format, from its smallest variant."""
    import keras_lightnets
    from keras_lightnets.tools.export import formats

    keras.utils.set_random_seed(0)
    side = 32 if "cifar" in name else 64
    model = settle(
        keras_lightnets.create_model(
            name, weights=None, input_shape=(side, side, 3), classifier_activation=None
        )
    )
    graph = lowered(model)
    check_kinds(graph)
    twin, _ = bridge.emit(graph, batch=2)
    assert exactly(model, pictures(2, side), twin) < 1e-5
    path = tmp_path / "model.tflite"
    made = formats.export(model, "edgetpu", path, list(pictures(4, side)))
    content = path.read_bytes()
    found = edgetpu.verdict(content, compiler=False)
    assert found.all_mapped, found.table()
    assert made.ops["CONV_2D"] > 0
