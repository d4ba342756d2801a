"""MXNet's .params files, written here as its public layout says."""

import json
import struct

import numpy as np
import pytest

import keras_lightnets
from keras_lightnets._checkpoints import mxnet_files, readers
from keras_lightnets._errors import WeightsError
from keras_lightnets.tools.convert import make_parity as parity

TYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")


def params(tensors, version=2):
    """Return a file's content, of MXNet before 0.11 (0), then (1), or today's (2)."""
    parts = [struct.pack("<QQQ", 0x112, 0, len(tensors))]
    for value in tensors.values():
        if version:
            parts.append(struct.pack("<I", 0xF993FAC7 + version))
        if version == 2:
            parts.append(struct.pack("<i", 0))
        axes = f"<I{value.ndim}{'q' if version else 'I'}"
        parts.append(struct.pack(axes, value.ndim, *value.shape))
        flag = TYPES.index(value.dtype.name)
        parts += [struct.pack("<iii", 1, 0, flag), value.tobytes()]
    parts.append(struct.pack("<Q", len(tensors)))
    for name in tensors:
        parts += [struct.pack("<Q", len(name)), name.encode()]
    return b"".join(parts)


def samples():
    random = np.random.RandomState(0)
    return {
        f"arg:node-{name}_weight": (random.rand(2, 3, 1, 2) * 100).astype(name)
        for name in TYPES
    }


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version_and_type_is_read_exactly(version):
    found = mxnet_files.read(params(samples(), version))
    assert list(found) == list(samples())
    for key, value in samples().items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("version", [0, 2])
def test_a_cut_off_file_is_refused_at_any_place(version):
    data = params({"arg:a_weight": np.ones((2, 3), "float32")}, version)
    for end in range(16, len(data)):
        with pytest.raises(WeightsError, match="cut off|damaged"):
            mxnet_files.read(data[:end])


@pytest.mark.parametrize(
    ("place", "pack", "message"),
    [
        (16, ("<Q", 1 << 60), "claims 1152921504606846976 items"),
        (28, ("<i", 1), "sparse"),
        (32, ("<I", 99), "99 axes"),
        (36, ("<q", -1), "damaged: shape"),
        (60, ("<i", 12), "damaged: shape .* type 12"),
        (88, ("<Q", 2), "cut off"),
    ],
)
def test_damage_is_named(place, pack, message):
    data = bytearray(params({"arg:a_weight": np.ones((2, 3), "float32")}))
    struct.pack_into(pack[0], data, place, pack[1])
    with pytest.raises(WeightsError, match=message):
        mxnet_files.read(bytes(data))


def test_names_become_those_of_a_state_dict():
    names = ("arg:a_conv_weight", "arg:a_bn_gamma", "arg:a_bn_beta", "fc_bias")
    names += ("aux:a_bn_moving_mean", "a_bn_moving_var")
    found = mxnet_files.renamed(dict.fromkeys(names, np.zeros(1)))
    expected = ["a_conv.weight", "a_bn.weight", "a_bn.bias", "fc.bias"]
    assert list(found) == [*expected, "a_bn.running_mean", "a_bn.running_var"]
    for other in ("layer.conv_weight", "conv/conv_weight", "arg:a_scale"):
        mixed = dict.fromkeys(("arg:a_conv_weight", other), np.zeros(1))
        assert mxnet_files.renamed(mixed) == mixed


def mxnet_names(state):
    """Give a state dict MXNet's names, as its authors' training saves them."""
    norms = {key.rpartition(".")[0] for key in state if key.endswith("running_var")}
    parts = {"weight": "gamma", "bias": "beta"}
    found = {}
    for key, value in state.items():
        node, _, part = key.rpartition(".")
        if part.startswith("running"):
            found[f"aux:{node}_moving_{part[8:]}"] = value
        elif part in parts:
            found[f"arg:{node}_{parts[part] if node in norms else part}"] = value
    return found


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("igcv1_l100m2-igc", 0),
        pytest.param("igcv3-igcv3", 2, marks=pytest.mark.full),
    ],
)
def test_params_of_the_igc_networks_give_the_oracles_logits(tmp_path, name, version):
    case = next(c for c in parity.CASES if c.name == name)
    with np.load(parity.FOLDER / f"{name}.npz") as file:
        expected = dict(file)
    shapes = json.loads(expected["state"].tobytes())
    state = parity.seeded_state(shapes, case.gain, expected["scales"])
    path = tmp_path / "net-0095.params"
    path.write_bytes(params(mxnet_names(state), version))
    assert readers.read(path).tensors.keys() < state.keys()  # no counters
    model = keras_lightnets.create_model(
        case.model,
        weights=path,
        input_shape=(*case.size, 3),
        classifier_activation=None,
    )
    found = np.asarray(model(parity.seeded_images(case.size), training=False))
    apart = np.abs(parity.sample(found) - expected["logits"]).max()
    assert apart <= 1e-4 * expected["logits_max"]
