"""Every family as classifier, detector and segmenter, quantised in both ways.

The smallest network of a family stands for it. Skips are the spec's own reasons.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
from typing import Any

import keras
import pytest

# Not importorskip: importing the toolkit by itself switches tf.keras to Keras 2.
if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("needs the extra 'qat'", allow_module_level=True)
pytest.importorskip("ai_edge_litert")

from quant_models import exactly, pictures

import keras_lightnets
from keras_lightnets.tools.convert import make_quantised
from keras_lightnets.tools.export import verify

STORED = pathlib.Path(__file__).parents[1] / "golden" / "quantised.json"
COUNT = make_quantised.CALIBRATION + make_quantised.TESTS
# Of thousands of cells a few sit where the rounding of all layers adds up.
SURE = 0.995
# With these random weights the noise of int8 grows from layer to layer.
CHAOTIC = (("igcv2", "detection"), ("micronet", "detection"))
# XNNPACK has no int8 GELU.
WITH_GELU = ("nexception",)


@dataclasses.dataclass
class Walked:
    case: make_quantised.Case
    model: Any
    seen: Any
    found: make_quantised.Followed


@pytest.fixture(scope="module")
def images(root):
    """Real pictures where they are, drawn ones elsewhere."""
    shared = pathlib.Path(os.environ.get("LIGHTNETS_SHARED", root.parent / "shared"))
    folder = shared / "data" / "imagenet_sample" / "images"
    if not folder.is_dir():
        return pictures(COUNT, make_quantised.SIZE)
    return make_quantised.read_pictures(folder, COUNT, make_quantised.SIZE)


@pytest.fixture(
    scope="module",
    params=make_quantised.cases(),
    ids=lambda case: f"{case.family}-{case.form}",
)
def walked(request, images):
    case = request.param
    if case.reason:
        pytest.skip(case.reason)
    seen, new = (
        images[: make_quantised.CALIBRATION],
        images[make_quantised.CALIBRATION :],
    )
    model = make_quantised.build(case)
    model = make_quantised.condition(model, seen.astype("float32"))
    yield Walked(case, model, seen, make_quantised.quantise(model, seen, new))
    keras.backend.clear_session()


@pytest.mark.export
def test_twin_is_exact(walked):
    assert exactly(walked.model, walked.seen[:2].astype("float32")) < 1e-5


@pytest.mark.export
@pytest.mark.parametrize("way", ["ptq", "qat"])
def test_every_operation_is_int8_and_in_one_partition(walked, way):
    found = getattr(walked.found, way)
    assert found.float_ops == ()
    assert found.xnnpack_partitions == 1 or walked.case.family in WITH_GELU


@pytest.mark.export
def test_file_follows_the_emulation(walked):
    """As `verify` asks, or as closely as two sets of TFLite's kernels follow it.

    A step of difference in one layer turns up as roundings everywhere some layers on,
    so that a deep network with random weights reaches the floor; a trained one has
    clearer decisions.
    """
    for row in walked.found.qat.outputs:
        floor = walked.found.floor[row.name]
        assert row.mean_error_steps < error_limit(floor), row
        case, sure = walked.case, walked.found.sure.get(row.name, 1.0)
        assert sure >= SURE or (case.family, case.form) in CHAOTIC, row


@pytest.mark.export
def test_file_follows_the_float_model(walked):
    """Here the rounding of every layer adds up; training for int8 takes that away."""
    for row in walked.found.ptq.outputs:
        floor = walked.found.floor[row.name]
        assert row.mean_error_steps < ptq_limit(floor), row


def error_limit(floor):
    return max(verify.MEAN_ERROR_STEPS, 1.5 * floor)


def ptq_limit(floor):
    return 4.0 * max(verify.MEAN_ERROR_STEPS, floor)


def stored():
    return json.loads(STORED.read_text("utf-8"))


def test_stored_figures_belong_to_the_cases():
    """What was not measured yet is "not tried" in README's table."""
    found = stored()
    known = {(case.family, case.form): case for case in make_quantised.cases()}
    for family, forms in found.items():
        for form, row in forms.items():
            case = known[family, form]
            assert row.get("reason", "") == case.reason
            assert row.get("name", case.name) == case.name
    for key, case in known.items():
        assert not case.reason or key[1] in found[key[0]]


def test_stored_figures_are_within_the_limits():
    rows = [
        (family, form, row)
        for family, forms in stored().items()
        for form, row in forms.items()
        if "name" in row
    ]
    assert rows
    unsure = set()
    for family, form, row in rows:
        for way in ("ptq", "qat"):
            assert row[way]["float_ops"] == 0
            assert row[way]["partitions"] == 1 or family in WITH_GELU
        for name, output in row["qat"]["outputs"].items():
            floor, sure = output["floor_steps"], output["sure_agreement"]
            after = row["ptq"]["outputs"][name]["mean_error_steps"]
            assert after < ptq_limit(floor), (family, name)
            assert output["mean_error_steps"] < error_limit(floor), (family, name)
            if sure is not None and sure < SURE:
                unsure.add((family, form))
    assert unsure == set(CHAOTIC)


def test_families_that_quantise_nowhere_say_why():
    for case in make_quantised.cases():
        spec = keras_lightnets.get_spec(case.name)
        if not spec.int8_ok:
            assert case.reason == spec.flags_reason != ""
