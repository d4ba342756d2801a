"""The package and its listing load neither keras nor a backend."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys, time
before = set(sys.modules)
start = time.perf_counter()
import keras_lightnets
seconds = time.perf_counter() - start
names = keras_lightnets.list_models()
from keras_lightnets.__main__ import main
sys.argv = ["keras-lightnets", "list"]
try:
    main()
except SystemExit as stop:
    code = stop.code
heavy = {"keras", "tensorflow", "jax", "torch", "albumentations"}
heavy = sorted(heavy & set(sys.modules))
print(json.dumps({"heavy": heavy, "names": names, "code": code, "s": seconds}))
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
