"""Model card and table: every figure of the JSON, and nothing else."""

import copy
import io
import re

import pytest
from rich.console import Console

from keras_lightnets.tasks.commands import print_table
from keras_lightnets.tools import card

END = {"name": "image", "dtype": "uint8", "shape": [1, 48, 64, 3]}
FILE = {
    "path": "runs/birds/export/tflite-int8/model.tflite",
    "bytes": 3_145_728,
    "ops": {"CONV_2D": 5, "ADD": 2},
    "agreement": 0.9875,
    "io": {
        "inputs": [{**END, "scale": 0.0078125, "zero_point": 127}],
        "outputs": [
            {
                "name": "logits",
                "dtype": "uint8",
                "shape": [1, 2],
                "scale": 0.25,
                "zero_point": 9,
            }
        ],
    },
    "metrics": {"top1": 0.8125, "mean_recall": 0.77, "images": 40},
    "engine": "LiteRT",
    "latency": [
        {"threads": 1, "median_ms": 7.25, "low_ms": 7.0, "high_ms": 7.5, "runs": 20},
        {"threads": 2, "median_ms": 4.5, "low_ms": 4.4, "high_ms": 4.6, "runs": 20},
    ],
    "verdicts": {"edgetpu": {"text": "6 of 7 ops mapped to the Edge TPU\nrest"}},
    "problems": ["1 op | is not mapped"],
}
RESULT = {
    "run": "runs/birds",
    "monitor": "top1",
    "model": {
        "name": "birds",
        "task": "classify",
        "backbone": "mobilenet_v2",
        "head": None,
        "params": 1234567,
        "input": [48, 64],
        "range": "0-255 RGB",
        "labels": ["finch", "owl"],
        "data": "photos",
        "val_data": "photos_val",
        "val_images": 40,
        "epochs": 12,
        "reference": "arXiv:1801.04381",
        "weights": {"source": "s", "licence": "Apache-2.0", "url": "https://w"},
        "calibration": 100,
        "versions": {"keras": "3.15.1"},
    },
    "machine": {"processor": "EPYC", "cores": 2, "system": "Linux x86_64"},
    "float": {"top1": 0.8375, "mean_recall": 0.8, "images": 40},
    "qat": None,
    "files": {"tflite-int8": FILE},
}


def test_card_shows_what_was_measured():
    text = card.card(RESULT)
    for shown in (
        *("# birds", "1,234,567", "48 x 64", "finch, owl", "2 classes"),
        *("3,072", "98.75%", "0.8125", "0.8375", "0.7700", "7.25 ±0.25"),
        *("4.50 ±0.10", "EPYC, 2 cores", "0.0078125", "| 127 |", "1x48x64x3"),
        *("6 of 7 ops mapped", "Apache-2.0", "arXiv:1801.04381", "keras 3.15.1"),
        *("40 validation images", "1 op | is not mapped", "| 100 |"),
    ):
        assert shown in text, shown
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) >= 4


def test_card_leaves_out_what_was_not_measured():
    result = copy.deepcopy(RESULT)
    file = result["files"]["tflite-int8"]
    file.update(latency=[], verdicts={}, problems=[], agreement=None)
    text = card.card(result)
    assert "Not measured." in text
    assert "None found." in text
    assert "## Devices" not in text
    assert "EPYC" not in text
    with pytest.raises(KeyError):
        card.card({**result, "model": {}})


@pytest.mark.parametrize("width", [30, 70, 80, 200])
def test_no_figure_is_cut_off(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    result = copy.deepcopy(RESULT)
    slow = {"threads": 1, "median_ms": 1234.5, "low_ms": 1200, "high_ms": 1400}
    result["files"]["tflite-float32"] = {
        **FILE,
        "bytes": 123_456_789,
        "latency": [{**slow, "runs": 20}, FILE["latency"][1]],
        "problems": ["2 ops [a, b] are not mapped"],
    }
    print_table(card.table(result))
    shown = capsys.readouterr().out
    assert "…" not in shown
    for figure in ("120,563", "98.75%", "0.8125", "1234.50", "±100.00", "4.50"):
        assert figure in shown
    assert "2 ops [a, b]" in " ".join(shown.split())
    assert ("1234.50 ±100.00" in shown) == (width == 200)


def test_terminal_table():
    stream = io.StringIO()
    Console(file=stream, width=120).print(card.table(RESULT))
    lines = stream.getvalue().splitlines()
    row = next(line for line in lines if line.strip().startswith("tflite-int8"))
    for cell in ("3,072", "7", "98.75%", "0.8125", "7.25 ±0.25", "4.50 ±0.10"):
        assert cell in row
    assert any("Keras, float" in line and "0.8375" in line for line in lines)
    assert any("6 of 7 ops mapped" in line for line in lines)
