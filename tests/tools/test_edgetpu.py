"""The Edge TPU verdict against compiled files, and rules the pairs do not hold."""

import functools
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tflite_files
from typer.testing import CliRunner

from keras_lightnets.__main__ import app
from keras_lightnets.tools.export import (
    _edgetpu_advice,
    _edgetpu_rules,
    _flatbuffer,
    edgetpu,
)

SHARED = Path(
    os.environ.get("LIGHTNETS_SHARED", Path(__file__).parents[2].parent / "shared")
)
# There is one package with an LSTM: a formula could not be checked.
MEMORY_UNMODELLED = {(3, "keras_lstm_mnist_ptq")}


@functools.cache
def pairs():
    path = SHARED / "facts" / "edgetpu_pairs.json"
    if not path.is_file():
        pytest.skip(f"the shared folder is missing: no {path}")
    return json.loads(path.read_text())["pairs"]


def files():
    folder = SHARED / "data" / "edgetpu"
    if not folder.is_dir():
        pytest.skip(f"the shared folder is missing: no {folder}")
    return sorted(folder.glob("*.tflite"))


def pair_of(path, ops):
    for pair in pairs():
        if pair["name"] == path.stem and len(pair["ops"]) == len(ops):
            return pair
    raise LookupError(path.stem)


def test_every_op_of_every_pair():
    wrong = []
    for number, pair in enumerate(pairs()):
        rows = edgetpu.verdict(pair["ops"]).ops
        for row, op in zip(rows, pair["ops"], strict=True):
            if row.mapped != op["mapped"]:
                wrong.append((number, pair["name"], row))
    assert wrong == []
    assert sum(len(pair["ops"]) for pair in pairs()) == 1803


def test_files_give_the_same_as_op_lists():
    for path in files():
        verdict = edgetpu.verdict(path, compiler=False)
        pair = pair_of(path, verdict.ops)
        truth = [op["mapped"] for op in pair["ops"]]
        assert [row.mapped for row in verdict.ops] == truth, path.name
        listed = edgetpu.verdict(pair["ops"])
        assert [r.reason for r in listed.ops] == [r.reason for r in verdict.ops]
        assert listed.on_chip_bytes == verdict.on_chip_bytes


def test_parameter_bytes_within_five_percent():
    off = set()
    for number, pair in enumerate(pairs()):
        verdict = edgetpu.verdict(pair["ops"])
        memory = pair["memory"]
        truth = memory["cached_param_bytes"] + memory["streamed_param_bytes"]
        ours = verdict.on_chip_bytes + verdict.streamed_bytes
        if abs(ours - truth) > 0.05 * truth:
            off.add((number, pair["name"]))
    assert off == MEMORY_UNMODELLED


def test_reader_equals_the_listed_tensors():
    for path in files():
        graph = _flatbuffer.read(path)
        for op, row in zip(graph.ops, pair_of(path, graph.ops)["ops"], strict=True):
            assert (op.name, op.version) == (row["op"], row["version"])
            listed = row["attrs"].items()
            assert all(op.attributes[key] == value for key, value in listed)
            for tensor, other in zip(op.inputs, row["inputs"], strict=True):
                assert (tensor is None) == (other is None)
                if tensor is not None:
                    assert tensor.dtype == other["dtype"]
                    assert list(tensor.shape) == other["shape"]
                    assert tensor.const == other["const"]
                    assert len(tensor.scales) == other["nscale"]


def test_packing_again_changes_nothing():
    path = min(files(), key=lambda path: path.stat().st_size)
    model, content = _flatbuffer.load(path)
    assert _flatbuffer.read(_flatbuffer.pack(model)) == _flatbuffer.read(content)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_cut_file_is_refused(share):
    path = min(files(), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"not a TFLite file|cut short or damaged"):
        edgetpu.verdict(content[: int(len(content) * share)], compiler=False)


def test_other_files_are_refused(tmp_path):
    zipped = tmp_path / "model.keras"
    zipped.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="model.keras: not a TFLite file"):
        edgetpu.verdict(zipped)
    with pytest.raises(ValueError, match="No file at"):
        edgetpu.verdict(tmp_path / "missing.tflite")


def tensor(shape, dtype="INT8", **more):
    scaled = dtype in ("INT8", "UINT8")
    return {"dtype": dtype, "shape": list(shape), "nscale": int(scaled), **more}


def constant(*value, dtype="INT32"):
    return tensor([len(value)], dtype, const=True, value=list(value))


def op(name, inputs, outputs, version=1, chain=(0, 1), **attrs):
    """One op that takes tensor `chain[0]` and makes tensor `chain[1]`."""
    places = [chain[0]] + [1000 + chain[0] * 10 + k for k in range(len(inputs) - 1)]
    return {
        "op": name,
        "version": version,
        "attrs": attrs,
        "inputs": inputs,
        "outputs": outputs,
        "in_ids": places,
        "out_ids": [chain[1] + k for k in range(len(outputs))],
    }


def conv(chain, taken=8, version=3, dtype="INT8", kernel=(1, 1), **attrs):
    image = tensor([1, 8, 8, 8], dtype)
    weights = tensor([8, *kernel, taken], const=True)
    bias = tensor([8], "INT32", const=True)
    return op(
        "CONV_2D",
        [image, weights, bias],
        [tensor([1, 8, 8, 8], dtype)],
        version,
        chain,
        **{"dilationWFactor": 1, "dilationHFactor": 1, **attrs},
    )


MAP = tensor([1, 8, 8, 8])
REFUSED = {
    "unknown op": (op("HARD_SWISH", [MAP], [MAP]), "Operation not supported"),
    "version": (conv((0, 1), version=6), "version 6, seen mapped up to 3: unknown"),
    "float": (conv((0, 1), dtype="FLOAT32"), "unsupported data type: FLOAT32"),
    "int16": (conv((0, 1), dtype="INT16"), "unsupported data type: INT16"),
    "grouped": (conv((0, 1), taken=4), "grouped convolution, 2 groups"),
    "dilation": (conv((0, 1), kernel=(3, 3), dilationWFactor=2), "dilation differs"),
    "computed weights": (
        op("CONV_2D", [MAP, tensor([1, 1, 1, 8])], [MAP]),
        "weights are not constant",
    ),
    "fused pool": (
        op("MAX_POOL_2D", [MAP], [MAP], fusedActivationFunction="RELU"),
        "fused RELU",
    ),
    "constant part": (
        op("CONCATENATION", [MAP, tensor([1, 8, 8, 8], const=True)], [MAP]),
        "not zero padding",
    ),
    "wide dense": (
        op("FULLY_CONNECTED", [MAP, tensor([4, 8], const=True)], [tensor([9, 4])]),
        "not 1-D",
    ),
    "kept dimensions": (
        op(
            "FULLY_CONNECTED",
            [MAP, tensor([4, 8], const=True)],
            [tensor([1, 4])],
            keepNumDims=True,
        ),
        "keep_num_dims",
    ),
    "wide softmax": (
        op("SOFTMAX", [tensor([1, 9, 4])], [tensor([1, 9, 4])]),
        "not 1-D",
    ),
    "large softmax": (
        op("SOFTMAX", [tensor([1, 16385])], [tensor([1, 16385])]),
        "mapped up to 16,384",
    ),
    "batch mean": (op("MEAN", [MAP, constant(0)], [MAP]), "over the batch"),
    "channel mean": (
        op("MEAN", [tensor([1, 8, 8, 6]), constant(-1)], [MAP]),
        "6 channels",
    ),
    "large mean": (
        op("MEAN", [tensor([1, 256, 128, 3]), constant(1, 2)], [MAP]),
        "over 32768 positions",
    ),
    "long paddings": (
        op("PAD", [MAP, constant(*[0] * 8, dtype="INT64")], [MAP]),
        "INT64",
    ),
    "batch padding": (op("PAD", [MAP, constant(1, *[0] * 7)], [MAP]), "pads the batch"),
    "per-pixel alpha": (
        op("PRELU", [MAP, tensor([8, 8, 8], const=True)], [MAP]),
        "not 1-D",
    ),
    "large growth": (
        op(
            "RESIZE_BILINEAR",
            [tensor([1, 33, 33, 8]), constant(513, 513)],
            [tensor([1, 513, 513, 8])],
        ),
        "run precisely enough",
    ),
    "newer nearest": (
        op("RESIZE_NEAREST_NEIGHBOR", [MAP, constant(16, 16)], [MAP], version=3),
        "Operation version not supported",
    ),
    "strides": (
        op("STRIDED_SLICE", [MAP, *[constant(0)] * 2, constant(2)], [MAP]),
        "all must be 1",
    ),
    "new axis": (
        op("STRIDED_SLICE", [MAP, *[constant(1)] * 3], [MAP], newAxisMask=1),
        "new axis",
    ),
    "channels moved": (
        op("TRANSPOSE", [MAP, constant(0, 3, 1, 2)], [MAP]),
        "moves the channels",
    ),
    "five dimensions": (
        op("RESHAPE", [MAP, constant(1)], [tensor([1, 8, 8, 2, 4])]),
        "unsupported rank",
    ),
    "no scale": (op("ADD", [tensor([4], nscale=0)], [MAP]), "Model not quantized"),
    "custom": (
        op("CUSTOM:TFLite_Detection_PostProcess", [MAP], [tensor([1], "FLOAT32")]),
        "not supported: TFLite_Detection_PostProcess",
    ),
    "time first": (
        op("UNIDIRECTIONAL_SEQUENCE_LSTM", [MAP], [MAP], timeMajor=True),
        "time first",
    ),
    "batch split": (
        op("SPLIT", [constant(0), MAP], [MAP, MAP], 2),
        "splits the batch",
    ),
    "batch packed": (op("PACK", [MAP], [MAP], axis=0), "packs the batch"),
    "large tile": (op("TILE", [MAP, constant(1, 2, 2, 1)], [MAP]), "only a 1x1 map"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_reason(case):
    row, text = REFUSED[case]
    verdict = edgetpu.verdict([row])
    assert not verdict.all_mapped
    assert text in verdict.ops[0].reason
    assert verdict.first_unmapped == verdict.ops[0]


MAPPED = {
    "1-D dilation": conv((0, 1), kernel=(3, 1), dilationWFactor=2),
    "split in one": op("SPLIT", [constant(0), MAP], [MAP], 2),
    "requantise": op("QUANTIZE", [MAP], [tensor([1, 8, 8, 8], "UINT8")], 2),
    "softmax": op("SOFTMAX", [tensor([1, 16384])], [tensor([1, 16384])], 2),
    "transpose": op("TRANSPOSE", [MAP, constant(0, 2, 1, 3)], [MAP]),
    "zero part": op(
        "CONCATENATION",
        [MAP, tensor([1, 1, 1, 2], const=True, value=[0, 0])],
        [tensor([1, 8, 8, 10])],
    ),
    "doubling": op(
        "RESIZE_BILINEAR", [MAP, constant(16, 16)], [tensor([1, 16, 16, 8])], 3
    ),
    "small mean": op("MEAN", [MAP, constant(1, 2)], [tensor([1, 8])]),
    "tile": op("TILE", [tensor([1, 1, 1, 8]), constant(1, 8, 8, 1)], [MAP]),
}


@pytest.mark.parametrize("case", MAPPED)
def test_near_misses_are_mapped(case):
    verdict = edgetpu.verdict([MAPPED[case]])
    assert verdict.all_mapped, verdict.ops
    assert verdict.first_unmapped is None


def test_each_row_names_known_sources():
    advices = [*_edgetpu_advice.INSTEAD.values(), _edgetpu_advice.OTHERWISE]
    for rule in _edgetpu_rules.RULES.values():
        advices += [rule.newer, *(limit.advice for limit in rule.limits)]
    texts = [rule.source for rule in _edgetpu_rules.RULES.values()]
    for text in [*texts, *(advice.source for advice in advices)]:
        keys = {key.partition("#")[0] for key in text.split()}
        assert keys, text
        assert keys <= set(_edgetpu_advice.SOURCES), text
    assert all(advice.text for advice in advices)


def test_every_refusal_says_what_to_change():
    for case, (row, _) in REFUSED.items():
        assert edgetpu.verdict([row]).ops[0].advice, case
    for case, row in MAPPED.items():
        assert edgetpu.verdict([row]).ops[0].advice == "", case
    hard = edgetpu.verdict(chain_of("HARD_SWISH", "CONV_2D", "CONV_2D"))
    assert "RELU6(x + 3)" in hard.ops[0].advice
    assert hard.ops[1].advice == str(_edgetpu_advice.DEPENDENT)
    text = hard.table().partition("what to change:")[2]
    assert "1 x HARD_SWISH: x * RELU6(x + 3)" in text
    assert "2 x CONV_2D: change the op that it depends on" in text
    newer = edgetpu.verdict([conv((0, 1), version=6)]).ops[0].advice
    assert newer.startswith("SPLIT, a convolution per group")


def test_no_operator_is_both_mapped_and_replaced():
    assert not set(_edgetpu_advice.INSTEAD) & set(_edgetpu_rules.RULES)
    builtin = vars(_flatbuffer.schema().BuiltinOperator)
    names = set(_edgetpu_advice.INSTEAD) - {"TFLite_Detection_PostProcess"}
    assert names <= set(builtin)


def chain_of(*names):
    """Ops one behind the other on the same map."""
    return [
        conv((k, k + 1)) if name == "CONV_2D" else op(name, [MAP], [MAP], 1, (k, k + 1))
        for k, name in enumerate(names)
    ]


def test_partition_ends_at_the_first_refused_op():
    rows = edgetpu.verdict(chain_of("CONV_2D", "HARD_SWISH", "CONV_2D")).ops
    assert [row.mapped for row in rows] == [True, False, False]
    assert rows[2].reason.startswith("More than one subgraph is not supported")
    assert "op 1 HARD_SWISH" in rows[2].reason


def test_partition_follows_dependence_not_file_order():
    ops = [
        conv((0, 1)),
        op("HARD_SWISH", [MAP], [MAP], 1, (1, 2)),
        conv((1, 3)),
        conv((2, 4)),
    ]
    assert [row.mapped for row in edgetpu.verdict(ops).ops] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("kind", ["QUANTIZE", "CAST"])
def test_leading_conversion_does_not_end_the_partition(kind):
    image = tensor([1, 8, 8, 8], "FLOAT32")
    given = image if kind == "QUANTIZE" else MAP
    made = MAP if kind == "QUANTIZE" else image
    ops = [op(kind, [given], [made], 1, (0, 1))]
    if kind == "CAST":
        ops.append(op("QUANTIZE", [image], [MAP], 1, (1, 2)))
    ops.append(conv((len(ops), 9)))
    ops.append(op("DEQUANTIZE", [MAP], [image], 1, (9, 10)))
    verdict = edgetpu.verdict(ops)
    assert [row.mapped for row in verdict.ops][-2:] == [True, False]
    assert not verdict.all_mapped
    assert verdict.network_mapped == (kind == "QUANTIZE")


def test_network_ends_before_detection_post_processing():
    image = tensor([1, 8, 8, 8], "FLOAT32")
    ends = [
        op("DEQUANTIZE", [MAP], [image], 2, (1, 2)),
        op("SOFTMAX", [image], [image], 1, (2, 3)),
        op("CUSTOM:TFLite_Detection_PostProcess", [image], [image], 1, (3, 4)),
    ]
    verdict = edgetpu.verdict([conv((0, 1)), *ends])
    assert verdict.network_mapped
    assert not verdict.all_mapped
    broken = [op("HARD_SWISH", [MAP], [MAP], 1, (0, 1)), *ends]
    assert not edgetpu.verdict(broken).network_mapped
    floats = [op("CONV_2D", [image], [image], 1, (0, 1)), *ends[1:]]
    assert not edgetpu.verdict(floats).network_mapped


def test_computed_size_refuses_the_whole_graph():
    ops = [
        conv((0, 1)),
        op("RESHAPE", [MAP, tensor([2], "INT32")], [tensor([1, 512])], 1, (1, 2)),
    ]
    verdict = edgetpu.verdict(ops)
    assert verdict.mapped == 0
    assert all("size of op 1 RESHAPE is computed" in row.reason for row in verdict.ops)


def test_parameters_beyond_the_cache_are_streamed():
    large = tensor([1024, 3, 3, 1024], const=True)
    row = conv((0, 1))
    row["inputs"] = [tensor([1, 8, 8, 1024]), large]
    row["in_ids"] = [0, 50]
    verdict = edgetpu.verdict([row])
    assert verdict.on_chip_bytes == 0
    assert verdict.streamed_bytes == 9 * 1024 * 1024 + 8 * 1024


def test_json_form():
    data = json.loads(json.dumps(edgetpu.verdict([conv((0, 1))]).json()))
    assert set(data) == {"ops", "on_chip_bytes", "streamed_bytes", "io"}
    assert set(data["ops"][0]) == {"index", "op", "mapped", "reason", "advice"}
    assert data["io"]["inputs"][0]["shape"] == [1, 8, 8, 8]
    assert data["io"]["outputs"][0]["dtype"] == "int8"


def test_table_names_what_stays_on_the_cpu():
    text = edgetpu.verdict(chain_of("CONV_2D", "HARD_SWISH")).table()
    assert "1 of 2 ops mapped" in text
    assert "op 1 HARD_SWISH: Operation not supported" in text


def test_op_list_without_a_key():
    row = conv((0, 1))
    del row["in_ids"]
    with pytest.raises(ValueError, match=r"Op 0 lacks the keys \['in_ids'\]"):
        edgetpu.verdict([row])


def test_op_without_its_inputs():
    with pytest.raises(ValueError, match="op 0 CONV_2D lacks an input"):
        edgetpu.verdict([op("CONV_2D", [MAP], [MAP])])


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


def test_compiled_file_is_refused():
    with pytest.raises(ValueError, match="compiled for the Edge TPU already"):
        edgetpu.verdict([op("CUSTOM:edgetpu-custom-op", [MAP], [MAP])])


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


def small_file():
    return next(path for path in files() if path.stem.startswith("N32"))


def test_compiler_on_the_path_is_run_and_compared(tmp_path, monkeypatch):
    path = small_file()
    assert edgetpu.verdict(path, compiler=False).compiler is None
    fake_compiler(tmp_path, monkeypatch, LOG.format(mapped=2))
    report = edgetpu.verdict(path).compiler
    assert report.agrees
    assert report.version == "Edge TPU Compiler version 16.0.384591198"
    assert (report.mapped, report.unmapped) == ({"CONV_2D": 2}, {"QUANTIZE": 1})
    assert "agrees with the prediction" in edgetpu.verdict(path).table()


def test_compiler_that_disagrees(tmp_path, monkeypatch):
    fake_compiler(tmp_path, monkeypatch, LOG.format(mapped=1))
    data = edgetpu.verdict(small_file()).json()
    assert not data["compiler"]["agrees"]
    assert data["compiler"]["differences"] == (
        "CONV_2D: predicted 2 mapped, the compiler mapped 1",
    )


def test_compiler_that_fails(tmp_path, monkeypatch):
    text = (
        "Edge TPU Compiler version 16.0.384591198\nInvalid model: Model not quantized"
    )
    fake_compiler(tmp_path, monkeypatch, text, code=1)
    report = edgetpu.verdict(small_file().read_bytes()).compiler
    assert report.error == "Invalid model: Model not quantized"
    assert not report.agrees


def test_compiler_asked_for_but_missing(monkeypatch, tmp_path):
    path = small_file()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not on the PATH"):
        edgetpu.verdict(path, compiler=True)
