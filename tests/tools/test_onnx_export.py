"""ONNX files: converted, run in onnxruntime and OpenVINO, compared."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_lightnets import create_model
from keras_lightnets._registry import FAMILIES, family_module
from keras_lightnets.tools import export, runtime, runtime_labels
from keras_lightnets.tools.export import formats, onnx_model, verify
from keras_lightnets.tools.export.formats import FORMATS

SIDE = 32
LABELS = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def model():
    """Grouped convolution, hard-swish, shuffle, pooling: what has tripped tf2onnx."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="normalise")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem_conv")(x)
    x = layers.Activation("hard_silu", name="stem_act")(x)
    x = layers.Conv2D(8, 3, groups=2, padding="same", name="grouped_conv")(x)
    x = layers.Reshape((16, 16, 2, 4), name="split")(x)
    x = layers.Permute((1, 2, 4, 3), name="swap")(x)
    x = layers.Reshape((16, 16, 8), name="join")(x)
    x = layers.ReLU(6.0, name="act")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, {"logits": layers.Dense(3, name="top_dense")(x)})


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (8, 4, 4, 3)).astype(np.uint8)
    return [runtime.resize_image(picture, (SIDE, SIDE)) for picture in small]


# In a process of its own: OpenVINO and TensorFlow crash when one compiles after the
# other in the same.
RUN_OPENVINO = """
import sys
import numpy, openvino
pictures, *files = sys.argv[1:]
core = openvino.Core()
for file in files:
    model = core.compile_model(file, "CPU")
    batches = numpy.load(pictures)
    kind = model.inputs[0].get_element_type().to_dtype()
    found = [model([batch[None].astype(kind)])[0] for batch in batches]
    numpy.save(file + ".npy", numpy.concatenate(found))
"""


@pytest.mark.parametrize("opset", [13, 18])
def test_float_file_equals_the_model(model, pictures, tmp_path, opset):
    meta = runtime_labels.LabelMeta("classify", LABELS, (SIDE, SIDE))
    made = export.export(
        model,
        "onnx",
        tmp_path / "m.onnx",
        samples=pictures,
        detector=formats.Detector(meta),
        options={"opset": opset},
    )
    assert made.problems == ()
    check = made.verification.outputs[0]
    assert made.max_error <= 1e-4 * check.largest
    assert made.agreement == 1.0
    assert [row["name"] for row in made.io["inputs"]] == ["image"]
    assert made.io["outputs"] == [
        {
            "name": "logits",
            "dtype": "float32",
            "shape": [1, 3],
            "scale": None,
            "zero_point": None,
        }
    ]
    # It turns the picture's channels last to first; kernels take the shuffle. The mean
    # of 18 reads its axes as an input, and tf2onnx turns nothing past that.
    assert made.ops["Transpose"] == (1 if opset < 18 else 2)
    assert "Reshape" not in made.ops
    onnx = pytest.importorskip("onnx", reason="extra onnx not installed")
    stored = onnx.load(tmp_path / "m.onnx")
    assert stored.opset_import[0].version == opset
    held = {row.key: row.value for row in stored.metadata_props}
    assert json.loads(held["keras_lightnets"])["labels"] == list(LABELS)
    assert runtime_labels.load_meta(tmp_path / "m.json") == meta


def test_int8_file_decides_as_the_model(model, pictures, tmp_path):
    made = export.export(model, "onnx-int8", tmp_path / "m.onnx", calibration=pictures)
    assert made.problems == ()
    assert made.verification.float_ops == ()
    assert made.ops["QuantizeLinear"] >= made.ops["Conv"]
    assert 0 < made.verification.outputs[0].step < 1
    assert made.verification.outputs[0].mean_error_steps < 2


def test_openvino_reads_the_files(model, pictures, tmp_path):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs the extra 'openvino'")
    names = ("onnx", "onnx-int8", "tflite-float32", "tflite-int8")
    paths = {name: tmp_path / f"{name}{FORMATS[name].suffix}" for name in names}
    for name, path in paths.items():
        io = FORMATS[name].io[-1]
        export.export(model, name, path, calibration=pictures, io=io)
    np.save(tmp_path / "pictures.npy", np.stack(pictures))
    command = [sys.executable, "-c", RUN_OPENVINO, tmp_path / "pictures.npy"]
    done = subprocess.run([*command, *paths.values()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, path in paths.items():
        file = FORMATS[name].open(path.read_bytes())
        found = np.load(f"{path}.npy")
        ours = np.concatenate(
            [file.run(p[None].astype(np.float32))[0] for p in pictures]
        )
        error = np.abs(found - ours).max()
        if name == "tflite-int8":
            # OpenVINO rounds between other operators than LiteRT does.
            assert error <= 0.2 * np.ptp(ours)
        else:
            largest = 1e-4 * np.abs(ours).max()
            assert error <= (3 * file.steps["logits"] or largest), name


def test_what_is_not_legal_is_refused_first(model, pictures, tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match="Legal: 13, 14, 15, 16, 17, 18"):
        export.export(model, "onnx", path, options={"opset": 19})
    with pytest.raises(ValueError, match="Did you mean 'opset'"):
        export.export(model, "onnx", path, options={"opsett": 17})
    with pytest.raises(ValueError, match="must end in .onnx"):
        export.export(model, "onnx", tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="needs calibration pictures"):
        export.export(model, "onnx-int8", path)
    with pytest.raises(ValueError, match="onnxruntime refused"):
        onnx_model.OnnxFile(b"not a model")
    assert list(tmp_path.iterdir()) == []


def test_a_float_operator_is_named(model, pictures):
    onnx = pytest.importorskip("onnx", reason="extra onnx not installed")
    content = onnx_model.convert_int8(model, pictures)
    graph = onnx.load_from_string(content).graph
    assert onnx_model.float_ops(graph) == ()
    makers = {name: node for node in graph.node for name in node.output}
    conv = [node for node in graph.node if node.op_type == "Conv"][1]
    pair = makers[conv.input[0]]
    while pair.op_type != "DequantizeLinear":
        pair = makers[pair.input[0]]
    conv.input[0] = makers[pair.input[0]].input[0]
    assert "Conv that makes" in onnx_model.float_ops(graph)[0]


def test_gelu_has_an_operator_in_float_only(pictures):
    pytest.importorskip("onnx", reason="extra onnx not installed")
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(4, 3, strides=4)(layers.Rescaling(1 / 127.5, -1.0)(image))
    model = keras.Model(image, layers.Activation("gelu")(x))
    found = onnx_model.OnnxFile(onnx_model.convert(model)).run(pictures[0][None])
    expected = np.asarray(model(pictures[0][None].astype("float32")))
    np.testing.assert_allclose(found[0], expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match="no ONNX operator for TFL_GELU"):
        onnx_model.convert_int8(model, pictures)


def smallest():
    """Return the smallest network of each family."""
    golden = pathlib.Path(__file__).parents[1] / "golden"
    sizes = {}
    for family in FAMILIES:
        names = [spec.name for spec in family_module(family).SPECS]
        sizes[family] = min(
            names,
            key=lambda name: json.loads((golden / f"{name}.json").read_text())[
                "params"
            ],
        )
    return sizes


@pytest.mark.export
@pytest.mark.parametrize("name", smallest().values(), ids=smallest())
def test_every_family_converts(name):
    """Float, at 64 pixels, with statistics that are not those of a fresh network."""
    built = create_model(name, weights=None, input_shape=(64, 64, 3))
    rng = np.random.default_rng(3)
    for layer in built.layers:
        if "Normalization" in type(layer).__name__ and layer.weights:
            rows = layer.get_weights()
            layer.set_weights([np.abs(r + rng.normal(0, 0.1, r.shape)) for r in rows])
    content = onnx_model.convert(built)
    images = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(2)]
    found = verify.verify(
        content,
        lambda batch: built(batch, training=False),
        images,
        "float32",
        onnx_model.OnnxFile,
    )
    assert found.problems == ()
    assert found.max_error <= 1e-4 * found.outputs[0].largest
