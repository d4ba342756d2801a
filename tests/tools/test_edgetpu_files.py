"""The Edge TPU verdict on files: the command, bad files, the vendor's compiler."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest
import tflite_files
from typer.testing import CliRunner

from keras_lightnets.__main__ import app
from keras_lightnets.tools.export import edgetpu


def command(tmp_path, content, *options):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    return CliRunner().invoke(app, ["edgetpu", str(path), *options])


def test_command_prints_the_table_and_the_advice(tmp_path):
    whole = command(tmp_path, tflite_files.conv(), "--strict")
    assert whole.exit_code == 0
    assert "1 of 1 ops mapped" in whole.stdout
    content = tflite_files.conv(tail=[tflite_files.tile])
    part = command(tmp_path, content, "--strict")
    assert part.exit_code == 1
    assert "op 1 TILE: Operation is otherwise supported" in part.stdout
    assert "1 x TILE: RESIZE_NEAREST_NEIGHBOR for maps" in part.stdout
    lax = command(tmp_path, content, "--json")
    assert lax.exit_code == 0
    rows = json.loads(lax.stdout)["ops"]
    assert [row["mapped"] for row in rows] == [True, False]
    assert rows[1]["advice"].endswith("[G E]")


BAD = {
    "floats": (
        tflite_files.conv(dtype="FLOAT32"),
        "works on FLOAT32; the Edge TPU runs INT8 or UINT8 only",
    ),
    "compiled": (
        tflite_files.conv(tail=[tflite_files.custom("edgetpu-custom-op")]),
        "compiled for the Edge TPU already",
    ),
    "open size": (
        tflite_files.conv(open=True),
        "leaves its size open: (-1, -1, -1, 3). For the Edge TPU export it",
    ),
    "not TFLite": (b"PK\x03\x04" + bytes(64), "not a TFLite file"),
    "cut": (tflite_files.conv()[:400], "cut short or damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case):
    content, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        edgetpu.verdict(content)


def test_command_names_a_bad_file_in_one_line(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(BAD["cut"][0])
    done = subprocess.run(
        [sys.executable, "-m", "keras_lightnets", "edgetpu", path, "--strict"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_other_files_are_refused(tmp_path):
    zipped = tmp_path / "model.keras"
    zipped.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="model.keras: not a TFLite file"):
        edgetpu.verdict(zipped)
    with pytest.raises(ValueError, match="No file at"):
        edgetpu.verdict(tmp_path / "missing.tflite")


LOG = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 12 ms.

Input model: model.tflite
Input size: 13.34KiB
Output model: model_edgetpu.tflite
Output size: 60.04KiB
On-chip memory used for caching model parameters: 10.75KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 3
Operation log: model_edgetpu.log

Operator                       Count      Status

QUANTIZE                       1          Operation is otherwise supported, but not \
mapped due to some unspecified limitation
CONV_2D                        {mapped}          Mapped to Edge TPU
"""


def fake_compiler(folder, monkeypatch, text, code=0):
    path = folder / "edgetpu_compiler"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def small_file(shared):
    return min((shared / "data" / "edgetpu").glob("N32*.tflite"))


def test_compiler_on_the_path_is_run_and_compared(small_file, tmp_path, monkeypatch):
    path = small_file
    assert edgetpu.verdict(path, compiler=False).compiler is None
    fake_compiler(tmp_path, monkeypatch, LOG.format(mapped=2))
    report = edgetpu.verdict(path).compiler
    assert report.agrees
    assert report.version == "Edge TPU Compiler version 16.0.384591198"
    assert (report.mapped, report.unmapped) == ({"CONV_2D": 2}, {"QUANTIZE": 1})
    assert "agrees with the prediction" in edgetpu.verdict(path).table()


def test_compiler_that_disagrees(small_file, tmp_path, monkeypatch):
    fake_compiler(tmp_path, monkeypatch, LOG.format(mapped=1))
    data = edgetpu.verdict(small_file).json()
    assert not data["compiler"]["agrees"]
    assert data["compiler"]["differences"] == (
        "CONV_2D: predicted 2 mapped, the compiler mapped 1",
    )


def test_compiler_that_fails(small_file, tmp_path, monkeypatch):
    text = (
        "Edge TPU Compiler version 16.0.384591198\nInvalid model: Model not quantized"
    )
    fake_compiler(tmp_path, monkeypatch, text, code=1)
    report = edgetpu.verdict(small_file.read_bytes()).compiler
    assert report.error == "Invalid model: Model not quantized"
    assert not report.agrees


def test_compiler_asked_for_but_missing(small_file, monkeypatch, tmp_path):
    path = small_file
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not on the PATH"):
        edgetpu.verdict(path, compiler=True)
