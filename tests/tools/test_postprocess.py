"""The appended post-processing op against numpy, on files made by hand."""

import dataclasses

import numpy as np
import pytest

from keras_lightnets.tools import runtime
from keras_lightnets.tools.export import _flatbuffer, postprocess

SIDE, CHANNELS, PER_CELL = 4, 6, 3
LABELS = ("cat", "dog")
COUNT = 2 * SIDE * SIDE * PER_CELL


def anchors():
    rng = np.random.default_rng(3)
    centre = rng.uniform(0.2, 0.8, (COUNT, 2))
    return np.concatenate([centre, rng.uniform(0.1, 0.4, (COUNT, 2))], 1).astype("f4")


def meta(scores="softmax", **changes):
    made = runtime.Meta(LABELS, (SIDE, SIDE), scores=scores, anchors=anchors())
    return dataclasses.replace(made, **changes)


def quantisation(schema, scales):
    made = schema.QuantizationParametersT()
    made.scale = np.asarray(scales, np.float32)
    made.zeroPoint = np.zeros(len(made.scale), np.int64)
    return made


def conv(editor, source, columns, seed, int8):
    """Add a 1x1 convolution and its reshape; return the reshaped tensor."""
    schema, types = editor.schema, editor.types
    rng = np.random.default_rng(seed)
    filters = PER_CELL * columns
    weights = rng.normal(0, 1, (filters, 1, 1, CHANNELS)).astype("f4")
    bias = rng.normal(0, 1, filters).astype("f4")
    kind = types["INT8"] if int8 else types["FLOAT32"]
    like = schema.TensorT()
    like.type, like.quantization = kind, None
    bias_like = schema.TensorT()
    bias_like.type, bias_like.quantization = types["FLOAT32"], None
    if int8:
        scales = np.abs(weights).reshape(filters, -1).max(1) / 127
        weights = np.rint(weights / scales[:, None, None, None]).astype(np.int8)
        like.quantization = quantisation(schema, scales)
        bias = np.rint(bias / (scales * 0.05)).astype(np.int32)
        bias_like.type = types["INT32"]
        bias_like.quantization = quantisation(schema, scales * 0.05)
    inputs = [source]
    for name, values, row in (("w", weights, like), ("b", bias, bias_like)):
        inputs.append(editor.constant(f"{name}{seed}", values, row))
    made = editor.tensor(f"conv{seed}", (1, SIDE, SIDE, filters), kind)
    op = editor.op("CONV_2D", 3 if int8 else 1, inputs, [made])
    op.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    op.builtinOptions = schema.Conv2DOptionsT()
    op.builtinOptions.padding = schema.Padding.VALID
    for attribute in ("strideW", "strideH", "dilationWFactor", "dilationHFactor"):
        setattr(op.builtinOptions, attribute, 1)
    count = SIDE * SIDE * PER_CELL
    shape = editor.constant(f"shape{seed}", np.asarray([1, count, columns], np.int32))
    editor.graph.tensors[shape].type = types["INT32"]
    flat = editor.tensor(f"flat{seed}", (1, count, columns), kind)
    editor.op("RESHAPE", 1, [made, shape], [flat])
    if int8:
        for tensor in (made, flat):
            editor.graph.tensors[tensor].quantization = quantisation(schema, [0.1])
    return flat


def detector(int8=False, scores="softmax", axis=1):
    """A two-level head on one feature map, without TensorFlow."""
    schema = _flatbuffer.schema()
    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    model.subgraphs = [graph]
    editor = postprocess._Editor(model)
    kind = editor.types["INT8"] if int8 else editor.types["FLOAT32"]
    image = editor.tensor("image", (1, SIDE, SIDE, CHANNELS), kind)
    if int8:
        graph.tensors[image].quantization = quantisation(schema, [0.05])
    graph.inputs, graph.outputs = [image], []
    sizes = {"boxes": 4, "scores": len(LABELS) + (scores == "softmax")}
    for place, (name, columns) in enumerate(sizes.items()):
        parts = [conv(editor, image, columns, 10 * place + k, int8) for k in (1, 2)]
        made = editor.tensor(name, (1, COUNT, columns), kind)
        op = editor.op("CONCATENATION", 2 if int8 else 1, parts, [made])
        op.builtinOptionsType = schema.BuiltinOptions.ConcatenationOptions
        op.builtinOptions = schema.ConcatenationOptionsT()
        op.builtinOptions.axis = axis
        if int8:
            graph.tensors[made].quantization = quantisation(schema, [0.1])
        graph.outputs.append(made)
    return _flatbuffer.pack(model)


def pictures(count=3):
    rng = np.random.default_rng(0)
    if count == 0:
        return []
    return list(rng.integers(0, 256, (count, SIDE, SIDE, CHANNELS)).astype("f4") / 64)


def bytes_pictures():
    rng = np.random.default_rng(0)
    return list(rng.integers(80, 180, (3, SIDE, SIDE, CHANNELS)).astype("f4"))


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("int8", [False, True])
def test_op_equals_numpy(int8, scores):
    raw = detector(int8, scores)
    options = postprocess.Postprocess(max_detections=40, score_threshold=0.3)
    content = postprocess.append(raw, meta(scores), options)
    shown = bytes_pictures() if int8 else pictures()
    result = postprocess.compare(raw, content, meta(scores), shown)
    assert result["unmatched"] == 0
    assert result["detections"] > 20
    assert result["max_box_error"] < 1e-5
    assert postprocess.options_of(content) == options


def test_class_by_class_on_one_thread():
    raw = detector()
    options = postprocess.Postprocess(
        max_detections=40, score_threshold=0.3, regular_nms=True
    )
    content = postprocess.append(raw, meta(), options)
    picture = pictures(1)[0]
    boxes, scores = runtime.TFLiteModel(raw, threads=1).run(picture[None])
    expected = postprocess._expected(boxes[0], scores[0], meta(), options)
    found = runtime.TFLiteModel(content, threads=1).run(picture[None])
    rows = int(found[3][0])
    np.testing.assert_allclose(found[2][0, :rows], expected.scores, atol=1e-6)
    np.testing.assert_array_equal(found[1][0, :rows], expected.labels)


def test_four_outputs_in_the_order_clients_read():
    content = postprocess.append(detector(True), meta())
    graph = _flatbuffer.read(content)
    assert [op.label for op in graph.ops][-1] == postprocess.CUSTOM_OP
    shapes = [tensor.shape for tensor in graph.outputs]
    assert shapes == [(1, 100, 4), (1, 100), (1, 100), (1,)]
    assert {tensor.dtype for tensor in graph.outputs} == {"FLOAT32"}
    model, _ = _flatbuffer.load(content)
    assert model.signatureDefs is None


def test_compare_notices_other_anchors():
    raw = detector()
    content = postprocess.append(raw, meta(anchors=anchors()[::-1]))
    result = postprocess.compare(raw, content, meta(), pictures())
    assert result["unmatched"] > 0


def test_compare_needs_pictures():
    content = postprocess.append(detector(), meta())
    with pytest.raises(ValueError, match="at least one picture"):
        postprocess.compare(detector(), content, meta(), pictures(0))


def test_runtime_reads_the_finished_file(tmp_path):
    raw = detector()
    path = tmp_path / "model.tflite"
    options = postprocess.Postprocess(score_threshold=0.3)
    path.write_bytes(postprocess.append(raw, meta(), options))
    loaded = runtime.Detector(path, postprocess.sidecar(meta()))
    outputs = loaded.model.run(pictures(1)[0][None])
    assert loaded._order == {"boxes": 0, "classes": 1, "scores": 2, "count": 3}
    assert int(outputs[3][0]) > 0


def test_other_sidecar_is_refused():
    with pytest.raises(ValueError, match=r"two outputs, boxes \(1, 7, 4\)"):
        postprocess.append(detector(), meta(anchors=anchors()[:7]))
    with pytest.raises(ValueError, match=r"scores \(1, 96, 2\)"):
        postprocess.append(detector(), meta("sigmoid"))


def test_joined_columns_are_refused():
    with pytest.raises(ValueError, match="joins columns"):
        postprocess.append(detector(axis=2), meta())


def test_finished_file_is_refused():
    content = postprocess.append(detector(), meta())
    with pytest.raises(ValueError, match="needs two outputs"):
        postprocess.append(content, meta())


def test_options_of_a_raw_file():
    with pytest.raises(ValueError, match="does not end in TFLite_Detection"):
        postprocess.options_of(detector())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"score_threshold": 1.0}, r"in \[0, 1\)"),
        ({"iou_threshold": 0.0}, r"in \(0, 1\]"),
    ],
)
def test_options_are_checked(change, text):
    with pytest.raises(ValueError, match=text):
        postprocess.Postprocess(**change)


def test_labels_text():
    assert postprocess.labels_text(["cat", "traffic light"]) == (
        "0 cat\n1 traffic light\n"
    )
    with pytest.raises(ValueError, match="one line of text"):
        postprocess.labels_text(["cat\ndog"])
