"""The command line, called in this process."""

import json

import pytest
from typer.testing import CliRunner

from keras_lightnets.__main__ import app


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_list_filters_and_shows_tags():
    found = json.loads(run("list", "ghost*", "--weights", "--json").stdout)
    assert [row["name"] for row in found] == ["ghostnet"]
    assert found[0]["weights"]


def test_info_prints_cost_source_and_licence():
    shown = run("info", "mobilenet_v1_025").stdout
    for text in ("470,072", "licence", "http", "1704.04861"):
        assert text in shown


def test_info_as_json_counts_layers():
    facts = json.loads(run("info", "mobilenet_v1_025", "--layers", "--json").stdout)
    assert facts["params"] == 470072
    assert sum(row["madds"] for row in facts["layers"]) == facts["madds"]


def test_unknown_model_is_explained():
    result = run("info", "gohstnet")
    assert isinstance(result.exception, ValueError)
    assert "Did you mean 'ghostnet'" in str(result.exception)


@pytest.mark.parametrize("verb", ["train", "eval", "predict"])
def test_unknown_task_is_explained(verb):
    result = run(verb, "detcet")
    assert "Did you mean 'detect'" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--format", "onnx", "edgtpu"), "Did you mean 'edgetpu'"),
        (("--format", "edgetpu", "--opset", "15"), "format with an operator set"),
        (("--format", "edgetpu", "onnx", "--opset", "19"), "Legal: 13, 14, 15"),
        (("--format", "edgetpu,onnx", "--opset", "15"), "No model at nowhere"),
        (("--threads", "1", "--threads", "two"), "threads"),
    ],
)
def test_flags_of_export_are_its_options(words, text):
    result = run("export", "nowhere", *words, "--json")
    assert result.exit_code == 2
    assert text in json.loads(result.stdout)["error"]


@pytest.mark.parametrize(
    ("task", "option"),
    [("classify", "--cutmix"), ("detect", "--nms-iou"), ("segment", "--hard-share")],
)
def test_help_behind_a_task_is_the_tasks(task, option):
    assert option in run("train", task, "--help").stdout
    assert task in run("train", "--help").stdout
