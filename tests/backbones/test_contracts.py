"""Every registered network holds the contracts of tests/contracts.py."""

import csv
import json
import pathlib
import sys

import numpy as np
import pytest

import keras_lightnets

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import contracts  # noqa: E402

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


def golden(spec):
    return json.loads((GOLDEN / f"{spec.name}.json").read_text())


def is_quick(spec):
    """Whether the network may be built several times in the default tier."""
    facts = golden(spec)
    return facts["layers"] <= 250 and facts["madds"] < 600e6


def specs(quick=False):
    """Return every spec; all but the smallest of its family are marked full.

    So is one of more than 50 million parameters, which takes as long as ten others,
    and, where only quick ones are asked for, one that is not.
    """
    smallest: dict[str, tuple[int, str]] = {}
    names = keras_lightnets.list_models()
    names = [name for name in names if (GOLDEN / f"{name}.json").exists()]
    found = [keras_lightnets.get_spec(name) for name in names]
    for spec in found:
        size = (golden(spec)["params"], spec.name)
        family = type(spec).__name__
        smallest[family] = min(smallest.get(family, size), size)
    keep = {name for count, name in smallest.values() if count < 50_000_000}
    keep = {s.name for s in found if s.name in keep and (is_quick(s) or not quick)}
    return [
        pytest.param(s, id=s.name, marks=() if s.name in keep else pytest.mark.full)
        for s in found
    ]


# Grouped by network, so that a few built ones are kept and no more.
each = pytest.mark.parametrize("spec", specs(), scope="module")
each_quick = pytest.mark.parametrize("spec", specs(quick=True), scope="module")


def test_every_variant_has_a_golden_file():
    missing = [
        name
        for name in keras_lightnets.list_models()
        if not (GOLDEN / f"{name}.json").exists()
    ]
    assert missing == []


def test_published_counts():
    """Parameters are exact; multiply-adds within 0.1 % of the reference's."""
    with (GOLDEN / "oracles.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if line[0] != "#"))
    assert len(rows) > 20
    for row in rows:
        facts = json.loads((GOLDEN / f"{row['name']}.json").read_text())
        assert facts["params"] == int(row["params"]), row["name"]
        side = int(row["size"])
        if side == keras_lightnets.get_spec(row["name"]).default_size:
            assert facts["madds"] / 1e6 == pytest.approx(
                float(row["madds_m"]), rel=1e-3
            ), row["name"]


@each
def test_signature(spec):
    contracts.check_signature(spec)


@each
def test_flat_and_named(spec):
    contracts.check_flat_and_named(spec)


@each
def test_bias_only_without_norm(spec):
    contracts.check_bias_only_without_norm(spec)


@each
def test_layouts_in_building_order(spec):
    contracts.check_layouts_in_building_order(spec)


@each
def test_golden_facts(spec):
    expected, found = golden(spec), contracts.facts(spec)
    prints = [np.asarray(f.pop("fingerprint")) for f in (expected, found)]
    assert found == expected
    # float32 on other processors: sums in another order.
    np.testing.assert_allclose(
        prints[1], prints[0], atol=1e-3 * np.abs(prints[0]).max()
    )


@each
def test_endpoints(spec):
    contracts.check_endpoints(spec, golden(spec))


@pytest.mark.full
@each
def test_output_strides(spec):
    """The smallest one is test_dilation's."""
    for output_stride in sorted(spec.output_strides)[1:-1]:
        contracts.check_output_stride(spec, golden(spec), output_stride)
    assert max(spec.output_strides) == 32


@each_quick
def test_dilation(spec):
    contracts.check_dilation_keeps_what_it_computes(spec, golden(spec))


@each_quick
def test_round_trip(spec, tmp_path):
    contracts.check_round_trip(spec, tmp_path)


@each_quick
def test_gradients(spec):
    contracts.check_gradients(spec)


@each_quick
def test_seeds(spec):
    contracts.check_seeds(spec)


@pytest.mark.full
@each
def test_another_seed(spec):
    contracts.check_another_seed(spec)


def test_int8_flags_are_what_was_found():
    """tests/golden/int8.json says what converted; make_int8.py makes it."""
    facts = json.loads((GOLDEN / "int8.json").read_text())
    assert set(facts) <= set(keras_lightnets.list_models())
    for name, found in facts.items():
        converts = "error" not in found and not found["float_ops"]
        assert keras_lightnets.get_spec(name).int8_ok is converts, name


@pytest.mark.export
@pytest.mark.parametrize(
    "name", ["espnet_v2_050", "igcv3_025", "micronet_m0", "repghostnet_050"]
)
def test_int8_facts_are_current(name):
    from keras_lightnets.tools.convert import make_int8

    stored = json.loads((GOLDEN / "int8.json").read_text())
    assert make_int8.facts(name) == stored[name]


@pytest.mark.full
def test_counts_at_the_oracles_size():
    """Lite3, Lite4 and EfficientNetV2 were counted at timm's sizes, not the authors'.

    The others are in the golden files, see test_published_counts.
    """
    from keras_lightnets import cost

    with (GOLDEN / "oracles.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if line[0] != "#"))
    sizes = {
        n: keras_lightnets.get_spec(n).default_size for n in {r["name"] for r in rows}
    }
    rows = [row for row in rows if int(row["size"]) != sizes[row["name"]]]
    assert len(rows) >= 10
    for row in rows:
        side = int(row["size"])
        model = keras_lightnets.create_model(
            row["name"], weights=None, input_shape=(side, side, 3)
        )
        madds = cost.total(model).madds / 1e6
        assert madds == pytest.approx(float(row["madds_m"]), rel=1e-3), row["name"]
