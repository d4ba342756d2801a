"""Reads MXNet's .params files, and turns its names of tensors into prefix.variable.

Layout of a file, all numbers little-endian: 0x112 and 0 (8 bytes each), the number of
arrays (8), the arrays, the number of names (8), the names (length in 8 bytes, text).
An array is a shape, device type and number (4 bytes each), type (4) and values. What
stands in front of the shape tells its version: a mark and the kind of storage, a mark
alone (axes in 8 bytes each after their number in 4), or nothing (axes in 4 bytes).
"""

import math
import re
import struct
from collections.abc import Mapping

import numpy as np

from keras_lightnets._errors import WeightsError

MAGIC = struct.pack("<QQ", 0x112, 0)

_WIDE = 0xF993FAC8  # axes of 8 bytes
_STORED = 0xF993FAC9  # and the kind of storage
_TYPES = ("<f4", "<f8", "<f2", "|u1", "<i4", "|i1", "<i8")
_MOST_AXES = 8

_SUFFIXES = {
    "_weight": ".weight",
    "_bias": ".bias",
    "_gamma": ".weight",
    "_beta": ".bias",
    "_moving_mean": ".running_mean",
    "_moving_var": ".running_var",
}
_NAME = re.compile(rf"(?:arg:|aux:)?([^./]+?)({'|'.join(_SUFFIXES)})")


def read(data: bytes) -> dict[str, np.ndarray]:
    """Read a .params file.

    Args:
        data: The file's content.

    Returns:
        Name -> array, in the file's order.

    Raises:
        WeightsError: If it is cut off, damaged, or holds sparse arrays.
    """
    cursor = _Cursor(data, len(MAGIC))
    arrays = [_array(cursor) for _ in range(cursor.count())]
    names = [cursor.take(cursor.count()).decode("utf-8") for _ in range(cursor.count())]
    if len(names) != len(arrays):
        raise WeightsError(
            f"The MXNet file has {len(arrays)} arrays and {len(names)} names"
        )
    return dict(zip(names, arrays, strict=True))


def renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give tensors with MXNet's names those of a PyTorch state dict.

    Args:
        tensors: Name -> array; "arg:" and "aux:" in front may be missing.

    Returns:
        The same if any name is not one of MXNet's; otherwise "NODE.weight",
        "NODE.running_mean" and so on for "arg:NODE_weight", "aux:NODE_moving_mean".

    Example:
        >>> list(renamed({"aux:g0_bn_moving_var": np.ones(2)}))
        ['g0_bn.running_var']
    """
    result: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            return dict(tensors)
        result[f"{match[1]}{_SUFFIXES[match[2]]}"] = value
    return result


class _Cursor:
    """A place in the file; never reads past its end."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place

    def take(self, size: int) -> bytes:
        end = self._place + size
        if end > len(self._data):
            lacking = end - len(self._data)
            raise WeightsError(f"The MXNet file is cut off: {lacking} bytes lack")
        part, self._place = self._data[self._place : end], end
        return part

    def numbers(self, kind: str, count: int = 1) -> tuple[int, ...]:
        pattern = f"<{count}{kind}"
        return struct.unpack(pattern, self.take(struct.calcsize(pattern)))

    def count(self) -> int:
        """Return a number of things, of which each takes at least one byte."""
        (number,) = self.numbers("Q")
        if number > len(self._data):
            raise WeightsError(f"The MXNet file is damaged: it claims {number} items")
        return number


def _array(cursor: _Cursor) -> np.ndarray:
    (mark,) = cursor.numbers("I")
    kind, axes = "I", mark
    if mark in (_WIDE, _STORED):
        if mark == _STORED and cursor.numbers("i") != (0,):
            raise WeightsError("The MXNet file holds a sparse array")
        kind, (axes,) = "q", cursor.numbers("I")
    if axes > _MOST_AXES:
        raise WeightsError(f"The MXNet file is damaged: an array of {axes} axes")
    shape = cursor.numbers(kind, axes)
    if not axes:
        return np.zeros(0, "float32")
    _, _, flag = cursor.numbers("i", 3)
    if min(shape) < 0 or not 0 <= flag < len(_TYPES):
        raise WeightsError(f"The MXNet file is damaged: shape {shape}, type {flag}")
    dtype = np.dtype(_TYPES[flag])
    data = cursor.take(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)
