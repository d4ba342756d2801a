"""Recognises a publisher's layout by its keys and gives the tensors our names."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_lightnets._checkpoints.readers import Checkpoint
from keras_lightnets._errors import WeightsError
from keras_lightnets._layout import Layout
from keras_lightnets._spec import ModelSpec, Weights

CLASSIFIER = "top_classifier"

# Counters of training and of profilers, which no layer reads.
_IGNORED = frozenset(
    ("num_batches_tracked", "total_ops", "total_params", "_extra_state")
)
# keras.applications normalises in the graph: its statistics are the preprocessing.
_STATISTICS = {"mean", "variance", "count"}
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
        entry: Published set whose numerics hold, or None for the spec's own.
        bgr: Layer whose kernel has the input channels blue, green, red.
        unused: Patterns of prefixes that may be in the file and are not read.
        pieces: Layers that hold part of a kernel: (pattern, rows, columns).
        reorder: Layers whose outputs change places in groups: (pattern, order).
        image: Layers whose last three inputs are an image's, blue first: patterns.
    """

    layout: str
    names: dict[str, str]
    top: tuple[str, ...]
    slashed: bool
    entry: Weights | None = None
    bgr: str = ""
    unused: tuple[str, ...] = ()
    pieces: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    reorder: tuple[tuple[str, tuple[int, ...]], ...] = ()
    image: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The layout's name, for messages."""
        return repr(self.layout) if self.layout else "own names"


def published(
    spec: ModelSpec, layouts: Mapping[str, Layout], entry: Weights
) -> Candidate:
    """Return the way to read a published file.

    Args:
        spec: The network.
        layouts: The family's layouts.
        entry: The published set; the names are those of its variant of the spec.

    Returns:
        The candidate.

    Raises:
        WeightsError: If the family has no such layout.
    """
    layout = layouts.get(entry.layout)
    if layout is None:
        raise WeightsError(
            f"The weights {entry.tag!r} of {spec.function} name the layout "
            f"{entry.layout!r}; the family has {', '.join(layouts) or 'none'}."
        )
    names = layout.names(spec.replace(**dict(entry.changes)))
    return _candidate(entry.layout, layout, names, entry)


def _candidate(
    name: str, layout: Layout, names: dict[str, str], entry: Weights | None = None
) -> Candidate:
    return Candidate(
        name,
        names,
        layout.top,
        layout.kind == "keras",
        entry,
        bgr=layout.bgr,
        unused=layout.unused,
        pieces=layout.pieces,
        reorder=layout.reorder,
        image=layout.image,
    )


def candidates(
    spec: ModelSpec, layouts: Mapping[str, Layout], relatives: Iterable[Weights] = ()
) -> list[Candidate]:
    """Return every way to read a file for this spec, our own names first.

    Args:
        spec: The network.
        layouts: The family's layouts.
        relatives: Published sets of the family's other variants. The first of a
            layout that the spec's own sets do not use lends its numerics.

    Returns:
        Own names, then the spec's sets, then the other layouts.
    """
    first: dict[str, Weights] = {}
    for entry in relatives:
        first.setdefault(entry.layout, dataclasses.replace(entry, tag="", url=""))
    used = {entry.layout for entry in spec.weights}
    lent = [e for name, e in first.items() if name in layouts and name not in used]
    theirs = [published(spec, layouts, entry) for entry in (*spec.weights, *lent)]
    known = {candidate.layout for candidate in theirs}
    plain = [
        _candidate(name, layout, layout.names(spec.replace(**dict(layout.changes))))
        for name, layout in layouts.items()
    ]
    first_layout = [_candidate("", x, x.names(spec)) for x in layouts.values()][:1]
    own = [
        Candidate("", {k: k for k in c.names}, c.top, slashed=True, entry=c.entry)
        for c in [*first_layout, *theirs]
    ]
    return [*own, *theirs, *(c for c in plain if c.layout not in known)]


def prefixes_of(checkpoint: Checkpoint) -> dict[str, dict[str, np.ndarray]]:
    """Group tensors by layer: prefix -> {variable: array}."""
    mark = "/" if checkpoint.slashed else "."
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, value in checkpoint.tensors.items():
        prefix, _, variable = key.rpartition(mark)
        if variable not in _IGNORED:
            groups.setdefault(prefix, {})[variable] = value
    return {p: v for p, v in groups.items() if not v.keys() <= _STATISTICS}


def recognise(
    checkpoint: Checkpoint, found: list[Candidate], where: Any, function: str
) -> list[Candidate]:
    """Return the ways to read this file.

    Args:
        checkpoint: The file's tensors.
        found: What `candidates` returned.
        where: The file, for the message.
        function: The network, for the message.

    Returns:
        The candidates of one layout whose prefixes are the file's, the classifier
        aside; at least one.

    A family without layouts has no list of names; its own files are then taken as
    they are and compared with the model when it is loaded.

    Raises:
        WeightsError: If none fits; the closest one's differences are listed.
    """
    groups = prefixes_of(checkpoint)
    if not found and checkpoint.slashed:
        return [Candidate("", {name: name for name in groups}, (CLASSIFIER,), True)]
    have = set(groups)
    fitting = [c for c in found if c.slashed == checkpoint.slashed]
    exact = [c for c in fitting if _is_whole(c, have)]
    partial = [c for c in fitting if not c.layout and have < set(c.names.values())]
    for same in (exact, partial):
        if same:
            return [c for c in same if c.layout == same[0].layout]
    tried = ", ".join(dict.fromkeys(c.label for c in found)) or "none"
    text = f"{where} is not a checkpoint of {function}. Layouts tried: {tried}."
    if not fitting:
        keys = ", ".join(list(checkpoint.tensors)[:3])
        raise WeightsError(f"{text} Its keys look like {keys}.")
    best = max(fitting, key=lambda c: _share(have, set(c.names.values())))
    need = set(best.names.values())
    raise WeightsError(
        f"{text} Closest: {best.label}, of which the file lacks "
        f"{some(p for p in best.names.values() if p not in have)} and has in addition "
        f"{some(p for p in groups if p not in need)}. Build the "
        "variant the file was made from, or load it with that network's function."
    )


def _is_whole(candidate: Candidate, have: set[str]) -> bool:
    need = set(candidate.names.values())
    top = {p for name, p in candidate.names.items() if name in candidate.top}
    return {p for p in have if not _unread(p, candidate)} in (need, need - top)


def _unread(prefix: str, candidate: Candidate) -> bool:
    return any(fnmatch.fnmatchcase(prefix, p) for p in candidate.unused)


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
    extra = [p for p in groups if p not in wanted and not _unread(p, candidate)]
    if missing or extra:
        raise WeightsError(
            f"{where} does not hold the network it should ({candidate.label}): it "
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
            if layer == candidate.bgr and variable == "kernel":
                value = np.ascontiguousarray(value[:, :, ::-1])
            if variable == "kernel":
                value = _piece(value, layer, candidate)
            value = _reordered(value, layer, candidate)
            if any(fnmatch.fnmatchcase(layer, p) for p in candidate.image):
                value = _image_turned(value)
            result[f"{layer}/{variable}"] = value
    return result


def _piece(value: np.ndarray, layer: str, candidate: Candidate) -> np.ndarray:
    """Return the layer's part of a kernel, or all of it."""
    for pattern, rows, cols in candidate.pieces:
        if fnmatch.fnmatchcase(layer, pattern):
            return value[list(rows)][:, list(cols)]
    return value


def _reordered(value: np.ndarray, layer: str, candidate: Candidate) -> np.ndarray:
    """Return a kernel or bias with its outputs in our order."""
    for pattern, order in candidate.reorder:
        if fnmatch.fnmatchcase(layer, pattern):
            groups = value.reshape(*value.shape[:-1], -1, len(order))
            return groups[..., list(order)].reshape(value.shape)
    return value


def _image_turned(value: np.ndarray) -> np.ndarray:
    """Return a kernel or vector with its last three inputs turned round."""
    axis = max(value.ndim - 2, 0)
    order = list(range(value.shape[axis]))
    return np.take(value, order[:-3] + order[:-4:-1], axis)


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
