"""Reads HDF5 weights: Keras 3 .weights.h5, legacy .h5, and .keras archives."""

import dataclasses
import json
import zipfile
from typing import Any, BinaryIO

import numpy as np

from keras_lightnets._errors import WeightsError

# Variables of a layer, in the order Keras 3 numbers them, by the layer's class
# as it stands in the group's name ("layers/batch_normalization_4").
_VARIABLES = {
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "layer_normalization": ("gamma", "beta"),
    "group_normalization": ("gamma", "beta"),
    "p_re_lu": ("alpha",),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "normalization": ("mean", "variance", "count"),
}
_KERNEL = ("kernel", "bias")
# What variables were called, by Keras 1 the last four.
_SAME = {
    "depthwise_kernel": "kernel",
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}
# Kernels of a separable convolution, each as a layer of its own, as it is here.
_HALVES = {"depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise"}
# Layers that nobody named: they are counted from 1 on, as a count goes on for as long
# as a process does. Keras 1 called them otherwise.
_UNNAMED = {
    "batch_normalization": "batch_normalization",
    "batchnormalization": "batch_normalization",
    "conv2d": "conv2d",
    "convolution2d": "conv2d",
}
_MOST_BYTES = 1 << 31


@dataclasses.dataclass
class Tree:
    """What an HDF5 file says.

    Attributes:
        tensors: "layer/variable" -> array.
        layers: Names of all layers, those without weights included.
        config: The model's config where the file holds one (.keras).
    """

    tensors: dict[str, np.ndarray]
    layers: list[str]
    config: dict[str, Any] | None = None


def read_keras(archive: zipfile.ZipFile) -> Tree:
    """Read the weights and the config of a .keras file."""
    import io

    tree = read(io.BytesIO(archive.read("model.weights.h5")))
    try:
        config = json.loads(archive.read("config.json"))
    except (KeyError, ValueError) as error:
        raise WeightsError(f"The .keras file has no readable config: {error}") from None
    tree.config = config if isinstance(config, dict) else None
    return tree


def read(stream: BinaryIO) -> Tree:
    """Read a file saved by `save_weights` of Keras 3 or Keras 2, or model.h5.

    Args:
        stream: The open file.

    Returns:
        The tree; `depthwise_kernel` is called `kernel`, as in Keras 3, a separable
        convolution is two layers, NAME/depthwise and NAME/pointwise, and unnamed
        convolutions and batch normalisations are counted from 1 on.

    Raises:
        WeightsError: If the file is damaged or of another kind.
    """
    import h5py

    try:
        with h5py.File(stream, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
            if "layer_names" in root.attrs or "layer_names0" in root.attrs:
                return _counted(_legacy(root))
            return _counted(_numbered(file))
    except WeightsError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"The HDF5 file is damaged or cut off: {error}") from error


def _counted(tree: Tree) -> Tree:
    """Count unnamed layers anew: what was made first is 1."""
    order: dict[str, list[tuple[int, str]]] = {}
    for layer in tree.layers:
        stem, _, digits = layer.rpartition("_")
        if not digits.isdigit():
            stem, digits = layer, "0"
        if stem in _UNNAMED:
            order.setdefault(_UNNAMED[stem], []).append((int(digits), layer))
    names = {
        layer: f"{kind}_{place}"
        for kind, found in order.items()
        for place, (_, layer) in enumerate(sorted(found), start=1)
    }
    parts = ((key.partition("/"), value) for key, value in tree.tensors.items())
    tensors = {f"{names.get(a, a)}{mark}{b}": value for (a, mark, b), value in parts}
    layers = [names.get(layer, layer) for layer in tree.layers]
    return Tree(tensors, layers, tree.config)


def _place(layer: str, variable: str, separable: bool) -> str:
    """Return the key of a variable."""
    if separable and variable in _HALVES:
        return f"{layer}/{_HALVES[variable]}/kernel"
    return f"{layer}/{_SAME.get(variable, variable)}"


def _legacy(root: Any) -> Tree:
    """Layers and their weights by name, in attributes."""
    layers = _texts(root.attrs, "layer_names")
    tensors: dict[str, np.ndarray] = {}
    for layer in layers:
        group = _child(root, layer)
        names = _texts(group.attrs, "weight_names")
        separable = any("pointwise_kernel" in name for name in names)
        for name in names:
            variable = name.rpartition("/")[2].partition(":")[0]
            if "seed_generator" in variable:
                continue
            key = _place(layer, variable.removeprefix(f"{layer}_"), separable)
            tensors[key] = _array(group, name)
    return Tree(tensors, layers)


def _texts(attributes: Any, name: str) -> list[str]:
    """Return a list of names; long ones are split into name0, name1, ..."""
    if name in attributes:
        parts = [attributes[name]]
    else:
        parts, index = [], 0
        while f"{name}{index}" in attributes:
            parts.append(attributes[f"{name}{index}"])
            index += 1
    items = [item for part in parts for item in part]
    return [i.decode("utf-8") if isinstance(i, bytes) else str(i) for i in items]


def _numbered(file: Any) -> Tree:
    """Groups by class and number; "vars" carries the layer's name."""
    groups: list[tuple[str, Any]] = []
    _find_vars(file, "", groups)
    layers: list[str] = []
    tensors: dict[str, np.ndarray] = {}
    for path, group in groups:
        parent = path.rpartition("/")[2]
        if parent.startswith("seed_generator") or path.startswith("optimizer"):
            continue
        name = group.attrs.get("name")
        if name is None and len(group):
            raise WeightsError(
                f"The file has no layer names (group {path!r}): an early Keras 3 wrote "
                "it. Load it with model.load_weights(path) into the model it came "
                "from, and save that with a current Keras."
            )
        if not path or name is None:
            continue
        name = name.decode("utf-8") if isinstance(name, bytes) else str(name)
        layers.append(name)
        _add_layer(tensors, name, parent, group)
    if not tensors:
        raise WeightsError("The HDF5 file holds no layers of a Keras model")
    return Tree(tensors, layers)


def _add_layer(
    tensors: dict[str, np.ndarray], layer: str, parent: str, group: Any
) -> None:
    kind = parent.rstrip("0123456789").rstrip("_") if parent[-1:].isdigit() else parent
    names = _VARIABLES.get(kind) or _VARIABLES.get(parent) or _KERNEL
    indices = sorted(group, key=int)
    if len(indices) > len(names):
        raise WeightsError(
            f"The layer {layer!r} ({kind}) has {len(indices)} variables in the file; "
            f"{', '.join(names)} were expected"
        )
    for index, name in zip(indices, names, strict=False):
        key = _place(layer, name, kind == "separable_conv2d")
        tensors[key] = _array(group, index)


def _find_vars(group: Any, path: str, found: list[tuple[str, Any]]) -> None:
    for name in group:
        child = _child(group, name)
        if not hasattr(child, "keys"):
            continue
        if name == "vars":
            found.append((path, child))
        elif path.count("/") < 8:
            _find_vars(child, f"{path}/{name}" if path else name, found)


def _child(group: Any, name: str) -> Any:
    """Return a member of the file itself; links to other files are refused."""
    import h5py

    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise WeightsError(f"The HDF5 file has no member {name!r} of its own")
        group = group[part]
    return group


def _array(group: Any, name: str) -> np.ndarray:
    data = _child(group, name)
    if not hasattr(data, "dtype") or data.external or data.is_virtual:
        raise WeightsError(f"The HDF5 file's {name!r} is not an array of its own")
    if data.dtype.kind not in "fiub" and data.attrs.get("dtype") != "bfloat16":
        raise WeightsError(f"The HDF5 file's {name!r} is not numeric: {data.dtype}")
    if data.size * data.dtype.itemsize > _MOST_BYTES:
        raise WeightsError(f"The HDF5 file's {name!r} claims {data.size} numbers")
    if data.attrs.get("dtype") == "bfloat16":
        raw = np.asarray(data[()]).tobytes()
        high = np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)
        return high.view(np.float32).reshape(data.shape)
    return np.asarray(data[()])
