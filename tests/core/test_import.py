"""The package and its listing load neither keras nor a backend."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, sys
import keras_lightnets
names = keras_lightnets.list_models()
from keras_lightnets.__main__ import main
sys.argv = ["keras-lightnets", "list"]
try:
    main()
except SystemExit as stop:
    code = stop.code
heavy = {"keras", "tensorflow", "jax", "torch", "albumentations"}
heavy = sorted(heavy & set(sys.modules))
print(json.dumps({"heavy": heavy, "names": names, "code": code}))
"""


@pytest.fixture(scope="module")
def fresh():
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    *shown, last = run.stdout.strip().splitlines()
    return json.loads(last), "\n".join(shown)


def test_import_and_list_load_no_backend(fresh):
    facts, _ = fresh
    assert facts["heavy"] == []
    assert facts["code"] in (0, None)


def test_list_prints_every_name(fresh):
    facts, shown = fresh
    missing = [name for name in facts["names"] if name not in shown]
    assert facts["names"]
    assert not missing


LOAD = """
import sys
{imports}
model = {load}(sys.argv[1])
print(type(model.layers[-1]).__module__)
"""


@pytest.mark.parametrize(
    ("imports", "load"),
    [
        ("import keras_lightnets", "keras_lightnets.load_model"),
        ("import keras; import keras_lightnets", "keras.saving.load_model"),
    ],
)
def test_a_fresh_process_loads_saved_models(imports, load, tmp_path):
    import keras

    from keras_lightnets.layers import BatchNormalization

    inputs = keras.Input((4, 4, 2))
    keras.Model(inputs, BatchNormalization()(inputs)).save(tmp_path / "m.keras")
    code = LOAD.format(imports=imports, load=load)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.keras")],
        # The backend that loads fastest: registration is the same on all.
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.strip() == "keras_lightnets.layers.norm", run.stderr
