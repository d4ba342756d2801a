"""TFLite Micro: what runs, how much memory, which operators lack, bad files."""

import json
import sys

import numpy as np
import pytest
import tflite_files

pytest.importorskip("ai_edge_litert")

from keras_lightnets import _errors
from keras_lightnets.tools.export import _micro_child, micro


def needs_micro():
    pytest.importorskip("tflite_micro.python.tflite_micro.runtime")


def test_runs_and_equals_litert():
    needs_micro()
    content = tflite_files.conv(size=16)
    pictures = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3))
    found = micro.report(content, list(pictures))
    assert (found.runs, found.samples, found.missing) == (True, 3, {})
    assert found.equal == 1
    assert found.max_error_steps == 0
    assert found.model_bytes == len(content)
    # Input and output maps lie in the arena together.
    assert found.arena_bytes > 16 * 16 * (3 + 4)
    assert found.arena_bytes < 16 * 16 * (3 + 4) + 4096
    with pytest.raises(RuntimeError):
        _micro_child._interpreter(content, found.arena_bytes - 16)
    assert _micro_child._interpreter(content, found.arena_bytes) is not None
    assert json.loads(json.dumps(found.json()))["arena_bytes"] == found.arena_bytes


def test_missing_operators_are_named():
    needs_micro()
    found = micro.report(tflite_files.conv(tail=[tflite_files.tile]))
    assert not found.runs
    assert list(found.missing) == ["TILE"]
    assert "builtin opcode 'TILE'" in found.missing["TILE"]
    assert (found.arena_bytes, found.boards) == (None, ())
    assert "does not run" in found.table()


def test_an_aborting_kernel_does_not_end_the_caller():
    needs_micro()
    content = tflite_files.conv(4, 600, tail=[tflite_files.softmax])
    black = micro.report(content, [np.zeros((4, 4, 3))])
    assert black.problem == "the interpreter's process ended by SIGABRT"
    assert "best of 600 classes has less than 1/512" in black.missing["SOFTMAX"]
    noise = micro.report(content)
    assert noise.runs, noise.problem


def test_boards_by_memory():
    base = micro.MicroReport(1, 900 * 1024, 200 * 1024, 1, 1.0, 0.0, {}, "")
    assert "nRF52840 (Arduino Nano 33 BLE)" not in base.boards
    assert "RP2040 (Pico)" in base.boards
    wide = micro.MicroReport(1, 900 * 1024, 600 * 1024, 1, 1.0, 0.0, {}, "")
    assert wide.boards == ("i.MX RT1062 (Teensy 4.1)", "STM32H743")


BAD = {
    "compiled": (
        tflite_files.conv(tail=[tflite_files.custom("edgetpu-custom-op")]),
        "compiled for the Edge TPU already",
    ),
    "open size": (tflite_files.conv(open=True), "leaves its size open"),
    "not TFLite": (b"PK\x03\x04" + bytes(64), "not a TFLite file"),
    "cut": (tflite_files.conv()[:400], "cut short or damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case):
    content, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        micro.report(content)


def test_missing_extra_is_named(monkeypatch):
    name = "tflite_micro.python.tflite_micro.runtime"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(_errors.MissingExtraError, match=r"keras-lightnets\[micro\]"):
        micro.report(tflite_files.conv())
