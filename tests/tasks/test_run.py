"""The run folder: atomic files, a full disk, and when a run may start."""

import json
import os
import subprocess
import sys

import pytest

from keras_lightnets.tasks import run
from keras_lightnets.tasks.detector import DetectConfig

# A limit on file size stands for a full disk: a write beyond it fails midway.
FULL_DISK = """
import pathlib, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import keras
from keras_lightnets.tasks import callbacks, run
folder = pathlib.Path(sys.argv[1])
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
model.compile("adam", "mse")
model.optimizer.build(model.trainable_variables)
record = callbacks.Record(epoch=1)
run.save_model(model, folder / "best.keras", {"labels": ["a"]})
callbacks.save_state(folder / "state.npz", model, record)
run.write_text(folder / "text.json", "before")
before = {p.name: p.read_bytes() for p in folder.iterdir()}
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
failed = 0
for write in (
    lambda: run.save_model(model, folder / "best.keras", {"labels": ["b"]}),
    lambda: callbacks.save_state(folder / "state.npz", model, record),
    lambda: run.write_text(folder / "text.json", "x" * 8192),
):
    try:
        write()
    except OSError:
        failed += 1
after = {p.name: p.read_bytes() for p in folder.iterdir()}
print(failed, before == after, sorted(after))
"""


def test_full_disk_leaves_previous_files(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        timeout=600,
    )
    wanted = "3 True ['best.keras', 'state.npz', 'text.json']"
    assert done.stdout.strip() == wanted, done.stderr


def test_atomic_file_keeps_previous_content_on_error(tmp_path):
    file = tmp_path / "a.txt"
    run.write_text(file, "before")
    with pytest.raises(RuntimeError), run.atomic_file(file) as part:
        part.write_text("half")
        raise RuntimeError
    assert file.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_history_has_a_column_for_every_key(tmp_path):
    run.write_history(tmp_path / "h.csv", [{"epoch": 1}, {"epoch": 2, "mAP": 0.5}])
    assert (tmp_path / "h.csv").read_text() == "epoch,mAP\n1,\n2,0.5\n"


def test_existing_run_is_refused_resumed_or_replaced(tmp_path):
    config = DetectConfig(runs=str(tmp_path), name="a", epochs=3)
    run.open_folder(config.folder, config)
    assert json.loads((config.folder / "versions.json").read_text())["numpy"]
    (config.folder / "old").touch()
    with pytest.raises(run.RunError, match="--resume.*--overwrite"):
        run.open_folder(config.folder, config)
    run.open_folder(config.folder, config.replace(workers=7), resume=True)
    with pytest.raises(run.RunError, match="epochs: 3 -> 4"):
        run.open_folder(config.folder, config.replace(epochs=4), resume=True)
    assert (config.folder / "old").exists()
    run.open_folder(config.folder, config, overwrite=True)
    assert not (config.folder / "old").exists()


def test_folder_of_something_else_is_never_deleted(tmp_path):
    config = DetectConfig(runs=str(tmp_path), name="photos")
    config.folder.mkdir()
    (config.folder / "holiday.jpg").touch()
    with pytest.raises(run.RunError, match="not a run folder"):
        run.open_folder(config.folder, config, overwrite=True)
    assert (config.folder / "holiday.jpg").exists()


def test_model_without_description_is_refused(tmp_path):
    with pytest.raises(run.RunError, match="No model at"):
        run.find_model(tmp_path / "none.keras")
    (tmp_path / "m.tflite").touch()
    with pytest.raises(run.RunError, match="m.json beside"):
        run.read_meta(tmp_path / "m.tflite")
    (tmp_path / "m.keras").write_bytes(b"no archive")
    with pytest.raises(run.RunError, match="carries no labels"):
        run.read_meta(tmp_path / "m.keras")
    (tmp_path / "m.onnx").touch()
    with pytest.raises(run.RunError, match=r"\.keras or \.tflite"):
        run.find_model(tmp_path / "m.onnx")
