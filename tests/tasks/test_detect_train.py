"""Detection end to end on drawn pictures: train, kill, resume, eval, predict."""

import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from keras_lightnets.tasks import detect, run
from keras_lightnets.tasks.detector import DetectConfig
from keras_lightnets.tools import runtime

# The real command line, ended from inside by SIGKILL in the second epoch's middle.
KILLED = """
import os, signal, sys
from keras_lightnets.tasks import callbacks, detect

def kill(self, batch, logs=None):
    if self._epoch == 1 and batch == 0:
        os.kill(os.getpid(), signal.SIGKILL)

callbacks.StopOnNan.on_train_batch_end = kill
detect.main(["train", "--config", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def config(tiny_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return DetectConfig(**tiny_options, runs=str(folder), name="whole")


@pytest.fixture(scope="module")
def trained(config):
    return detect.train(config)


def invoke(*words):
    from typer.testing import CliRunner

    result = CliRunner().invoke(detect.make_app(), [*words, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_run_folder_is_complete(config, trained):
    names = {path.name for path in config.folder.iterdir()}
    assert names == {
        *("config.json", "versions.json", "data.json", "history.csv", "metrics.json"),
        *("curves.png", "precision_recall.png", "samples"),
        *("best.keras", "last.keras", "state.npz"),
    }
    assert len(list((config.folder / "samples").glob("*.jpg"))) == 4
    stored = DetectConfig.load(config.folder / "config.json")
    assert stored == config.replace(labels=("blue", "red"))
    assert trained["epochs"] == 3
    assert trained["best"]["images"] == 4
    assert trained["best"]["skipped_images"] == 0


def test_resumed_after_kill_equals_uninterrupted(config, trained, tmp_path):
    """With deterministic kernels the two runs agree bit for bit."""
    killed = config.replace(runs=str(tmp_path), name="killed")
    (tmp_path / "c.json").write_text(killed.to_json())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "c.json")],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len((killed.folder / "history.csv").read_text().splitlines()) == 2
    resumed = detect.train(killed, resume=True)
    assert resumed["epochs"] == 3
    with (
        np.load(config.folder / "state.npz") as whole,
        np.load(killed.folder / "state.npz") as parts,
    ):
        assert whole.files == parts.files and len(whole.files) > 100
        for name in set(whole.files) - {"record"}:
            np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
        records = [json.loads(str(state["record"])) for state in (whole, parts)]
    for record in records:
        for row in record["history"]:
            del row["train_seconds"]
    assert records[0] == records[1]


def test_finished_run_resumes_to_itself_and_is_not_overwritten(config, trained):
    with pytest.raises(run.RunError, match="--overwrite"):
        detect.train(config)
    before = (config.folder / "state.npz").read_bytes()
    code, result = invoke(
        *("train", "--resume", "--name", config.name, "--runs", config.runs)
    )
    assert code == 0, result
    assert result["best"] == trained["best"]
    assert (config.folder / "state.npz").read_bytes() == before


def test_eval_of_the_run_repeats_its_metrics(config, trained):
    code, result = invoke("eval", "--model", str(config.folder))
    assert code == 0, result
    assert result["mAP"] == pytest.approx(trained["best"]["mAP"], abs=1e-6)
    assert result["per_class"].keys() == {"blue", "red"}


def test_eval_of_tflite_equals_keras(config, trained, boxes_set, tmp_path):
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    model = keras.saving.load_model(config.folder / "best.keras", compile=False)
    signature = tf.TensorSpec((1, 64, 64, 3), tf.float32)
    function = tf.function(lambda image: model(image, training=False))
    frozen = convert_variables_to_constants_v2(
        function.get_concrete_function(signature)
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    meta = run.read_meta(config.folder / "best.keras")
    del meta["config"]
    (tmp_path / "m.json").write_text(json.dumps(meta))
    code, result = invoke("eval", "--model", str(tmp_path / "m.tflite"))
    assert code == 2 and "--data FOLDER" in result["error"]
    code, result = invoke(
        *("eval", "--model", str(tmp_path / "m.tflite")),
        *("--data", str(boxes_set / "val")),
        *("--annotations", str(boxes_set / "val.json")),
    )
    assert code == 0, result
    assert result["mAP"] == pytest.approx(trained["best"]["mAP"], abs=1e-4)


def test_predict_reads_a_folder_and_reports_bad_files(config, trained, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    cv2.imwrite(str(source / "a.png"), np.full((50, 80, 3), 90, np.uint8))
    cv2.imwrite(str(source / "b.jpg"), np.full((96, 40), 90, np.uint8))
    (source / "c.jpg").write_bytes(b"\xff\xd8 cut")
    output = tmp_path / "out"
    code, result = invoke(
        *("predict", str(source), "--model", str(config.folder / "best.keras")),
        *("--output", str(output), "--score", "0"),
    )
    assert code == 0, result
    first, second, third = result["images"]
    assert "error" in third
    for row, (width, height) in ((first, (80, 50)), (second, (40, 96))):
        assert row["objects"], "score 0 keeps something"
        boxes = np.array([item["box"] for item in row["objects"]])
        assert (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
        assert boxes[:, 2].max() > width / 2
        assert {item["label"] for item in row["objects"]} <= {"blue", "red"}
        assert cv2.imread(row["picture"]).shape == (height, width, 3)
    assert json.loads((output / "predictions.json").read_text()) == result


def test_perfect_predictor_scores_one(config, boxes_set):
    """Targets fed back as outputs: encoding, scaling and ids fit together."""
    config = config.replace(labels=("red", "blue"), nms_iou=0.99)
    batches = iter(detect.batches(config, "val"))

    def predictor(images):
        inputs, targets = next(batches)
        np.testing.assert_array_equal(inputs, images)
        scores = np.eye(3, dtype="float32")[np.maximum(targets["scores"], 0)] * 20
        return {"boxes": targets["boxes"][..., :4], "scores": scores}

    result = detect.evaluate_fn(config)(predictor)
    assert result["mAP"] == pytest.approx(1.0, abs=1e-3)


def test_loss_of_the_task_falls_for_right_outputs(config):
    config = config.replace(labels=("blue", "red"), balance="loss")
    loss = detect.make_loss(config)
    _, targets = detect.batches(config, "val").batch(0, 0)
    right = np.eye(3, dtype="float32")[np.maximum(targets["scores"], 0)] * 20
    good = {"boxes": targets["boxes"][..., :4], "scores": right}
    bad = {"boxes": good["boxes"] + 1, "scores": -right}
    assert 0 <= float(loss(targets, good)) < 0.01 < float(loss(targets, bad))


def test_saved_model_describes_itself(config, trained):
    meta = run.read_meta(config.folder / "best.keras")
    read = runtime.Meta.from_dict(meta)
    assert read.labels == ("blue", "red")
    assert read.size == (64, 64)
    assert DetectConfig.parse(meta["config"]).epochs == 3


def test_frozen_stage_keeps_its_weights_and_is_saved_trainable(config, trained):
    import keras

    model = detect.build_model(config.replace(labels=("blue", "red")))
    saved = keras.saving.load_model(config.folder / "best.keras", compile=False)
    frozen = [layer.name for layer in model.layers if not layer.trainable]
    assert frozen and all(layer.trainable for layer in saved.layers)
    assert not any(name.startswith("head") for name in frozen)


def test_mixed_precision_computes_in_half_and_keeps_float_weights(config):
    import keras

    half = config.replace(labels=("a",), precision="mixed_bfloat16", bn_momentum=0.8)
    model = detect.build_model(half)
    kinds = {layer.compute_dtype for layer in model.layers if layer.weights}
    assert kinds == {"bfloat16"}
    assert {str(w.dtype) for w in model.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    assert {norm.momentum for norm in norms} == {0.8}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": None}, "--data FOLDER"),
        ({"val_annotations": None}, "--val-annotations"),
        ({"annotations": "absent.json"}, "absent.json"),
        ({"head": "ssdlight"}, "Did you mean 'ssdlite'"),
        ({"head_options": {"widht": 1}}, "Did you mean 'width'"),
        ({"head_options": {"width": "x"}}, "^Option 'width' of head_options: [^\n]*$"),
        ({"backbone_options": {"width": "x"}}, "multiplier, such as 0.5. Received"),
        ({"backbone_options": {"weights": None}}, "changes of the network"),
        ({"backbone": "mobilenet_v7"}, "Unknown model"),
        ({"labels": ("red",)}, "Only the data has: blue"),
        ({"freeze": "c9"}, "Unknown level to freeze 'c9'"),
        ({"augment": "sdd"}, "Did you mean 'ssd'"),
    ],
)
def test_bad_option_ends_before_training(config, tmp_path, changes, text):
    bad = config.replace(runs=str(tmp_path), name="bad", **changes)
    with pytest.raises(ValueError, match=text):
        detect.train(bad)
    assert not list(tmp_path.iterdir())


def test_bad_data_is_one_json_error(tiny_options, boxes_set, tmp_path):
    (tmp_path / "a.json").write_text('{"images": [}')
    code, result = invoke(
        *("train", "--data", tiny_options["data"], "--runs", str(tmp_path)),
        *("--annotations", str(tmp_path / "a.json")),
        *("--val-data", tiny_options["val_data"]),
        *("--val-annotations", tiny_options["val_annotations"]),
    )
    assert code == 2
    assert "line 1, column 13" in result["error"]
    assert os.listdir(tmp_path) == ["a.json"]


def test_other_classes_are_refused(config, trained, boxes_set, tmp_path):
    content = json.loads((boxes_set / "val.json").read_text())
    content["categories"][0]["name"] = "green"
    (tmp_path / "v.json").write_text(json.dumps(content))
    code, result = invoke(
        *("eval", "--model", str(config.folder), "--data", str(boxes_set / "val")),
        *("--annotations", str(tmp_path / "v.json")),
    )
    assert code == 2
    assert "Only the model has: blue. Only the data has: green" in result["error"]
