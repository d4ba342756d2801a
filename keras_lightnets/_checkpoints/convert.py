"""Recognises a publisher's layout by its keys and gives the tensors our names."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_lightnets._checkpoints.readers import Checkpoint
from keras_lightnets._errors import WeightsError
from keras_lightnets._layout import Layout

CLASSIFIER = "top_classifier"

# Counters of training and of profilers, which no layer reads.
_IGNORED = frozenset(
    ("num_batches_tracked", "total_ops", "total_params", "_extra_state")
)
_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to read a file.

    Attributes:
        layout: Name in the family's LAYOUTS, or "" for our own names.
        names: Layer name here -> the file's prefix.
        top: Layers that a file without the classifier lacks.
        slashed: Whether the file's keys are "layer/variable".
    """

    layout: str
    names: dict[str, str]
    top: tuple[str, ...]
    slashed: bool


def candidates(spec: Any, layouts: Mapping[str, Layout]) -> list[Candidate]:
    """Return every way to read a file for this spec, our own names first.

    The order of the rest is that of the spec's weights, then of the layouts.
    """
    order = [w.layout for w in spec.weights if w.layout in layouts]
    found: list[Candidate] = []
    for name in dict.fromkeys([*order, *layouts]):
        layout = layouts[name]
        prefixes = layout.names(spec)
        slashed = layout.kind == "keras"
        found.append(Candidate(name, prefixes, layout.top, slashed))
        if len(found) == 1:
            own = {layer: layer for layer in prefixes}
            found.insert(0, Candidate("", own, layout.top, True))
    return found


def prefixes_of(checkpoint: Checkpoint) -> dict[str, dict[str, np.ndarray]]:
    """Group tensors by layer: prefix -> {variable: array}."""
    mark = "/" if checkpoint.slashed else "."
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, value in checkpoint.tensors.items():
        prefix, _, variable = key.rpartition(mark)
        if variable not in _IGNORED:
            groups.setdefault(prefix, {})[variable] = value
    return groups


def recognise(
    checkpoint: Checkpoint, found: list[Candidate], where: Any, function: str
) -> Candidate:
    """Return the way to read this file.

    Args:
        checkpoint: The file's tensors.
        found: What `candidates` returned.
        where: The file, for the message.
        function: The network, for the message.

    Returns:
        The candidate whose prefixes are the file's, or are with the classifier.

    Raises:
        WeightsError: If none is; the closest one's differences are listed.
    """
    have = set(prefixes_of(checkpoint))
    fitting = [c for c in found if c.slashed == checkpoint.slashed]
    for candidate in fitting:
        need = set(candidate.names.values())
        top = {p for name, p in candidate.names.items() if name in candidate.top}
        if have == need or have == need - top:
            return candidate
        if not candidate.layout and have and have < need:
            return candidate
    tried = ", ".join(_label(c) for c in found) or "none"
    text = f"{where} is not a checkpoint of {function}. Layouts tried: {tried}."
    if not fitting:
        keys = ", ".join(list(checkpoint.tensors)[:3])
        raise WeightsError(f"{text} Its keys look like {keys}.")
    best = max(fitting, key=lambda c: _share(have, set(c.names.values())))
    need = set(best.names.values())
    raise WeightsError(
        f"{text} Closest: {_label(best)}, of which the file lacks "
        f"{some(p for p in best.names.values() if p not in have)} and has in addition "
        f"{some(p for p in prefixes_of(checkpoint) if p not in need)}. Build the "
        "variant the file was made from, or load it with that network's function."
    )


def _label(candidate: Candidate) -> str:
    return f"{candidate.layout!r}" if candidate.layout else "own names"


def _share(have: set[str], need: set[str]) -> float:
    return len(have & need) / max(len(have | need), 1)


def some(names: Iterable[str], most: int = 4) -> str:
    """Return the first few names as a text."""
    items = list(names)
    if not items:
        return "nothing"
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def convert(
    checkpoint: Checkpoint, candidate: Candidate, offset: int, where: Any
) -> dict[str, np.ndarray]:
    """Return the tensors as "layer/variable" in our names and orientation.

    Args:
        checkpoint: The file's tensors.
        candidate: How to read them; layers of its `top` may be absent.
        offset: Leading classes to drop (a publisher's "background").
        where: The file, for the message.

    Returns:
        Own key -> array. Convolution kernels are (height, width, in, out), dense
        ones (in, out).

    Raises:
        WeightsError: If layers are missing or left over.
    """
    groups = prefixes_of(checkpoint)
    wanted = set(candidate.names.values())
    missing = [
        prefix
        for layer, prefix in candidate.names.items()
        if prefix not in groups and layer not in candidate.top and candidate.layout
    ]
    extra = [prefix for prefix in groups if prefix not in wanted]
    if missing or extra:
        raise WeightsError(
            f"{where} does not hold the network it should ({_label(candidate)}): it "
            f"lacks {some(missing)} and has in addition {some(extra)}."
        )
    result: dict[str, np.ndarray] = {}
    for layer, prefix in candidate.names.items():
        values = groups.get(prefix, {})
        if not candidate.slashed:
            values = _from_torch(values)
        for variable, value in values.items():
            if offset and layer == CLASSIFIER:
                value = value[..., offset:]
            result[f"{layer}/{variable}"] = value
    return result


def _from_torch(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename and turn one layer's tensors; what it is shows in their ranks."""
    if "running_mean" in values:
        return {_NORM.get(key, key): value for key, value in values.items()}
    weight = values.get("weight")
    if weight is None:
        return dict(values)
    if weight.ndim == 1:
        names = _NORM if "bias" in values else {"weight": "alpha"}
        return {names.get(key, key): value for key, value in values.items()}
    # (out, in, ...) to (..., in, out); the same order turns transposed kernels.
    axes = (*range(2, weight.ndim), 1, 0)
    return {
        ("kernel" if key == "weight" else key): (
            value.transpose(axes) if key == "weight" else value
        )
        for key, value in values.items()
    }


def classes_in(checkpoint: Checkpoint, candidate: Candidate) -> int | None:
    """Return the file's number of classes, or None without a classifier."""
    prefix = candidate.names.get(CLASSIFIER)
    values = prefixes_of(checkpoint).get(prefix or "", {})
    return len(values["bias"]) if "bias" in values else None


def fit(
    value: np.ndarray, shape: tuple[int, ...], depthwise: bool = False
) -> np.ndarray | None:
    """Return the array in a variable's shape, or None where it does not fit.

    Axes of one may move: a dense kernel serves a 1x1 convolution, and the other
    way round. A depthwise kernel is (height, width, 1, channels x multiplier) in
    PyTorch's files and (height, width, channels, multiplier) in a layer.

    Args:
        value: The file's array.
        shape: The variable's shape.
        depthwise: Whether the variable is a depthwise kernel.
    """
    if value.shape == shape:
        return value
    if value.size != int(np.prod(shape)):
        return None
    if [n for n in value.shape if n != 1] == [n for n in shape if n != 1]:
        return value.reshape(shape)
    if depthwise and value.ndim == 4 and value.shape[:3] == (*shape[:2], 1):
        return value.reshape(shape)
    return None
