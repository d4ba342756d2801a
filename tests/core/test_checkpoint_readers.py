"""Readers: what they must read exactly, and what they must refuse."""

import io
import json
import pathlib
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest

from keras_lightnets._checkpoints import readers, store, torch_files
from keras_lightnets._errors import WeightsError

DATA = pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(DATA / "expected.npz") as file:
        return dict(file)


def save(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_torch_checkpoint_is_read_exactly(name, expected):
    tensors = readers.read(DATA / name).tensors
    assert list(tensors) == list(expected)
    for key, value in expected.items():
        assert tensors[key].shape == value.shape, key
        np.testing.assert_array_equal(tensors[key].astype("float32"), value, key)
    assert tensors["conv.half"].dtype == np.float16
    assert tensors["bn.num_batches_tracked"].dtype == np.int64


def test_zip_of_a_checkpoint_is_opened(tmp_path, expected):
    path = tmp_path / "net-1234.pth.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(DATA / "legacy.pth", "net-1234.pth")
    tensors = readers.read(path).tensors
    np.testing.assert_array_equal(tensors["conv.weight"], expected["conv.weight"])
    inner = readers.inner_digest(path, "sha1")
    assert inner == readers.digest(DATA / "legacy.pth", "sha1")


class Attack:
    """Pickles into a call of os.system."""

    def __init__(self, flag: pathlib.Path) -> None:
        self.flag = flag

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.flag}",))


def legacy_file(main: bytes) -> bytes:
    head = [torch_files.LEGACY_MAGIC, 1001, {"little_endian": True}]
    parts = [pickle.dumps(item, protocol=2) for item in head]
    return b"".join([*parts, main, pickle.dumps([], protocol=2)])


def zip_file(main: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", main)
    return file.getvalue()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [legacy_file, zip_file])
def test_malicious_pickle_is_refused_by_name(tmp_path, wrap, protocol):
    flag = tmp_path / "executed"
    main = pickle.dumps({"w": Attack(flag)}, protocol=protocol)
    path = save(tmp_path / "evil.pth", wrap(main))
    with pytest.raises(WeightsError, match=r"(posix|nt|os)\.system") as caught:
        readers.read(path)
    assert "state_dict()" in str(caught.value)
    assert not flag.exists()


def test_a_named_type_may_not_be_called(tmp_path):
    main = b"\x80\x02ctorch\nFloatStorage\n(K\x05tR."
    path = save(tmp_path / "call.pth", legacy_file(main))
    with pytest.raises(WeightsError, match=r"torch\.FloatStorage"):
        readers.read(path)


def test_state_cannot_reach_into_functions(tmp_path):
    # BUILD on a global is how a pickle alters a module's objects.
    main = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    before = dict(vars(torch_files._rebuild_tensor))
    path = save(tmp_path / "build.pth", legacy_file(main))
    with pytest.raises(WeightsError, match="no state dict"):
        readers.read(path)
    assert vars(torch_files._rebuild_tensor) == before


def tensor_pickle(offset: int, size: tuple, stride: tuple) -> bytes:
    class Persistent(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", Float, "0", "cpu", 6) if obj is STORAGE else None

    Float = type("FloatStorage", (), {"__module__": "torch"})
    stream = io.BytesIO()
    pickler = Persistent(stream, 2)
    try:
        import sys
        import types

        fakes = {"torch": types.ModuleType("torch")}
        fakes["torch._utils"] = types.ModuleType("torch._utils")
        fakes["torch"].FloatStorage = Float

        def _rebuild_tensor_v2():
            return None

        _rebuild_tensor_v2.__module__ = "torch._utils"
        _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
        fakes["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
        kept = {name: sys.modules.get(name) for name in fakes}
        sys.modules.update(fakes)

        class Tensor:
            def __reduce__(self):
                return (_rebuild_tensor_v2, (STORAGE, offset, size, stride, False, {}))

        pickler.dump({"w": Tensor()})
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return stream.getvalue()


STORAGE = object()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "text"),
    [
        (0, (2, 3), (3, 1), ""),
        (5, (2,), (1,), "past its storage"),
        (0, (7,), (1,), "past its storage"),
        (0, (1 << 30, 1 << 10), (0, 0), "past its storage"),
        (0, (-2,), (1,), "damaged"),
        (3, (2,), (-1,), "damaged"),
        (0, (2, 3), (1,), "damaged"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, offset, size, stride, text):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", tensor_pickle(offset, size, stride))
        archive.writestr("a/data/0", np.arange(6, dtype="<f4").tobytes())
    path = save(tmp_path / "t.pth", stream.getvalue())
    if text:
        with pytest.raises(WeightsError, match=text):
            readers.read(path)
    else:
        want = np.arange(6, dtype="float32").reshape(2, 3)
        np.testing.assert_array_equal(readers.read(path).tensors["w"], want)


def test_safetensors_round_trip_and_bfloat16(tmp_path):
    values = {"a/kernel": np.arange(6.0, dtype="float32").reshape(2, 3)}
    values["b/scalar"] = np.float16(2.5).reshape(())
    store.write(tmp_path / "own.safetensors", values, {"who": "test"})
    checkpoint = readers.read(tmp_path / "own.safetensors")
    assert checkpoint.metadata == {"who": "test"}
    for key, value in values.items():
        np.testing.assert_array_equal(checkpoint.tensors[key], value)
        assert checkpoint.tensors[key].shape == value.shape
    head = {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    text = json.dumps(head).encode()
    raw = struct.pack("<Q", len(text)) + text
    path = save(tmp_path / "b.safetensors", raw + struct.pack("<HH", 0x3FC0, 0xC000))
    np.testing.assert_array_equal(readers.read(path).tensors["w"], [1.5, -2.0])


def small_h5(path: pathlib.Path) -> pathlib.Path:
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "stem_conv"
        group["0"] = np.ones((3, 3, 3, 4), "float32")
        norm = file.create_group("layers/batch_normalization/vars")
        norm.attrs["name"] = "stem_bn"
        for i in range(4):
            norm[str(i)] = np.full(4, i, "float32")
    return path


def test_h5_links_to_other_files_are_refused(tmp_path):
    import h5py

    small_h5(tmp_path / "secret.h5")
    with h5py.File(tmp_path / "bad.weights.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "stem_conv"
        group["0"] = h5py.ExternalLink("secret.h5", "layers/conv2d/vars/0")
    with pytest.raises(WeightsError, match="of its own"):
        readers.read(tmp_path / "bad.weights.h5")


def test_h5_without_layer_names_says_what_to_do(tmp_path):
    import h5py

    with h5py.File(tmp_path / "old.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.ones((1, 1, 1, 1), "float32")
    with pytest.raises(WeightsError, match="no layer names.*save that"):
        readers.read(tmp_path / "old.weights.h5")


def test_h5_variables_get_names(tmp_path):
    checkpoint = readers.read(small_h5(tmp_path / "a.weights.h5"))
    assert checkpoint.layers == ("stem_bn", "stem_conv")
    assert list(checkpoint.tensors) == [
        *(f"stem_bn/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")),
        "stem_conv/kernel",
    ]
    assert checkpoint.tensors["stem_bn/moving_mean"][0] == 2


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("empty.pth", b"", "empty"),
        ("note.txt", b"these are not weights at all", "no kind read here"),
        ("net.onnx", b"\x08\x07\x12\x07pytorch" * 9, "no kind read here"),
        ("page.pth", b"<!DOCTYPE html><html>404</html>", "no kind read here"),
        ("list.pth", legacy_file(pickle.dumps([1, 2], 2)), "no state dict"),
        ("plain.pkl", pickle.dumps({"a": 1}, 4), "not a PyTorch checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path, name, data, text):
    with pytest.raises(WeightsError, match=text):
        readers.read(save(tmp_path / name, data))


def test_folder_and_missing_file(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"folder.*net\.pth"):
        readers.read(tmp_path)
    with pytest.raises(WeightsError, match="no file"):
        readers.read(tmp_path / "absent.pth")


def test_damaged_files_raise_only_weights_errors(tmp_path):
    store.write(
        tmp_path / "s.safetensors", {"a/kernel": np.ones((3, 3), "float32")}, {}
    )
    sources = [DATA / "zip.pth", DATA / "legacy.pth", tmp_path / "s.safetensors"]
    sources.append(small_h5(tmp_path / "h.weights.h5"))
    rng = random.Random(3)
    refused = 0
    for source in sources:
        whole = source.read_bytes()
        for trial in range(60):
            data = bytearray(whole)
            if trial % 2:
                del data[rng.randrange(len(data)) :]
            else:
                for _ in range(rng.randrange(1, 9)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            path = save(tmp_path / "fuzz", bytes(data))
            try:
                readers.read(path)
            except WeightsError:
                refused += 1
    assert refused > 100


def test_official_checkpoints_are_read(shared):
    found = sorted((shared / "weights").rglob("*.pth"))
    if not found:
        pytest.skip(f"no official checkpoints in {shared / 'weights'}")
    for path in found:
        tensors = readers.read(path).tensors
        assert len(tensors) > 100
        assert all(np.isfinite(v.astype("float64")).all() for v in tensors.values())
