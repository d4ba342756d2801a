"""The Edge TPU verdict and the reader of files against compiled pairs."""

import json

import pytest

from keras_lightnets.tools.export import _flatbuffer, edgetpu

# There is one package with an LSTM: a formula could not be checked.
MEMORY_UNMODELLED = {(3, "keras_lstm_mnist_ptq")}


@pytest.fixture(scope="module")
def pairs(shared):
    return json.loads((shared / "facts" / "edgetpu_pairs.json").read_text())["pairs"]


@pytest.fixture(scope="module")
def files(shared):
    return sorted((shared / "data" / "edgetpu").glob("*.tflite"))


@pytest.fixture(scope="module")
def smallest(files):
    return min(files, key=lambda path: path.stat().st_size)


def pair_of(pairs, path, ops):
    for pair in pairs:
        if pair["name"] == path.stem and len(pair["ops"]) == len(ops):
            return pair
    raise LookupError(path.stem)


def test_every_op_of_every_pair(pairs):
    wrong = []
    for number, pair in enumerate(pairs):
        rows = edgetpu.verdict(pair["ops"]).ops
        for row, op in zip(rows, pair["ops"], strict=True):
            if row.mapped != op["mapped"]:
                wrong.append((number, pair["name"], row))
    assert wrong == []
    assert sum(len(pair["ops"]) for pair in pairs) == 1803


def test_files_give_the_same_as_op_lists(pairs, files):
    for path in files:
        verdict = edgetpu.verdict(path, compiler=False)
        pair = pair_of(pairs, path, verdict.ops)
        truth = [op["mapped"] for op in pair["ops"]]
        assert [row.mapped for row in verdict.ops] == truth, path.name
        listed = edgetpu.verdict(pair["ops"])
        assert [r.reason for r in listed.ops] == [r.reason for r in verdict.ops]
        assert listed.on_chip_bytes == verdict.on_chip_bytes


def test_parameter_bytes_within_five_percent(pairs):
    off = set()
    for number, pair in enumerate(pairs):
        verdict = edgetpu.verdict(pair["ops"])
        memory = pair["memory"]
        truth = memory["cached_param_bytes"] + memory["streamed_param_bytes"]
        ours = verdict.on_chip_bytes + verdict.streamed_bytes
        if abs(ours - truth) > 0.05 * truth:
            off.add((number, pair["name"]))
    assert off == MEMORY_UNMODELLED


def test_reader_equals_the_listed_tensors(pairs, files):
    for path in files:
        graph = _flatbuffer.read(path)
        for op, row in zip(
            graph.ops, pair_of(pairs, path, graph.ops)["ops"], strict=True
        ):
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


def test_packing_again_changes_nothing(smallest):
    model, content = _flatbuffer.load(smallest)
    assert _flatbuffer.read(_flatbuffer.pack(model)) == _flatbuffer.read(content)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_cut_file_is_refused(share, smallest):
    content = smallest.read_bytes()
    with pytest.raises(ValueError, match=r"not a TFLite file|cut short or damaged"):
        edgetpu.verdict(content[: int(len(content) * share)], compiler=False)
