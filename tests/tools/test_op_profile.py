"""Time per operation: which there are, who runs them, what is refused."""

import json

import keras
import pytest
from keras import layers
from typer.testing import CliRunner

pytest.importorskip("tf_keras")
pytest.importorskip("ai_edge_litert")

from quant_models import pictures

from keras_lightnets.__main__ import app
from keras_lightnets.tools import op_profile
from keras_lightnets.tools.export import tflite

SIDE = 32


@pytest.fixture(scope="module")
def content():
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(image)
    x = layers.Conv2D(16, 3, name="middle")(x)
    model = keras.Model(image, layers.Softmax(name="soft")(x))
    return tflite.convert(model, "int8", "int8", pictures(2, SIDE))


def test_operations_in_order(content):
    ops = op_profile.profile(content, runs=5)
    assert [op.name.split()[0] for op in ops] == ["Convolution"] * 2 + ["SOFTMAX"]
    assert [op.delegated for op in ops] == [True, True, False]
    assert ops[1].microseconds > 0
    (first, *_) = op_profile.by_name(ops)
    assert first[2] == max(row[2] for row in op_profile.by_name(ops))
    table = op_profile.table("int8", ops)
    assert table.row_count == len(op_profile.by_name(ops)) + 1


def test_a_file_that_litert_refuses_is_said(content):
    with pytest.raises(RuntimeError, match="does not profile the file.*Version 2.3"):
        op_profile.profile(content[: len(content) // 2], runs=1)


@pytest.mark.export
def test_command_shows_the_operations_of_both_files():
    names = ["mobilenet_v1_025", "--size", "64", "--runs", "3", "--ops", "--json"]
    done = CliRunner().invoke(app, ["bench", *names])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["kind"] for row in rows] == ["float32", "int8"]
    assert all(row["ops"] for row in rows)
