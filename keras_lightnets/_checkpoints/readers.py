"""Opens a weight file of any supported kind; the content decides, not the name."""

import dataclasses
import hashlib
import io
import json
import pathlib
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np

from keras_lightnets._checkpoints import hdf5, mxnet_files, torch_files
from keras_lightnets._errors import WeightsError

KINDS = (
    *("safetensors", ".pth (PyTorch)", ".pth.zip", ".weights.h5", ".h5", ".keras"),
    ".params (MXNet)",
)

_HDF5_START = b"\x89HDF\r\n\x1a\n"
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
_MOST_MEMBER_BYTES = 1 << 32
_TORCH_ENDINGS = (".pth", ".pt", ".pkl", ".ckpt", ".bin", ".pth.tar")
_SAFE_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, as the file names them.

    Attributes:
        tensors: Key -> array. Keys are "layer/variable" for Keras files and our
            own, "prefix.weight" for PyTorch's.
        layers: Names of a Keras file's layers, those without weights included.
        config: A Keras file's model config, or None.
        metadata: Notes in a safetensors file.
    """

    tensors: dict[str, np.ndarray]
    layers: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def slashed(self) -> bool:
        """Whether keys are "layer/variable" rather than "prefix.weight"."""
        return any("/" in key for key in self.tensors)


def read(path: pathlib.Path) -> Checkpoint:
    """Read a weight file.

    Args:
        path: The file.

    Returns:
        Its tensors.

    Raises:
        WeightsError: If it cannot be opened, is of no known kind, damaged, or
            empty.
    """
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise WeightsError(
            f"{path} is a folder; give the weight file itself. It holds {inside}."
        )
    try:
        with path.open("rb") as stream:
            checkpoint = _read(stream)
            tensors = mxnet_files.renamed(checkpoint.tensors)
            checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
    except WeightsError as error:
        raise WeightsError(f"Cannot read the weights in {path}. {error}") from error
    except FileNotFoundError:
        raise WeightsError(
            f"There is no file {path} (working folder {pathlib.Path.cwd()})."
        ) from None
    except (OSError, MemoryError) as error:
        raise WeightsError(f"Cannot read the weights in {path}: {error}.") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"The weights in {path} are damaged: {error!r}.") from error
    if not checkpoint.tensors:
        raise WeightsError(f"{path} holds no tensors.")
    return checkpoint


def digest(path: pathlib.Path, algorithm: str = "sha256") -> str:
    """Return a file's hash, in hexadecimal; "git": that of a git repository."""
    if algorithm == "git":
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                state.update(chunk)
        return state.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def inner_digest(path: pathlib.Path, algorithm: str) -> str | None:
    """Return the hash of the one checkpoint inside a .pth.zip, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = _only_checkpoint(archive)
            if member is None:
                return None
            with archive.open(member) as stream:
                state = hashlib.new(algorithm)
                while chunk := stream.read(1 << 20):
                    state.update(chunk)
                return state.hexdigest()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return None


def _read(stream: BinaryIO) -> Checkpoint:
    start = stream.read(16)
    stream.seek(0)
    if not start:
        raise WeightsError("The file is empty")
    if start.startswith(_HDF5_START):
        return _of_tree(hdf5.read(stream))
    if start == mxnet_files.MAGIC:
        return Checkpoint(mxnet_files.read(stream.read()))
    if start.startswith(b"PK"):
        return _read_zip(stream)
    if start[8:9] == b"{":
        return _read_safetensors(stream.read())
    if start[:1] == b"\x80" and start[1:2] in _PROTOCOLS:
        return Checkpoint(torch_files.read_legacy(stream))
    raise WeightsError(
        f"The file is of no kind read here ({', '.join(KINDS)}); it starts with "
        f"{start[:8]!r}"
    )


def _of_tree(tree: hdf5.Tree) -> Checkpoint:
    return Checkpoint(tree.tensors, tuple(tree.layers), tree.config)


def _read_zip(stream: BinaryIO) -> Checkpoint:
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            for info in archive.infolist():
                if info.file_size > _MOST_MEMBER_BYTES:
                    raise WeightsError(f"{info.filename!r} claims {info.file_size} B")
            if any(name.rpartition("/")[2] == "data.pkl" for name in names):
                return Checkpoint(torch_files.read_zip(archive))
            if "model.weights.h5" in names:
                return _of_tree(hdf5.read_keras(archive))
            member = _only_checkpoint(archive)
            if member is not None:
                return _read(io.BytesIO(archive.read(member)))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WeightsError(f"The file is damaged or cut off: {error}") from error
    except (KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise WeightsError(f"The archive cannot be read: {error}") from error
    raise WeightsError(
        "The archive is neither a PyTorch checkpoint, a .keras file nor a zip of one "
        f"checkpoint; it holds {', '.join(names[:5]) or 'nothing'}"
    )


def _only_checkpoint(archive: zipfile.ZipFile) -> str | None:
    found = [n for n in archive.namelist() if n.lower().endswith(_TORCH_ENDINGS)]
    found = [name for name in found if not name.startswith("__MACOSX")]
    return found[0] if len(found) == 1 else None


def _read_safetensors(data: bytes) -> Checkpoint:
    from safetensors import SafetensorError, deserialize

    try:
        items = deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, OverflowError) as error:
        raise WeightsError(f"The safetensors file is damaged: {error}") from error
    tensors = {}
    for key, item in items:
        dtype = _SAFE_DTYPES.get(item["dtype"])
        if dtype is None:
            raise WeightsError(f"{key!r} has the unsupported dtype {item['dtype']}")
        flat = torch_files.decode(bytes(item["data"]), dtype)
        tensors[key] = flat.reshape(item["shape"])
    notes = header.get("__metadata__") or {}
    return Checkpoint(tensors, metadata={str(k): str(v) for k, v in notes.items()})
