"""Converted weights as safetensors in our own names, written atomically."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lightnets._checkpoints import download, readers
from keras_lightnets._checkpoints.convert import Candidate
from keras_lightnets._errors import WeightsError
from keras_lightnets._version import __version__

_log = logging.getLogger("keras_lightnets")


def write(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], notes: dict[str, str]
) -> None:
    """Write a safetensors file under another name, then give it its own.

    Args:
        path: The file.
        tensors: Key -> array.
        notes: Metadata.

    Raises:
        WeightsError: If it cannot be written.
    """
    from safetensors.numpy import save

    solid = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    temporary = ""
    try:
        data = save(solid, metadata=notes)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f"{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise WeightsError(f"Cannot write {path}: {error}.") from error


def key_of(source: str, spec: Any, candidate: Candidate, offset: int) -> str:
    """Return the name of a conversion: changes with all that it depends on."""
    parts = [source, __version__, spec.name, candidate.layout, candidate.slashed]
    names = list(candidate.names.items())
    text = json.dumps([*parts, names, candidate.pieces, candidate.image, offset])
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    return f"{spec.name}-{candidate.layout}-{digest}"


def _path(key: str) -> pathlib.Path:
    return download.home() / "converted" / f"{key}.safetensors"


def cached(key: str) -> dict[str, np.ndarray] | None:
    """Return an earlier conversion, or None where there is none to trust."""
    path = _path(key)
    if not path.is_file():
        return None
    try:
        return readers.read(path).tensors
    except WeightsError as error:
        _log.warning("A converted file is damaged and is made anew: %s", error)
        return None


def keep(key: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Keep a conversion for the next time; a full disk costs only that time."""
    try:
        write(_path(key), tensors, {})
    except WeightsError as error:
        _log.warning("The converted weights are not kept: %s", error)
