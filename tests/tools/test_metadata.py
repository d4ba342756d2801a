"""Labels inside .tflite files; the files in the real MediaPipe, compared with ours."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from keras_lightnets.tools import export, runtime, runtime_labels
from keras_lightnets.tools.export import _flatbuffer, formats, metadata
from keras_lightnets.tools.export.postprocess import Postprocess

SIDE, LABELS = 32, ("cat", "dog", "owl")
CELLS = (SIDE // 2) ** 2
THRESHOLD = 0.2
# In an environment of its own: MediaPipe brings another build of OpenCV.
RUN_MEDIAPIPE = """
import json, sys
import mediapipe, numpy
from mediapipe.tasks.python import BaseOptions, vision

task, model, pictures, out = sys.argv[1:]
base = BaseOptions(model_asset_path=model)
images = [
    mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
    for picture in numpy.load(pictures)
]
found = []
if task == "classify":
    options = vision.ImageClassifierOptions(base_options=base)
    with vision.ImageClassifier.create_from_options(options) as runner:
        for image in images:
            (head,) = runner.classify(image).classifications
            found.append({row.category_name: row.score for row in head.categories})
elif task == "detect":
    options = vision.ObjectDetectorOptions(base_options=base, score_threshold=0.2)
    with vision.ObjectDetector.create_from_options(options) as runner:
        for image in images:
            rows = []
            for one in runner.detect(image).detections:
                box, (best,) = one.bounding_box, one.categories
                x, y = box.origin_x, box.origin_y
                corners = [x, y, x + box.width, y + box.height]
                rows.append([best.category_name, best.score, corners])
            found.append(rows)
else:
    options = vision.ImageSegmenterOptions(
        base_options=base, output_category_mask=True
    )
    with vision.ImageSegmenter.create_from_options(options) as runner:
        for image in images:
            mask = runner.segment(image).category_mask.numpy_view()
            found.append(mask.squeeze().tolist())
        found.append(runner.labels)
json.dump(found, open(out, "w"))
"""


def network(task):
    keras.utils.set_random_seed(3)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="normalise")(image)
    x = layers.Conv2D(16, 3, strides=2, padding="same", name="stem_conv")(x)
    x = layers.ReLU(6.0, name="stem_act")(x)
    if task == "segment":
        return keras.Model(image, {"logits": layers.Conv2D(3, 1, name="map")(x)})
    if task == "classify":
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(image, {"logits": layers.Dense(3, name="top")(x)})
    outputs = {}
    for name, columns in (("boxes", 4), ("scores", len(LABELS) + 1)):
        y = layers.Conv2D(columns, 1, name=f"{name}_conv")(x)
        outputs[name] = layers.Reshape((CELLS, columns), name=f"{name}_flat")(y)
    return keras.Model(image, outputs)


def described(task):
    if task != "detect":
        return runtime_labels.LabelMeta(task, LABELS, (SIDE, SIDE))
    rng = np.random.default_rng(4)
    middle, sides = rng.uniform(0.2, 0.8, (CELLS, 2)), rng.uniform(0.1, 0.4, (CELLS, 2))
    anchors = np.concatenate([middle, sides], 1).astype(np.float32)
    return runtime.Meta(LABELS, (SIDE, SIDE), anchors=anchors)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    return np.stack([runtime.resize_image(p, (SIDE, SIDE)) for p in small])


def exported(task, path, pictures, name="tflite-int8"):
    options = Postprocess(max_detections=20, score_threshold=THRESHOLD)
    return export.export(
        network(task),
        name,
        path,
        calibration=list(pictures),
        detector=formats.Detector(
            described(task), options if task == "detect" else None
        ),
    )


@pytest.mark.parametrize("task", sorted(metadata.DESCRIBE))
def test_labels_are_inside_and_the_file_runs_as_before(task, pictures, tmp_path):
    made = exported(task, tmp_path / "m.tflite", pictures, "tflite-float32")
    assert made.problems == ()
    content = (tmp_path / "m.tflite").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode().split() == list(LABELS)
    graph = _flatbuffer.read(content)
    assert metadata.BUFFER in graph.metadata
    model, _ = _flatbuffer.load(content)
    held = next(row for row in model.metadata if row.name == b"TFLITE_METADATA")
    assert bytes(bytearray(model.buffers[held.buffer].data))[4:8] == b"M001"
    outputs = runtime.TFLiteModel(content).run(pictures[:1])
    assert len(outputs) == len(graph.outputs)
    twice = {metadata.attach(content, described(task)) for _ in range(2)}
    assert len(twice) == 1


@pytest.fixture(scope="module")
def mediapipe(tmp_path_factory):
    """A Python with MediaPipe, and nothing of ours."""
    if importlib.util.find_spec("mediapipe") is not None:
        return sys.executable
    folder = tmp_path_factory.mktemp("mediapipe")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "mediapipe"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"the registry is not reachable: {done.stderr[-200:]}")
    return python


@pytest.mark.export
@pytest.mark.parametrize("name", ["tflite-int8", "tflite-float32"])
@pytest.mark.parametrize("task", sorted(metadata.DESCRIBE))
def test_mediapipe_sees_what_we_see(mediapipe, task, name, pictures, tmp_path):
    path = tmp_path / "m.tflite"
    exported(task, path, pictures, name)
    np.save(tmp_path / "pictures.npy", pictures)
    command = [mediapipe, "-c", RUN_MEDIAPIPE, task, path, tmp_path / "pictures.npy"]
    done = subprocess.run(
        [*command, tmp_path / "found.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    CHECKS[task](path, pictures, found)


def check_classes(path, pictures, found):
    model = runtime.TFLiteModel(path)
    for picture, scores in zip(pictures, found, strict=True):
        ours = model.run(picture[None])[0][0]
        assert [scores[name] for name in LABELS] == pytest.approx(ours, abs=1e-5)


def check_boxes(path, pictures, found):
    detector = runtime.Detector(path)
    count = 0
    for picture, rows in zip(pictures, found, strict=True):
        ours = detector.detect(picture, THRESHOLD)
        assert len(rows) == len(ours.scores)
        assert [row[1] for row in rows] == pytest.approx(ours.scores, abs=1e-5)
        assert [row[0] for row in rows] == [LABELS[i] for i in ours.labels]
        # MediaPipe cuts to whole pixels: corner and side.
        for row, box in zip(rows, ours.boxes, strict=True):
            assert np.abs(np.asarray(row[2]) - box).max() < 2
        count += len(rows)
    assert count > 10


def check_maps(path, pictures, found):
    segmenter = runtime_labels.Segmenter(path)
    assert found.pop() == list(LABELS)
    same = [
        np.mean(np.asarray(mask) == segmenter.segment(picture))
        for picture, mask in zip(pictures, found, strict=True)
    ]
    # MediaPipe enlarges probabilities, we enlarge logits: borders differ.
    assert np.mean(same) > 0.95


CHECKS = {"classify": check_classes, "detect": check_boxes, "segment": check_maps}
