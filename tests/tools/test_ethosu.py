"""Arm's compiler: what it maps, its figures, bad files, nothing half-written."""

import json
import os
import subprocess
import sys

import pytest
import tflite_files

pytest.importorskip("ai_edge_litert")

from keras_lightnets import _errors
from keras_lightnets.tools.export import _flatbuffer, ethosu

TARGET = "ethos-u55-128"


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("ethosu.vela")
    return ethosu.compile_file(tflite_files.conv(), TARGET)


def test_a_convolution_becomes_one_op(compiled):
    content, found = compiled
    (op,) = _flatbuffer.read(content).ops
    assert op.custom_code == "ethos-u"
    assert (found.ops, found.npu_ops, found.all_mapped) == (1, 1, True)
    assert found.bytes == len(content)


def test_figures_are_those_of_the_compiler(compiled, tmp_path):
    found = compiled[1]
    path = tmp_path / "m.tflite"
    path.write_bytes(tflite_files.conv())
    done = subprocess.run(
        [sys.executable, "-m", "ethosu.vela", path, "--accelerator-config", TARGET],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    words = {
        line.rpartition("  ")[0].strip(): line.rpartition("  ")[2].strip()
        for line in done.stdout.splitlines()
    }
    assert words["Total SRAM used"] == f"{found.sram_kib:.2f} KiB"
    assert words["Total Off-chip Flash used"] == f"{found.flash_kib:.2f} KiB"
    assert words["Neural network macs"] == f"{found.macs} MACs/batch"
    # 64 pixels of 8x8, 4 channels of 3x3x3 weights.
    assert found.macs == 64 * 4 * 27
    rate = found.clock_mhz * 1e6 / found.cycles
    assert found.inferences_per_second == pytest.approx(rate, rel=1e-3)
    assert found.dram_kib == 0


def test_what_stays_on_the_cpu_has_a_reason():
    pytest.importorskip("ethosu.vela")
    content = tflite_files.conv(tail=[tflite_files.custom("mine")])
    compiled, found = ethosu.compile_file(content, "ethos-u65-256")
    assert [op.label for op in _flatbuffer.read(compiled).ops] == ["ethos-u", "mine"]
    (row,) = found.cpu_ops
    assert (row.op, row.output) == ("mine", "t4")
    assert "CPU: 1 x mine" in found.table()
    assert json.loads(json.dumps(found.json()))["npu_ops"] == 1


def test_written_beside_the_file(tmp_path):
    pytest.importorskip("ethosu.vela")
    path = tmp_path / "m.tflite"
    path.write_bytes(tflite_files.conv())
    written, found = ethosu.write(path, "ethos-u85-256")
    assert written == tmp_path / "m_ethos-u85-256_vela.tflite"
    assert written.stat().st_size == found.bytes
    assert found.memory == "Dedicated_Sram_384KB"
    assert set(os.listdir(tmp_path)) == {path.name, written.name}


BAD = {
    "floats": (tflite_files.conv(dtype="FLOAT32"), "works on FLOAT32; Ethos-U runs"),
    "compiled": (
        tflite_files.conv(tail=[tflite_files.custom("ethos-u")]),
        "compiled for Arm Ethos-U already",
    ),
    "open size": (tflite_files.conv(open=True), "leaves its size open"),
    "not TFLite": (b"PK\x03\x04" + bytes(64), "not a TFLite file"),
    "cut": (tflite_files.conv()[:400], "cut short or damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_leave_nothing_behind(case, tmp_path):
    content, text = BAD[case]
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        ethosu.write(path, TARGET)
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_a_refusing_compiler_leaves_nothing_behind(tmp_path, monkeypatch):
    pytest.importorskip("ethosu.vela")
    broken = ethosu.Target(TARGET, "No_Such_System", "Shared_Sram")
    monkeypatch.setattr(ethosu, "TARGETS", {TARGET: broken})
    path = tmp_path / "m.tflite"
    path.write_bytes(tflite_files.conv())
    with pytest.raises(ValueError, match="Vela did not compile.*No_Such_System"):
        ethosu.write(path, TARGET)
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu.vela", None)
    with pytest.raises(_errors.MissingExtraError, match=r"keras-lightnets\[ethosu\]"):
        ethosu.compile_file(tflite_files.conv(), TARGET)


def test_unknown_target():
    with pytest.raises(ValueError, match="Did you mean 'ethos-u55-128'"):
        ethosu.compile_file(tflite_files.conv(), "ethos-u55-182")


@pytest.mark.export
def test_formats_of_small_devices(tmp_path):
    """Both rows of the table of formats, from a Keras model to files and figures."""
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
    pytest.importorskip("tf_keras")
    from quant_models import classifier, pictures, settle

    from keras_lightnets.tools.export import formats

    model = settle(classifier())
    shown = list(pictures(4).astype("float32"))
    npu = formats.export(model, "ethosu", tmp_path / "a.tflite", calibration=shown)
    assert npu.problems == ()
    endings = {ethosu.ending(name) for name in ethosu.TARGETS}
    assert {path.name for path in npu.files} == {
        "a.tflite",
        *(f"a{text}" for text in endings),
    }
    assert all(found.all_mapped for found in npu.verdicts.values())
    tiny = formats.export(
        model, "tflite-micro", tmp_path / "b.tflite", calibration=shown
    )
    assert tiny.problems == ()
    assert tiny.verdicts["micro"].equal == 1
