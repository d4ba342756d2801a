"""Reads PyTorch checkpoints, zip and legacy, with numpy alone."""

import dataclasses
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from keras_lightnets._checkpoints import pickles
from keras_lightnets._errors import WeightsError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool double float "
    "half long int short"
).split()

# Where training scripts put the state dict; averaged weights first, as they are
# the ones a publisher evaluates.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
)
_PREFIXES = ("module.", "_orig_mod.")

# A tensor may repeat its storage (stride 0), but not without bounds.
_MOST_REPEATED = 1 << 26


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    numel: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"a tensor of size {size} and stride {stride}")
    return _Tensor(storage, storage.start + offset, tuple(size), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    return value


def _ordered(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return {key: value for key, value in pairs}


def _counted(*_: Any) -> dict[Any, Any]:
    return {}


def _dropped(*_: Any) -> None:
    return None


_CALLS: dict[pickles.Global, Callable[..., Any] | None] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): _counted,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): _first,
    ("torch", "device"): _dropped,
    # Notes of a training script: scores and options. They are passed over.
    ("argparse", "Namespace"): _dropped,
    ("_codecs", "encode"): _dropped,
    ("numpy", "dtype"): _dropped,
    ("numpy.core.multiarray", "scalar"): _dropped,
    ("numpy._core.multiarray", "scalar"): _dropped,
    **{("torch", name): None for name in (*_STORAGES, *_DTYPES)},
}


def read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Read a checkpoint of PyTorch 1.6 or later.

    Args:
        archive: The open file; holds FOLDER/data.pkl and FOLDER/data/KEY.

    Returns:
        Tensor name -> array, in the file's order.

    Raises:
        WeightsError: If the file is damaged or holds no state dict.
    """
    names = archive.namelist()
    index = next(name for name in names if name.rpartition("/")[2] == "data.pkl")
    folder = index.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    if f"{prefix}byteorder" in names:
        order = archive.read(f"{prefix}byteorder").strip()
        if order != b"little":
            raise WeightsError(f"The checkpoint's byte order is {order!r}, not little")
    with archive.open(index) as stream:
        root = pickles.load(stream, _CALLS, _persistent)

    def raw(storage: _Storage) -> bytes:
        return archive.read(f"{prefix}data/{storage.key}")

    return _arrays(root, raw)


def read_legacy(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Read a checkpoint of PyTorch before 1.6: pickles, then raw storages.

    Args:
        stream: The open file, at its beginning.

    Returns:
        Tensor name -> array, in the file's order.

    Raises:
        WeightsError: If the file is damaged or holds no state dict.
    """
    if pickles.load(stream, {}) != LEGACY_MAGIC:
        raise WeightsError("The file is a pickle, but not a PyTorch checkpoint")
    pickles.load(stream, {})
    system = pickles.load(stream, {})
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise WeightsError("The checkpoint's byte order is big-endian")
    storages: dict[str, _Storage] = {}

    def persistent(value: Any) -> _Storage:
        storage = _persistent(value)
        storages.setdefault(storage.key, storage)
        return storage

    root = pickles.load(stream, _CALLS, persistent)
    keys = pickles.load(stream, {})
    content: dict[str, bytes] = {}
    for key in keys:
        count = struct.unpack("<q", _exactly(stream, 8))[0]
        storage = storages.get(str(key))
        if storage is None or count < 0:
            raise WeightsError(f"The checkpoint's storage {key!r} is not used by it")
        content[storage.key] = _exactly(stream, count * _width(storage.dtype))

    def raw(storage: _Storage) -> bytes:
        return content[storage.key]

    return _arrays(root, raw)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise WeightsError(f"The checkpoint is cut off: {count - len(data)} bytes lack")
    return data


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _persistent(value: Any) -> _Storage:
    """Turn ("storage", type, key, device, count[, view]) into a reference."""
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        raise WeightsError("The pickle refers to something other than a storage")
    kind, key, count = value[1], value[2], value[4]
    name = kind.path[1] if isinstance(kind, pickles.Symbol) else ""
    if name not in _STORAGES:
        raise WeightsError(f"The checkpoint has a storage of unknown type {name!r}")
    view = value[5] if len(value) > 5 else None
    start = view[1] if isinstance(view, tuple) else 0
    return _Storage(str(key), _STORAGES[name], int(count), int(start))


def _arrays(root: Any, raw: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """Give every tensor of the state dict its values."""
    cache: dict[str, np.ndarray] = {}

    def values(storage: _Storage) -> np.ndarray:
        if storage.key not in cache:
            cache[storage.key] = decode(raw(storage), storage.dtype)
        return cache[storage.key]

    state = _state_dict(root)
    tensors = {k: v for k, v in state.items() if isinstance(v, _Tensor)}
    return {key: _view(key, t, values(t.storage)) for key, t in tensors.items()}


def decode(data: bytes, dtype: str) -> np.ndarray:
    """Return raw little-endian numbers as a flat array; bfloat16 as float32."""
    if dtype != "bfloat16":
        return np.frombuffer(data, np.dtype(dtype))
    high = np.frombuffer(data, "<u2").astype(np.uint32)
    return (high << np.uint32(16)).view(np.float32)


def _view(key: str, tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
    size, stride = tensor.size, tensor.stride
    count = math.prod(size)
    if count == 0:
        return np.zeros(size, flat.dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if last >= flat.size or count > max(flat.size, _MOST_REPEATED):
        raise WeightsError(f"The checkpoint's tensor {key!r} reaches past its storage")
    steps = tuple(s * flat.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], size, steps)
    return view.copy()


def _state_dict(root: Any) -> dict[str, Any]:
    """Unwrap nesting and the prefixes of parallel and compiled models."""
    state = root
    for _ in range(4):
        if not isinstance(state, dict) or _has_tensors(state):
            break
        inner = next((state[k] for k in _WRAPPERS if isinstance(state.get(k), dict)), 0)
        if not inner:
            break
        state = inner
    if not isinstance(state, Mapping) or not _has_tensors(state):
        raise WeightsError(
            "The checkpoint holds no state dict (a dict of tensors, alone or under "
            f"one of {', '.join(map(repr, _WRAPPERS))}). Save it with "
            "torch.save(model.state_dict(), path)."
        )
    result = {str(key): value for key, value in state.items()}
    while prefix := next(
        (p for p in _PREFIXES if all(key.startswith(p) for key in result)), ""
    ):
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def _has_tensors(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, _Tensor) for value in state.values())
