"""Every endpoint and the logits equal the reference package's."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_lightnets
from keras_lightnets.tools.convert import make_parity as parity


def cases():
    marks = {True: (), False: (pytest.mark.full,)}
    return [
        pytest.param(case, id=case.name, marks=marks[case.default])
        for case in parity.CASES
    ]


def stored(case):
    with np.load(parity.FOLDER / f"{case.name}.npz") as file:
        return dict(file)


def checkpoint(case, expected, folder):
    """Write the publisher's state dict with the seeded weights."""
    shapes = json.loads(expected["state"].tobytes())
    path = folder / f"{case.name}.safetensors"
    state = parity.seeded_state(shapes, case.gain, expected.get("scales"))
    save_file(state, path)
    return path


@contextlib.contextmanager
def computing_in(precision):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(precision)  # of the input
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def outputs(case, path):
    levels = [*case.taps, "logits"]
    options = dict(weights=path, endpoints=levels, input_shape=(*case.size, 3))
    if case.precision == "float32":
        model = keras_lightnets.create_model(case.model, **options)
        images = parity.seeded_images(case.size)
    else:  # Rescaling rounds its constants to float32, whatever it computes in.
        with computing_in(case.precision):
            model = keras_lightnets.create_model(
                case.model, include_preprocessing=False, **options
            )
        images = parity.normalised_images(case)
    found = model(images, training=False)
    return {level: np.asarray(value) for level, value in found.items()}


@pytest.mark.parametrize("case", cases())
def test_every_endpoint_equals_the_oracle(case, tmp_path):
    expected = stored(case)
    found = outputs(case, checkpoint(case, expected, tmp_path))
    for level in [*case.taps, "logits"]:
        assert found[level].shape == tuple(expected[f"{level}_shape"]), level
        apart = np.abs(parity.sample(found[level]) - expected[level]).max()
        assert apart <= case.tolerance * expected[f"{level}_max"], (level, apart)


def test_every_level_of_every_case_is_compared():
    for case in parity.CASES:
        levels = {level.name for level in keras_lightnets.get_spec(case.model).levels}
        assert set(case.taps) == levels, case.name
        assert {*levels, "logits"} <= set(stored(case)), case.name


# No implementation of these is public; tests/backbones/test_NAME.py asserts what
# their papers state. ESPNet's encoder is compared inside its segmenters, tests/heads.
WITHOUT_ORACLE = ("igcv2*", "channelnet_v2", "channelnet_v3", "espnet_encoder*")


def test_every_variant_has_an_oracle():
    compared = {case.model for case in parity.CASES}
    lacking = {name for name in keras_lightnets.list_models() if name not in compared}
    without = {n for p in WITHOUT_ORACLE for n in keras_lightnets.list_models(p)}
    assert lacking == without


# JAX compiles every operation by shape, so the default tier takes the smallest net.
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v1_025-pytorchcv",
        pytest.param("ghostnet-timm", marks=pytest.mark.full),
    ],
)
def test_jax_backend_gives_the_same(name, tmp_path):
    pytest.importorskip("jax")
    case = next(c for c in parity.CASES if c.name == name)
    expected = stored(case)
    path = checkpoint(case, expected, tmp_path)
    code = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
        import keras
        import numpy as np
        from test_parity import outputs, parity
        assert keras.backend.backend() == "jax"
        case = next(c for c in parity.CASES if c.name == {case.name!r})
        found = outputs(case, {str(path)!r})
        keep = {{k: parity.sample(v) for k, v in found.items()}}
        np.savez({str(tmp_path / "found.npz")!r}, **keep)
        """
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    # Compiling takes longer than running: as few passes as there are.
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with np.load(tmp_path / "found.npz") as found:
        for level in [*case.taps, "logits"]:
            apart = np.abs(found[level] - expected[level]).max()
            assert apart <= case.tolerance * expected[f"{level}_max"], (level, apart)
