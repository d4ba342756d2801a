"""The device runner: decode, suppression, geometry, sidecar, command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tflite_files

from keras_lightnets.tools import runtime, runtime_main
from keras_lightnets.tools.export import runner

RUNTIME = Path(runtime.__file__)


def slow_nms(boxes, scores, iou):
    """Suppression as the definition says, one pair at a time."""
    kept = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        x1, y1, x2, y2 = boxes[index]
        for other in kept:
            a1, b1, a2, b2 = boxes[other]
            wide = max(0.0, min(x2, a2) - max(x1, a1))
            tall = max(0.0, min(y2, b2) - max(y1, b1))
            inner = wide * tall
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inner
            if inner > iou * union:
                break
        else:
            kept.append(index)
    return kept


def random_boxes(rng, count):
    low = rng.uniform(0, 0.7, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.3, (count, 2))], 1)


def meta(**changes):
    data = {
        "task": "detect",
        "labels": ["cat", "dog", "owl"],
        "input": {"size": [64, 64], "resize": "stretch", "range": "0-255 RGB"},
        "scores": "softmax",
        "anchors": [[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.4, 0.2]],
        "box_weights": [10, 10, 5, 5],
        "outputs": {"boxes": 0, "scores": 1},
    }
    return {**data, **changes}


def test_decode_by_hand():
    anchors = np.asarray([[0.5, 0.4, 0.2, 0.1]], np.float32)
    raw = np.asarray([[10.0, -5.0, 5 * np.log(2), 5 * np.log(4)]], np.float32)
    # The centre moves by one width and half a height; sizes grow 2 and 4 fold.
    expected = [[0.5, 0.15, 0.9, 0.55]]
    np.testing.assert_allclose(runtime.decode_boxes(raw, anchors), expected, atol=1e-6)


def test_decode_limits_growth():
    raw = np.asarray([[0, 0, 1e6, 1e6]], np.float32)
    box = runtime.decode_boxes(raw, np.asarray([[0, 0, 1, 1]], np.float32))
    np.testing.assert_allclose(box[0, 2] - box[0, 0], 62.5, rtol=1e-5)


def test_decode_refuses_other_anchors():
    with pytest.raises(ValueError, match="not from the same export"):
        runtime.decode_boxes(np.zeros((3, 4)), np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_nms_equals_definition(seed):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 60), rng.random(60)
    kept = runtime.nms(boxes, scores, 0.4)
    assert kept.tolist() == slow_nms(boxes, scores, 0.4)
    assert 1 < len(kept) < 60


def test_nms_of_nothing():
    assert runtime.nms(np.zeros((0, 4)), np.zeros(0)).tolist() == []


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_postprocess_equals_classwise_definition(activation):
    rng = np.random.default_rng(5)
    count = 200
    anchors = rng.uniform(0.2, 0.8, (count, 4)).astype(np.float32)
    columns = 4 if activation == "softmax" else 3
    raw_boxes = rng.normal(0, 2, (1, count, 4)).astype(np.float32)
    raw_scores = rng.normal(0, 2, (1, count, columns)).astype(np.float32)
    data = meta(scores=activation, anchors=anchors)
    found = runtime.postprocess(raw_boxes, raw_scores, data, 0.3, 0.45, 1000)
    boxes = np.clip(runtime.decode_boxes(raw_boxes[0], anchors), 0, 1)
    scores = runtime.class_scores(raw_scores[0], activation)
    expected = set()
    for label in range(3):
        rows = np.flatnonzero(scores[:, label] > 0.3)
        kept = slow_nms(boxes[rows], scores[rows, label], 0.45)
        expected |= {(label, *boxes[rows[k]].tolist()) for k in kept}
    labels, places = found.labels.tolist(), found.boxes.tolist()
    assert {(n, *b) for n, b in zip(labels, places, strict=True)} == expected
    assert (np.diff(found.scores) <= 0).all()
    few = runtime.postprocess(raw_boxes, raw_scores, data, 0.3, 0.45, 7)
    np.testing.assert_array_equal(few.scores, found.scores[:7])


def test_postprocess_finds_nothing():
    scores = np.asarray([[9.0, 0, 0, 0]] * 2)
    found = runtime.postprocess(np.zeros((2, 4)), scores, meta())
    assert found.boxes.shape == (0, 4)
    assert found.labels.dtype == np.int32


def test_postprocess_refuses_wrong_columns():
    with pytest.raises(ValueError, match=r"do not fit 2 anchors and 3 labels"):
        runtime.postprocess(np.zeros((2, 4)), np.zeros((2, 9)), meta())


def test_sigmoid_of_large_logits_is_finite():
    scores = runtime.class_scores(np.asarray([[-1e4, 0.0, 1e4]]), "sigmoid")
    np.testing.assert_allclose(scores, [[0, 0.5, 1]])


@pytest.mark.parametrize("size", [(64, 48), (31, 90), (200, 300)])
def test_numpy_resize_equals_opencv(monkeypatch, size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (120, 100, 3), dtype=np.uint8)
    fast = runtime.resize_image(image, size)
    monkeypatch.setitem(sys.modules, "cv2", None)
    plain = runtime.resize_image(image, size)
    assert plain.shape == (*size, 3)
    assert np.abs(plain.astype(int) - fast).max() <= 1


@pytest.mark.parametrize("align", ["center", "corner"])
def test_letterbox_maps_boxes_back(align):
    given = {"size": [60, 80], "resize": "letterbox", "align": align}
    checked = runtime.Meta.from_dict(meta(input=given))
    image = np.zeros((200, 100, 3), np.uint8)
    image[50:100, 20:70] = 255
    fitted, placement = runtime.prepare(image, checked)
    assert fitted.shape == (60, 80, 3)
    rows, columns = np.nonzero(fitted[:, :, 0] > 200)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    pixels = placement.to_pixels(np.asarray([box]) / [80, 60, 80, 60])
    np.testing.assert_allclose(pixels, [[20, 50, 70, 100]], atol=3.4)
    left, top = (25, 0) if align == "center" else (0, 0)
    assert placement.offset == (left, top)
    assert (fitted[:, 79] == 114).all()


def test_stretch_keeps_pixels_of_equal_size():
    checked = runtime.Meta.from_dict(meta())
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    fitted, placement = runtime.prepare(image, checked)
    np.testing.assert_array_equal(fitted, image)
    boxes = placement.to_pixels(np.asarray([[0, 0.25, 0.5, 1.5]]))
    np.testing.assert_allclose(boxes, [[0, 16, 32, 64]])


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_prepare_refuses_other_pictures(image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        runtime.prepare(image, runtime.Meta.from_dict(meta()))


def test_meta_round_trip():
    checked = runtime.Meta.from_dict(meta())
    again = runtime.Meta.from_dict(json.loads(json.dumps(checked.to_dict())))
    np.testing.assert_array_equal(again.anchors, checked.anchors)
    assert again.to_dict() == checked.to_dict()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"task": "segment"}, "Unknown task 'segment'. Legal: detect"),
        ({"scores": "tanh"}, "Legal: softmax, sigmoid"),
        ({"input": {"size": [64]}}, "height, width"),
        ({"input": {"size": [8, 8], "resize": "crop"}}, "Legal: stretch, letterbox"),
        ({"input": {"size": [8, 8], "range": "0-1"}}, "Legal: 0-255 RGB"),
    ],
)
def test_meta_names_bad_values(change, text):
    with pytest.raises(ValueError, match=text.replace("[", r"\[")):
        runtime.Meta.from_dict(meta(**change))


def test_meta_names_missing_keys():
    with pytest.raises(ValueError, match="lacks .'labels'"):
        runtime.Meta.from_dict({"input": {}, "scores": "softmax"})


@pytest.mark.parametrize("content", ["{broken", "[1, 2]"])
def test_load_meta_refuses_broken_files(tmp_path, content):
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"model.json (is not valid|must hold)"):
        runtime.load_meta(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="No sidecar .*m.json"):
        runtime.Detector(tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="No model at"):
        runtime.TFLiteModel(tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="No picture at"):
        runtime.read_image(tmp_path / "a.png")


def test_not_a_model():
    with pytest.raises(ValueError, match="Not a TFLite file"):
        runtime.TFLiteModel(b"PK\x03\x04 something else")


def test_pillow_reads_what_opencv_reads(tmp_path, monkeypatch):
    from PIL import Image

    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    deep = rng.integers(0, 65536, (8, 12)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep.astype(np.uint8)).save(tmp_path / "gray.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    names = ["turned.png", "deep.png", "gray.png"]
    fast = {name: runtime.read_image(tmp_path / name) for name in names}
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name, image in fast.items():
        plain = runtime.read_image(tmp_path / name)
        assert plain.dtype == np.uint8
        assert np.abs(plain.astype(int) - image).max() <= 1, name
    assert fast["turned.png"].shape == (12, 8, 3)
    with pytest.raises(ValueError, match="not a readable picture"):
        runtime.read_image(tmp_path / "broken.png")


def test_copied_file_runs_without_the_package(tmp_path):
    copy = tmp_path / "runtime.py"
    copy.write_bytes(RUNTIME.read_bytes())
    code = (
        "import sys\n"
        "for name in ('keras', 'tensorflow', 'keras_lightnets', 'cv2', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "import runtime, numpy\n"
        "boxes = numpy.asarray([[0, 0, 1, 1], [0, 0, 1, .9], [2, 2, 3, 3.]])\n"
        "print(runtime.nms(boxes, numpy.asarray([.5, .9, .1])).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[1, 2]", "")


def test_command_line_says_what_is_missing(tmp_path, capsys):
    assert runtime.main([str(tmp_path / "m.tflite"), "a.jpg"]) == 1
    assert "No sidecar" in capsys.readouterr().err


def test_a_file_for_the_edgetpu_asks_for_its_library():
    pytest.importorskip("ai_edge_litert")
    content = tflite_files.conv(tail=[tflite_files.custom("edgetpu-custom-op")])
    with pytest.raises(
        ValueError, match=r"libedgetpu.* does not load: .*libedgetpu1-std"
    ):
        runtime.TFLiteModel(content)


def test_the_edgetpu_library_is_handed_to_the_interpreter(monkeypatch):
    """As far as it goes without the device: the delegate reaches the interpreter."""
    module = pytest.importorskip("ai_edge_litert.interpreter")
    asked, plain = [], module.Interpreter

    def opened(experimental_delegates, **options):
        asked.append(experimental_delegates)
        return plain(**options)

    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda library: None)
    monkeypatch.setattr(module, "load_delegate", lambda library: f"opened {library}")
    monkeypatch.setattr(module, "Interpreter", opened)
    content = tflite_files.conv(tail=[tflite_files.custom("edgetpu-custom-op")])
    with pytest.raises(ValueError, match="edgetpu-custom-op"):
        runtime.TFLiteModel(content)
    assert asked == [[f"opened {runtime.EDGETPU_LIBRARY}"]]
    runtime.TFLiteModel(tflite_files.conv())
    assert asked[1:] == [[]]


def device_folder(folder):
    """Models of all three tasks with their sidecars, and run.pyz."""
    heads = {
        "segment": [],
        "classify": [tflite_files.mean],
        "detect": [tflite_files.boxes_and_scores],
    }
    for task, tail in heads.items():
        path = folder / f"{task}.tflite"
        path.write_bytes(tflite_files.conv(size=8, tail=tail))
        sidecar = {
            "task": task,
            "labels": ["a", "b", "c"] + ["d"] * (task != "detect"),
            "input": {"size": [8, 8], "resize": "letterbox"},
        }
        if task == "detect":
            centres = np.random.default_rng(0).uniform(0.2, 0.8, (64, 2)).tolist()
            anchors = [[*centre, 0.2, 0.2] for centre in centres]
            sidecar |= {"scores": "softmax", "anchors": anchors}
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    (folder / runner.NAME).write_bytes(runner.archive())


# Runs where numpy and an interpreter are all there is.
ON_DEVICE = """
import json, sys
import numpy
sys.path.insert(0, "run.pyz")
import runtime, runtime_labels
found = {}
for name, (high, wide) in {"same": (8, 8), "other": (20, 31)}.items():
    picture = numpy.random.default_rng(1).integers(0, 256, (high, wide, 3), numpy.uint8)
    boxes = runtime.Detector("detect.tflite").detect(picture, 0.05)
    mask = runtime_labels.Segmenter("segment.tflite").segment(picture)
    shares = runtime_labels.Classifier("classify.tflite").classify(picture)
    made = {"boxes": boxes.boxes, "scores": boxes.scores, "segment": mask}
    made["classify"] = shares
    found[name] = {key: value.tolist() for key, value in made.items()}
heavy = {"keras", "tensorflow", "keras_lightnets", "cv2", "PIL"} & set(sys.modules)
print(json.dumps({**found, "heavy": sorted(heavy)}))
"""


def expected(folder, picture):
    from keras_lightnets.tools import runtime_labels

    boxes = runtime.Detector(folder / "detect.tflite").detect(picture, 0.05)
    segmenter = runtime_labels.Segmenter(folder / "segment.tflite")
    classifier = runtime_labels.Classifier(folder / "classify.tflite")
    return {
        "boxes": boxes.boxes,
        "scores": boxes.scores,
        "segment": segmenter.segment(picture),
        "classify": classifier.classify(picture),
    }


def check_device_run(folder, done):
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    for name, (high, wide) in {"same": (8, 8), "other": (20, 31)}.items():
        random = np.random.default_rng(1)
        picture = random.integers(0, 256, (high, wide, 3), np.uint8)
        for key, value in expected(folder, picture).items():
            made = np.asarray(found[name][key])
            assert made.shape == value.shape, (name, key)
            if key == "segment":
                assert (made == value).mean() > 0.95
            else:
                # Without OpenCV a resized picture differs by one level.
                limit = 1e-5 if name == "same" else 0.1
                np.testing.assert_allclose(made, value, rtol=limit, atol=limit)
        assert len(found[name]["boxes"]) > 1


def test_one_file_runs_every_task_without_the_package(tmp_path):
    pytest.importorskip("ai_edge_litert")
    device_folder(tmp_path)
    code = (
        "import sys\n"
        "for name in ('keras', 'tensorflow', 'keras_lightnets', 'cv2', 'PIL'):\n"
        "    sys.modules[name] = None\n"
    )
    block = ON_DEVICE.replace(
        "set(sys.modules)", "{n for n, m in sys.modules.items() if m}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    check_device_run(tmp_path, done)


def test_the_one_file_is_a_command(tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    from PIL import Image

    device_folder(tmp_path)
    picture = tmp_path / "a.png"
    Image.fromarray(np.full((9, 8, 3), 77, np.uint8)).save(picture)
    done = subprocess.run(
        [sys.executable, "-I", "run.pyz", "classify.tflite", "a.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["classify"]) == {"a", "b", "c", "d"}
    assert runtime_main.main([str(tmp_path / "segment.tflite"), str(picture)]) == 0
    shares = json.loads(capsys.readouterr().out)["segment"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert runtime_main.main([str(tmp_path / "detect.tflite"), str(picture)]) == 0
    assert "detections" in json.loads(capsys.readouterr().out)
    assert runtime_main.main([str(tmp_path / "none.tflite"), str(picture)]) == 1
    assert "No sidecar" in capsys.readouterr().err


def test_the_same_sources_make_the_same_file():
    content = runner.archive()
    runner.archive.cache_clear()
    assert runner.archive() == content


@pytest.mark.export
def test_bare_environment_with_a_real_interpreter(tmp_path, shared):
    """numpy and LiteRT alone, in an environment of their own; all three tasks."""
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "numpy", "ai-edge-litert"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"the registry is not reachable: {done.stderr[-200:]}")
    device_folder(tmp_path)
    done = subprocess.run(
        [python, "-c", ON_DEVICE], cwd=tmp_path, capture_output=True, text=True
    )
    check_device_run(tmp_path, done)
    (tmp_path / "runtime.py").write_bytes(RUNTIME.read_bytes())
    model = shared / "data" / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"
    code = (
        "import numpy, runtime, sys\n"
        f"model = runtime.TFLiteModel({str(model)!r})\n"
        "out = model.run(numpy.full((1, 128, 128, 3), 99.0))[0]\n"
        "found = sorted({'keras', 'tensorflow', 'cv2', 'PIL'} & set(sys.modules))\n"
        "print(out.shape, 0.5 < out.sum() < 1.5, found)\n"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(1, 1001) True []", done.stderr
