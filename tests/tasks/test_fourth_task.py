"""A fourth task costs one file: put beside the others, it has all verbs and a run."""

import json
import pathlib

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from keras_lightnets import tasks
from keras_lightnets.__main__ import app
from keras_lightnets.tools.export import metadata

FOLDER = pathlib.Path(__file__).parent / "fourth"


@pytest.fixture
def beside(monkeypatch):
    """Lay the file's folder over the package's own."""
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(FOLDER)])


def call(verb, *words):
    result = CliRunner().invoke(app, [verb, *map(str, words), "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_names_are_those_of_the_files_with_a_task(beside):
    names = ("classify", "detect", "segment")
    assert tasks.task_names() == (*names, "brightness")
    result = CliRunner().invoke(app, ["train", "brigthness"])
    assert "Did you mean 'brightness'" in str(result.exception)


def test_one_file_trains_resumes_evaluates_and_predicts(beside, tmp_path):
    for split in ("train", "val"):
        for grey in (20, 120, 220):
            (tmp_path / split / str(grey)).mkdir(parents=True)
            for i in range(2):
                picture = np.full((40, 48, 3), grey + 2 * i, np.uint8)
                cv2.imwrite(str(tmp_path / split / str(grey) / f"{i}.png"), picture)
    (tmp_path / "train" / "20" / "bad.png").write_bytes(b"\x89PNG cut")
    words = ["--data", tmp_path / "train", "--val-data", tmp_path / "val"]
    words += ["--image-size", "32", "--batch-size", "3", "--ema", "0", "--epochs", "20"]
    words += ["--learning-rate", "0.15", "--runs", tmp_path, "--eval-every", "20"]
    code, made = call("train", "brightness", *words)
    assert code == 0, made
    assert made["data"] == {"unreadable_image": 1}
    names = {path.name for path in (tmp_path / "brightness").iterdir()}
    assert {"config.json", "history.csv", "curves.png", "best.keras"} < names
    assert made["best"]["error"] < 0.1 and made["best"]["close"] == 1.0
    code, again = call("train", "brightness", *words, "--resume")
    assert code == 0 and again["best"] == made["best"]
    code, found = call("eval", "brightness", "--model", tmp_path / "brightness")
    assert code == 0 and found["error"] == pytest.approx(made["best"]["error"])
    picture = tmp_path / "val" / "120" / "0.png"
    words = ["--model", tmp_path / "brightness", "--output", tmp_path / "out"]
    code, found = call("predict", "brightness", picture, *words)
    assert code == 0 and found["images"][0]["value"] == pytest.approx(120, abs=25)
    code, found = call("train", "brightness", "--epochs", "none")
    assert code == 2 and "epochs" in found["error"]


def test_a_file_of_a_task_that_mediapipe_lacks_stays_as_it_is():
    class Meta:
        def to_dict(self):
            return {"task": "brightness"}

    assert metadata.attach(b"content", Meta()) == b"content"
