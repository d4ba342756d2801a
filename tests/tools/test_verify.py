"""Exports run and compared: a small detector through every format."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_lightnets.tools import export, runtime
from keras_lightnets.tools.export import (
    _flatbuffer,
    edgetpu,
    files,
    formats,
    opened,
    postprocess,
    tflite,
    verify,
)

SIDE, LABELS = 32, ("cat", "dog", "owl")
COUNT = 2 * (8 * 8 + 4 * 4)


def flat(x, columns, name):
    x = layers.Conv2D(2 * columns, 1, name=f"{name}_conv")(x)
    return layers.Reshape((x.shape[1] * x.shape[2] * 2, columns), name=f"{name}_flat")(
        x
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="normalise")(image)
    x = layers.Conv2D(16, 3, strides=4, padding="same", name="stem_conv")(x)
    fine = layers.ReLU(6.0, name="stem_act")(x)
    x = layers.Conv2D(24, 3, strides=2, padding="same", name="top_conv")(fine)
    coarse = layers.ReLU(6.0, name="top_act")(x)
    outputs = {}
    for name, columns in (("boxes", 4), ("scores", len(LABELS) + 1)):
        parts = [
            flat(x, columns, f"{name}{k}") for k, x in enumerate((fine, coarse), 1)
        ]
        outputs[name] = layers.Concatenate(axis=1, name=f"head_{name}")(parts)
    built = keras.Model(image, outputs)
    rng = np.random.default_rng(1)
    for layer in built.layers:
        if layer.weights:
            layer.set_weights(
                [w + rng.normal(0, 0.15, w.shape) for w in layer.get_weights()]
            )
    return built


@pytest.fixture(scope="module")
def pictures():
    """Smooth random pictures."""
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (12, 4, 4, 3)).astype(np.uint8)
    return [runtime.resize_image(picture, (SIDE, SIDE)) for picture in small]


@pytest.fixture(scope="module")
def meta():
    rng = np.random.default_rng(4)
    anchors = np.concatenate(
        [rng.uniform(0.2, 0.8, (COUNT, 2)), rng.uniform(0.1, 0.4, (COUNT, 2))], 1
    )
    return runtime.Meta(LABELS, (SIDE, SIDE), anchors=anchors.astype(np.float32))


@pytest.fixture(scope="module")
def int8_file(model, pictures):
    return tflite.convert(model, "int8", "uint8", pictures)


@pytest.mark.parametrize("name", ["tflite-float32", "tflite-float16"])
def test_float_formats(model, pictures, tmp_path, name):
    made = export.export(model, name, tmp_path / "m.tflite", samples=pictures)
    assert made.problems == ()
    assert made.bytes == (tmp_path / "m.tflite").stat().st_size
    assert made.agreement > 0.99
    assert made.verification.samples == 12
    assert made.io["inputs"][0]["dtype"] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.tflite"]


@pytest.mark.parametrize("io", ["uint8", "int8", "float"])
def test_int8_detector(model, pictures, meta, tmp_path, io):
    made = export.export(
        model,
        "edgetpu",
        tmp_path / "deep" / "m.tflite",
        calibration=pictures,
        io=io,
        detector=formats.Detector(meta),
    )
    assert made.problems == ()
    assert made.verification.float_ops == ()
    assert made.io["inputs"][0]["dtype"] == io.replace("float", "float32")
    assert made.verdicts["edgetpu"].network_mapped
    assert made.verdicts["edgetpu"].all_mapped == (io != "float")
    scores = {row.name: row for row in made.verification.outputs}["scores"]
    assert scores.clear_agreement == 1.0
    assert 0.1 < scores.clear_share <= 1.0
    assert scores.mean_error_steps < 2
    folder = tmp_path / "deep"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["labels.txt", "m.json", "m.tflite", "run.pyz"]
    data = json.loads(json.dumps(made.json()))
    assert data["verdicts"]["edgetpu"]["ops"][0]["index"] == 0
    assert data["verification"]["passed"]
    detector = runtime.Detector(folder / "m.tflite")
    picture = runtime.resize_image(pictures[0], (50, 40))
    found = detector.detect(picture, score_threshold=0.3)
    assert len(found.scores) > 0
    assert found.boxes.max() <= 50


def test_postprocess_and_command_line(model, pictures, meta, tmp_path):
    from PIL import Image

    path = tmp_path / "m.tflite"
    options = postprocess.Postprocess(max_detections=20, score_threshold=0.2)
    made = export.export(
        model,
        "tflite-int8",
        path,
        calibration=pictures,
        detector=formats.Detector(meta, options),
    )
    assert made.problems == ()
    assert made.ops["TFLite_Detection_PostProcess"] == 1
    assert made.postprocess["detections"] > 20
    assert (tmp_path / "labels.txt").read_text().splitlines()[1] == "1 dog"
    assert made.io["inputs"][0]["dtype"] == "uint8"
    verdict = edgetpu.verdict(path, compiler=False)
    assert {row.op for row in verdict.ops if not row.mapped} == {
        "DEQUANTIZE",
        "SOFTMAX",
        "TFLite_Detection_PostProcess",
    }
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    command = [sys.executable, runtime.__file__, path, tmp_path / "a.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["detections"]
    direct = runtime.Detector(path).detect(pictures[0])
    assert [row["score"] for row in rows] == direct.scores.tolist()
    assert {row["label"] for row in rows} <= set(LABELS)


def test_wrong_weights_are_noticed(model, pictures, int8_file):
    def other(batch):
        return {name: value + 0.5 for name, value in model(batch).items()}

    result = verify.verify(int8_file, other, pictures, "int8")
    assert not result.passed
    assert any("boxes: mean error" in text for text in result.problems)


def test_wrong_decisions_are_noticed(model, pictures, int8_file):
    def other(batch):
        outputs = dict(model(batch))
        outputs["scores"] = outputs["scores"][..., ::-1]
        return outputs

    result = verify.verify(int8_file, other, pictures, "int8")
    assert any("of the decisions with a margin" in text for text in result.problems)


def test_other_network_is_refused(model, pictures, int8_file):
    with pytest.raises(ValueError, match="not the same network"):
        verify.verify(int8_file, lambda x: {"logits": x}, pictures, "int8")
    with pytest.raises(ValueError, match="at least one real sample"):
        verify.verify(int8_file, model, [], "int8")


def test_float_file_has_float_ops(model):
    graph = _flatbuffer.read(tflite.convert(model))
    named = opened.float_ops(graph)
    assert len(named) == len(graph.ops)
    assert any("CONV_2D that makes" in text for text in named)


def test_float_op_in_an_int8_file_is_refused(
    model, pictures, tmp_path, monkeypatch, meta
):
    wrong = tflite.convert(model)
    monkeypatch.setattr(tflite, "convert", lambda *_: wrong)
    with pytest.raises(formats.ExportError, match=r"ops of the int8 file work on fl"):
        export.export(model, "tflite-int8", tmp_path / "m.tflite", calibration=pictures)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_files({path: b"new", tmp_path / "m.json": b"{}"})
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "tflite-int9"}, "Did you mean 'tflite-int8'"),
        ({"io": "uint8"}, "Legal: float."),
        ({"path": "m.onnx"}, "must end in .tflite"),
        ({"format": "edgetpu"}, "needs calibration pictures"),
    ],
)
def test_options_are_checked_first(model, tmp_path, changes, text):
    given = {"format": "tflite-float32", "path": tmp_path / "m.tflite", **changes}
    with pytest.raises(ValueError, match=text):
        export.export(model, **given)
    assert list(tmp_path.iterdir()) == []


def test_quantised_models_export_to_int8_only(tmp_path):
    class Quantised:
        source_weights = ()

    with pytest.raises(ValueError, match="Legal: tflite-int8, edgetpu"):
        export.export(Quantised(), "tflite-float32", tmp_path / "m.tflite")


def test_table_of_artifacts(model, pictures, tmp_path):
    made = export.export(
        model, "tflite-float32", tmp_path / "m.tflite", samples=pictures[:1]
    )
    text = formats.table([made])
    assert "tflite-float32" in text.splitlines()[1]
    assert f"{made.bytes:,}" in text
