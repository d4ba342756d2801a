"""Finds, checks and loads weights; random ones never stand in for missing ones."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lightnets._checkpoints import convert, download, numerics, readers, store
from keras_lightnets._errors import WeightsError, close_match
from keras_lightnets._layout import Layout
from keras_lightnets._spec import ModelSpec, Preprocessing, Weights

ACCEPT = "KERAS_LIGHTNETS_ACCEPT_LICENCE"

_log = logging.getLogger("keras_lightnets")

_FILE_ENDINGS = (
    *(".safetensors", ".pth", ".pt", ".zip", ".h5", ".hdf5", ".keras"),
    *(".ckpt", ".bin", ".pkl", ".tar", ".npz", ".tflite", ".onnx", ".params"),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that were found, checked and given our names.

    Attributes:
        tag: Published set whose numerics hold; "" for a file in our own names.
        changes: Fields of the spec in which the publisher's network differs.
        preprocessing: Input normalisation the weights were trained with.
        classes: Number of classes of the file's classifier, None without one.
        tensors: "layer/variable" -> array, in Keras's orientation.
        order: Layers of the whole network with weights, in building order; empty
            where the family names none.
        top: Layers that exist only with the classifier.
        where: File or tag, for messages.
        config: Model config of a .keras file, or None.
    """

    tag: str
    changes: dict[str, Any]
    preprocessing: Preprocessing
    classes: int | None
    tensors: Mapping[str, np.ndarray]
    order: tuple[str, ...]
    top: tuple[str, ...]
    where: str
    config: dict[str, Any] | None = None


def resolve(
    spec: ModelSpec,
    layouts: Mapping[str, Layout],
    weights: str | os.PathLike[str] | None,
    accept_licence: bool = False,
) -> Source | None:
    """Find the weights, check their hash, read them and give them our names.

    Args:
        spec: The network; its `weights` are the published sets.
        layouts: Publishers' tensor names, by layout name.
        weights: None, "imagenet" (the first published set), a published tag, or
            the path of a file.
        accept_licence: Whether the caller accepts a licence that asks for it; so
            does its name in KERAS_LIGHTNETS_ACCEPT_LICENCE (comma-separated).

    Returns:
        The source, or None for random weights.

    Raises:
        WeightsError: If the weights do not exist, cannot be had, are not the
            published ones, cannot be read, or do not fit the network.
    """
    if weights is None:
        return None
    if not isinstance(weights, str | os.PathLike):
        raise WeightsError(
            "weights must be None, 'imagenet', a published tag or the path of a file. "
            f"Received: {weights!r}"
        )
    entry = spec.find_weights(weights) if isinstance(weights, str) else None
    if entry is not None:
        _check_licence(entry, accept_licence)
        return _published(spec, layouts, entry)
    path = pathlib.Path(weights).expanduser()
    if isinstance(weights, str) and not _is_path(weights, path):
        raise _no_such_tag(spec, weights)
    return _from_file(spec, layouts, path)


def load(model: Any, source: Source) -> None:
    """Give every weight of a model its value.

    Args:
        model: What was built for the source. A model without the classifier or
            cut at an endpoint leaves the rest of the file unused; a model with
            the classifier must use all of it.
        source: What `resolve` returned.

    Raises:
        WeightsError: If anything is missing, left over or of another shape; no
            weight of the model was changed then.
    """
    numerics.check_config(model, source.config, source.where)
    layers = [layer for layer in _own_layers(model, source) if layer.weights]
    plan: list[tuple[Any, np.ndarray]] = []
    missing: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    for layer in layers:
        depthwise = hasattr(layer, "depth_multiplier")
        for variable in layer.weights:
            key = f"{layer.name}/{variable.name}"
            used.add(key)
            value = source.tensors.get(key)
            if value is None:
                missing.append(key)
                continue
            shape = tuple(variable.shape)
            fitted = convert.fit(value, shape, depthwise)
            if fitted is None:
                wrong.append(f"{key} {tuple(value.shape)} for {shape}")
            else:
                plan.append((variable, fitted))
    extra = _left_over(source, {layer.name for layer in layers}, used)
    if missing or wrong or extra:
        raise _misfit(source, missing, wrong, extra)
    for variable, value in plan:
        variable.assign(value)


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a model's weights as safetensors in our own names, with its numerics.

    Args:
        model: A network of this package.
        path: The file; replaced atomically.

    Raises:
        WeightsError: If it cannot be written.
    """
    tensors = {
        f"{layer.name}/{variable.name}": np.asarray(variable)
        for layer in model.layers
        for variable in layer.weights
    }
    store.write(pathlib.Path(path), tensors, numerics.notes(model.get_config()))


def _check_licence(entry: Weights, accepted: bool) -> None:
    names = os.environ.get(ACCEPT, "").lower().split(",")
    if not entry.accept_licence or accepted:
        return
    if entry.licence.lower() in (name.strip() for name in names):
        return
    raise WeightsError(
        f"The weights {entry.tag!r} ({entry.source}) are under the licence "
        f"{entry.licence}, which must be accepted by who uses them. Read it at "
        f"{entry.url}, then set {ACCEPT}={entry.licence}."
    )


def _is_path(text: str, path: pathlib.Path) -> bool:
    """Whether the text means a file; an existing one, or one by its looks."""
    separators = (os.sep, os.altsep or os.sep)
    looks = text.lower().endswith(_FILE_ENDINGS)
    return bool(text) and (looks or path.exists() or any(s in text for s in separators))


def _no_such_tag(spec: ModelSpec, weights: str) -> WeightsError:
    from keras_lightnets import _registry

    name = f"{spec.function} ({spec.name})"
    others = ", ".join(_registry.list_models(weights=True)) or "none"
    if not spec.weights:
        return WeightsError(
            f"No weights are published for {name} as built here. Received: weights="
            f"{weights!r}. Networks with published weights: {others}. Use one of them, "
            "weights=None, or the path of a file."
        )
    tags = ["imagenet", *(entry.tag for entry in spec.weights)]
    close = close_match(weights, tags)
    guess = f" Did you mean {close!r}?" if close else ""
    return WeightsError(
        f"Unknown weights {weights!r} of {name}.{guess} Legal: None, "
        f"{', '.join(map(repr, tags))}, or the path of a file (there is no file "
        f"{weights!r} in {pathlib.Path.cwd()})."
    )


def _published(
    spec: ModelSpec, layouts: Mapping[str, Layout], entry: Weights
) -> Source:
    path = download.obtain(entry)
    candidate = convert.published(spec, layouts, entry)
    key = store.key_of(readers.digest(path), spec, candidate, entry.class_offset)
    tensors = store.cached(key)
    if tensors is None:
        checkpoint = readers.read(path)
        tensors = convert.convert(checkpoint, candidate, entry.class_offset, path)
        store.keep(key, tensors)
    return Source(
        tag=entry.tag,
        changes=dict(entry.changes),
        preprocessing=entry.preprocessing,
        classes=_classes(tensors),
        tensors=tensors,
        order=tuple(candidate.names),
        top=candidate.top,
        where=f"{spec.function}'s weights {entry.tag!r} ({path})",
    )


def _from_file(
    spec: ModelSpec, layouts: Mapping[str, Layout], path: pathlib.Path
) -> Source:
    checkpoint = readers.read(path)
    found = convert.candidates(spec, layouts, _relatives(spec))
    ways = convert.recognise(checkpoint, found, path, spec.function)
    candidate = ways[0] if not ways[0].layout else _closest(ways, path)
    entry = candidate.entry if candidate.layout else None
    offset = entry.class_offset if entry else 0
    if offset and convert.classes_in(checkpoint, candidate) != 1000 + offset:
        offset = 0
    tensors = convert.convert(checkpoint, candidate, offset, path)
    if candidate.layout:
        numerics_of = entry or layouts[candidate.layout]
        changes = dict(numerics_of.changes)
        rule = numerics_of.preprocessing or spec.preprocessing
    else:
        entries = [way.entry for way in ways]
        changes, rule = numerics.of_own_file(spec, checkpoint, entries)
    return Source(
        tag=entry.tag if entry else "",
        changes=changes,
        preprocessing=rule,
        classes=_classes(tensors),
        tensors=tensors,
        order=tuple(candidate.names) if layouts else (),
        top=candidate.top,
        where=str(path),
        config=None if candidate.layout else checkpoint.config,
    )


def _relatives(spec: ModelSpec) -> list[Weights]:
    """Return the published sets of the family's variants."""
    from keras_lightnets import _registry

    if spec.name not in _registry.list_models():
        return []
    module = _registry.family_module(_registry.family_of(spec.name))
    return [entry for variant in module.SPECS for entry in variant.weights]


def _closest(ways: list[convert.Candidate], path: pathlib.Path) -> convert.Candidate:
    """Return the way whose published file this is, or else the first."""
    entries = [(way, way.entry) for way in ways if way.entry is not None]
    for way, entry in entries:
        urls = entry.url.split(" | ")
        if path.name in {download.file_name(url) for url in urls}:
            return way
    for way, entry in entries:
        if len(entries) > 1 and entry.hash and " | " not in entry.hash:
            if not download.mismatch(path, entry.hash):
                return way
    numerics_of = {
        (e.changes, e.preprocessing.mean, e.class_offset) for _, e in entries
    }
    if len(numerics_of) > 1:
        _log.warning(
            "%s fits %s alike, which differ in padding, epsilon or normalisation; it "
            "is read as %s. Give the file the published name to choose another.",
            path,
            " and ".join(repr(entry.tag) for _, entry in entries),
            repr(entries[0][1].tag),
        )
    return ways[0]


def _classes(tensors: Mapping[str, np.ndarray]) -> int | None:
    kernel = tensors.get(f"{convert.CLASSIFIER}/kernel")
    return None if kernel is None else int(kernel.shape[-1])


def _own_layers(model: Any, source: Source) -> list[Any]:
    """Return the model's layers without those before `input_tensor`.

    `model.layers` runs from the inputs to the outputs, so whatever stands before
    the network's first layer is the caller's.
    """
    layers = list(model.layers)
    first = next((i for i, la in enumerate(layers) if la.name in source.order), 0)
    return layers[first:]


def _left_over(source: Source, present: set[str], used: set[str]) -> list[str]:
    """Return tensors the model should have used.

    Of a layer that is present all are due. An absent layer is in order where the
    classifier is absent and nothing that stands behind it is present.
    """
    blocks = list(dict.fromkeys(_block(name) for name in source.order))
    last = max(
        (blocks.index(_block(name)) for name in source.order if name in present),
        default=-1,
    )
    whole = convert.CLASSIFIER in present
    extra = []
    for key in source.tensors:
        layer = key.rpartition("/")[0]
        if key in used:
            continue
        known = layer in source.order
        behind = not source.order or known and blocks.index(_block(layer)) >= last
        if layer in present or whole or not (behind or layer in source.top):
            extra.append(key)
    return extra


def _block(layer: str) -> str:
    """Return "stage3_block2" of "stage3_block2_expand_conv"."""
    return "_".join(layer.split("_")[:2])


def _misfit(
    source: Source, missing: list[str], wrong: list[str], extra: list[str]
) -> WeightsError:
    if wrong and all(text.startswith(convert.CLASSIFIER) for text in wrong):
        return WeightsError(
            f"{source.where} classifies {source.classes} classes: {wrong[0]}. Pass "
            f"classes={source.classes}, or include_top=False and add a classifier."
        )
    if missing and all(key.startswith(convert.CLASSIFIER) for key in missing):
        return WeightsError(
            f"{source.where} holds no classifier. Use include_top=False and add one."
        )
    return WeightsError(
        f"{source.where} does not fit the network. Missing: {convert.some(missing)}. "
        f"Wrong shape: {convert.some(wrong)}. Left over: {convert.some(extra)}. Build "
        "the variant (width, rows) the file was made from."
    )
