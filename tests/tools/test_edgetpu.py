"""The Edge TPU verdict's rules, limits and partition, on lists of ops."""

import json

import pytest
from edgetpu_ops import MAP, MAPPED, REFUSED, chain_of, conv, op, tensor

from keras_lightnets.tools.export import (
    _edgetpu_advice,
    _edgetpu_rules,
    _flatbuffer,
    edgetpu,
)


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_reason(case):
    row, text = REFUSED[case]
    verdict = edgetpu.verdict([row])
    assert not verdict.all_mapped
    assert text in verdict.ops[0].reason
    assert verdict.first_unmapped == verdict.ops[0]


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


def test_compiled_file_is_refused():
    with pytest.raises(ValueError, match="compiled for the Edge TPU already"):
        edgetpu.verdict([op("CUSTOM:edgetpu-custom-op", [MAP], [MAP])])
