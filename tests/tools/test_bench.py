"""Networks timed in turns: rows, table, CSV, plot and the Pareto front."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from keras_lightnets.__main__ import app
from keras_lightnets.tools import bench

COLUMNS = "name,size,params,madds,top1,kind,threads,bytes,latency_ms,low_ms,high_ms"
COLUMNS += ",runs,problem"
# name -> (latency, accuracy)
POINTS = {
    "quick": (1.0, 60.0),
    "slower and worse": (2.0, 55.0),
    "middle": (2.0, 70.0),
    "as quick, worse": (2.0, 69.0),
    "as good, slower": (3.0, 70.0),
    "best": (9.0, 80.0),
}


def test_pareto_front_is_what_nothing_beats():
    names = list(POINTS)
    front = bench.pareto(list(POINTS.values()))
    assert [names[i] for i in front] == ["quick", "middle", "best"]
    assert bench.pareto([]) == []
    assert bench.pareto([(1.0, 5.0), (1.0, 5.0)]) == [0, 1]


def test_turns_are_interleaved_and_start_with_another_one_each_round():
    calls = []

    def function(name):
        def call():
            calls.append(name)
            return len(calls)

        return call

    times = bench.in_turns([function(n) for n in "abc"], 3)
    assert "".join(calls) == "abcbcacab"
    assert times == [[1, 6, 8], [2, 4, 9], [3, 5, 7]]


def test_names_and_patterns():
    expected = ["ghostnet_050", "ghostnet", "ghostnet_130"]
    assert bench.expand(["ghostnet_050", "GhostNet", "ghostnet*"]) == expected
    with pytest.raises(ValueError, match="Did you mean 'ghostnet'"):
        bench.expand(["gohstnet"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kinds": ["int4"]}, "Unknown kind of file 'int4'"),
        ({"threads": [0]}, "threads must be 1 or more. Received: 0"),
        ({"runs": 0}, "runs must be 1 or more. Received: 0"),
    ],
)
def test_illegal_options(options, text):
    with pytest.raises(ValueError, match=text):
        bench.bench(["ghostnet"], **options)


def test_two_networks_through_the_command_line(tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("tf_keras")
    names = ["mobilenet_v1_025", "squeezenet_1_1"]
    options = ["--size", "64", "--threads", "1", "2", "--runs", "3"]
    run = ["bench", *names, *options, "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, run, catch_exceptions=False)
    found = json.loads(result.stdout)
    assert (tmp_path / "out" / "pareto.png").read_bytes()[1:4] == b"PNG"
    with (tmp_path / "out" / "bench.csv").open(encoding="utf-8") as file:
        assert file.readline().strip() == COLUMNS
        file.seek(0)
        rows = list(csv.DictReader(file))
    settings = [(r["name"], r["kind"], r["threads"]) for r in rows]
    kinds = ("float32", "int8")
    assert settings == [(n, k, t) for n in names for k in kinds for t in "12"]
    for row, same in zip(rows, found["rows"], strict=True):
        low, middle, high = (
            float(row[key]) for key in ("low_ms", "latency_ms", "high_ms")
        )
        assert 0 < low <= middle <= high
        assert (row["runs"], row["problem"]) == ("3", "")
        assert same["latency_ms"] == pytest.approx(middle)
    assert rows[0]["params"] == "470072"
    assert int(rows[2]["bytes"]) < int(rows[0]["bytes"]) / 2
    text = shown(bench.table([bench.Row(**row) for row in found["rows"]]))
    assert text.count("2T, ms") == text.count("int8") == 2
    assert "mobilenet_v1_025" in text


def shown(table):
    """Print a table as on a wide terminal."""
    import io

    from rich.console import Console

    target = io.StringIO()
    Console(file=target, width=200).print(table)
    return target.getvalue()


def test_network_without_a_file_says_why():
    facts = {"name": "a", "size": 64, "params": 1, "madds": 1, "top1": None}
    rows = [
        bench.Row(**facts, kind="int8", threads=1, problem="two gates stay float"),
    ]
    text = shown(bench.table(rows))
    assert "no file" in text and "two gates stay float" in text


def test_calibration_pictures_come_from_a_folder(tmp_path):
    from PIL import Image

    for i, name in enumerate(("b.png", "a.jpg", "note.txt")):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no picture")
            continue
        Image.new("RGB", (20, 10), (60 * i + 60, 0, 0)).save(tmp_path / name)
    pictures = bench.read_pictures(tmp_path, 32)
    assert [p.shape for p in pictures] == [(32, 32, 3)] * 2
    assert np.mean(pictures[0][..., 0]) > np.mean(pictures[1][..., 0])
    with pytest.raises(ValueError, match="one size for all networks.*size=0"):
        bench.read_pictures(tmp_path, 0)


def test_statistics_are_those_of_the_pictures():
    import keras

    random = np.random.RandomState(0)
    x = (5 + 3 * random.randn(4, 8, 8, 2)).astype("float32")
    inputs = keras.Input((8, 8, 2))
    norm = keras.layers.BatchNormalization(momentum=0.9)
    model = keras.Model(inputs, norm(inputs))
    bench.settle(model, x)
    found = np.asarray(model(x, training=False))
    assert np.abs(found.mean((0, 1, 2))).max() < 1e-3
    np.testing.assert_allclose(found.std((0, 1, 2)), 1, atol=1e-2)
    assert norm.momentum == 0.9


def test_file_that_the_interpreter_refuses_says_so(monkeypatch):
    facts = {"name": "a", "size": 64, "params": 1, "madds": 1, "top1": None}
    row = bench.Row(**facts, kind="int8", threads=0)
    monkeypatch.setattr(bench, "_files", lambda *_: [(row, b"TFL3")])

    def refuse(content, threads):
        raise RuntimeError("node 7 failed to prepare")

    monkeypatch.setattr(bench, "timer", refuse)
    (found,) = bench.bench(["ghostnet"], threads=[1], runs=1)
    assert found.problem == "LiteRT refuses: node 7 failed to prepare"
    assert found.latency_ms is None
