"""What runs where: the stored measurements of make_devices.py."""

import pytest

from keras_lightnets._registry import FAMILIES
from keras_lightnets.tools.convert import golden_files, make_devices
from keras_lightnets.tools.export import ethosu

# Vela ends with an error of its own: "Non-passthrough operation could not run on NPU".
VELA_FAILS = {"alexnet": ["ethos-u55-128", "ethos-u65-256"]}


def stored():
    return golden_files.read("devices")


def test_networks_are_the_smallest_of_their_families():
    smallest = {make_devices.smallest(family) for family in FAMILIES}
    assert set(stored()["networks"]) <= smallest


def test_every_row_was_tried_everywhere():
    found = stored()
    assert set(found["versions"]) == {"ai-edge-litert", "ethos-u-vela", "tflite-micro"}
    for name, row in found["networks"].items():
        assert set(row["npu"]) == set(ethosu.TARGETS), name
        failed = [target for target, npu in row["npu"].items() if "problem" in npu]
        assert failed == VELA_FAILS.get(name, []), name
        assert row["xnnpack_partitions"] >= 1, name
        if row["micro"]["problem"]:
            assert row["micro"]["arena_bytes"] is None, name
        else:
            # The same arithmetic: at most one step of rounding. In a deep network of
            # random weights one such step can change all the values of a picture.
            worst, equal = row["micro"]["max_error_steps"], row["micro"]["equal"]
            assert worst <= 1 or equal >= 1 - 1 / make_devices.CALIBRATION, name


@pytest.mark.export
def test_a_network_measured_again_gives_the_same():
    pytest.importorskip("tf_keras")
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
    name = "shufflenet_v1_g1_025"
    again = make_devices.facts(make_devices.convert(name))
    known = stored()["networks"][name]
    assert again["ops"] == known["ops"]
    assert again["bytes"] == pytest.approx(known["bytes"], rel=0.02)
    for target, row in again["npu"].items():
        assert row["cpu_ops"] == known["npu"][target]["cpu_ops"]
        cycles = known["npu"][target]["cycles"]
        assert row["cycles"] == pytest.approx(cycles, rel=0.05)
    arena = known["micro"]["arena_bytes"]
    assert again["micro"]["arena_bytes"] == pytest.approx(arena, rel=0.02)
