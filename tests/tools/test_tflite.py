"""TFLite files: types, names, static shapes, same bytes, options refused."""

import keras
import numpy as np
import pytest
from keras import layers

pytest.importorskip("tf_keras")
pytest.importorskip("ai_edge_litert")

from quant_models import classifier, detector, pictures, settle

from keras_lightnets.tools.export import tflite


@pytest.fixture(scope="module")
def model():
    return settle(detector())


@pytest.fixture(scope="module")
def content(model):
    return tflite.convert(model, "int8", "int8", pictures(4))


def largest_error(content, model, images):
    got = tflite.run(content, images)
    want = model(images.astype("float32"), training=False)
    assert list(got) == list(want)
    return max(
        float(np.abs(got[key] - want[key]).max() / np.abs(want[key]).max())
        for key in want
    )


def op_names(content):
    return [op["op_name"] for op in tflite.interpreter(content)._get_ops_details()]


def test_float32_equals_the_model(model):
    content = tflite.convert(model)
    assert largest_error(content, model, pictures(4)) < 1e-5


def test_float16_is_half_the_size(model):
    content = tflite.convert(model, "float16")
    assert largest_error(content, model, pictures(4)) < 2e-2
    kinds = {
        detail["dtype"] for detail in tflite.interpreter(content).get_tensor_details()
    }
    assert np.float16 in kinds


def test_names_order_and_signature_are_the_models(content):
    made = tflite.interpreter(content)
    assert [d["name"] for d in made.get_input_details()] == ["image"]
    assert [d["name"] for d in made.get_output_details()] == ["scores", "boxes"]
    (signature,) = made.get_signature_list().items()
    assert signature[0] == "serving_default"
    assert signature[1]["inputs"] == ["image"]
    assert sorted(signature[1]["outputs"]) == ["boxes", "scores"]
    runner = made.get_signature_runner("serving_default")
    found = runner(image=np.zeros((1, 32, 32, 3), "int8"))
    assert found["boxes"].shape == (1, 640, 4)
    assert found["scores"].shape == (1, 640, 5)


def test_every_shape_is_static_with_a_batch_of_one(content):
    made = tflite.interpreter(content)
    for detail in made.get_tensor_details():
        assert -1 not in detail["shape_signature"]
    assert list(made.get_input_details()[0]["shape"]) == [1, 32, 32, 3]
    assert not {"SHAPE", "PACK", "STRIDED_SLICE", "TILE"} & set(op_names(content))


@pytest.mark.parametrize(("io", "kind"), [("uint8", np.uint8), ("int8", np.int8)])
def test_integer_io_and_no_float_op(model, content, io, kind):
    if io == "uint8":
        content = tflite.convert(model, "int8", io, pictures(4))
    made = tflite.interpreter(content, "reference")
    ends = made.get_input_details() + made.get_output_details()
    assert {detail["dtype"] for detail in ends} == {kind}
    kinds = {detail["dtype"] for detail in made.get_tensor_details()}
    assert kinds <= {np.int8, np.uint8, np.int32}
    assert "HARD_SWISH" not in op_names(content)


def test_same_model_gives_the_same_bytes(model, content):
    assert tflite.convert(model, "int8", "int8", pictures(4)) == content


def test_outputs_beyond_ten_keep_their_order():
    image = keras.Input((8, 8, 3), name="image")
    outputs = {
        f"part{12 - i}": layers.Rescaling(i + 1.0, name=f"scale{i}")(image)
        for i in range(12)
    }
    model = keras.Model(image, outputs)
    found = tflite.run(tflite.convert(model), np.ones((1, 8, 8, 3), "float32"))
    assert list(found) == list(outputs)
    for i, value in enumerate(found.values()):
        assert value.mean() == pytest.approx(i + 1.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "int9"}, "Unknown TFLite kind 'int9'. Did you mean 'int8'"),
        ({"kind": "int8", "io": "uint4"}, "Unknown io 'uint4'"),
        ({"kind": "float32", "io": "uint8"}, "needs kind='int8'"),
        ({"kind": "int8"}, "needs calibration"),
    ],
)
def test_options_refused(model, options, text):
    with pytest.raises(ValueError, match=text):
        tflite.convert(model, **options)


def test_unknown_size_is_refused():
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, layers.Conv2D(2, 3)(image))
    with pytest.raises(ValueError, match="fixed sizes"):
        tflite.convert(model)


def test_unknown_kernels_are_refused(model):
    with pytest.raises(ValueError, match="Unknown kernels 'gpu'"):
        tflite.run(tflite.convert(classifier()), pictures(1), kernels="gpu")
