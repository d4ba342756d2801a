"""Light-weight convolutional backbones for Keras 3, and what deploys them.

Names resolve on first use, so importing this package loads neither keras nor a
backend::

    import keras_lightnets

    model = keras_lightnets.GhostNet(weights=None)
    keras_lightnets.ghostnet.preprocess_input(images)
    keras_lightnets.list_models("mobilenet*")
"""

import importlib
import os
import sys
from typing import Any

from keras_lightnets._version import __version__ as __version__

_PUBLIC = ("create_model", "get_spec", "keep_memory", "list_models", "load_model")
# Whole dense networks: backbone and head in one.
_DENSE = ("ESPNet", "ESPNetC", "ESPNetV2Segmenter")


def create_model(name: str, **options: Any) -> Any:
    """Build a registered network by name.

    Args:
        name: Registry name such as "mobilenet_v3_small"; see `list_models`.
        **options: Arguments of the network's function, such as `weights=None`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> create_model("ghostnet", weights=None).count_params()  # doctest: +SKIP
    """
    from keras_lightnets import _registry

    spec = _registry.get_spec(name)
    module = _registry.family_module(_registry.family_of(name))
    return getattr(module, spec.function)(**options)


def load_model(path: str | os.PathLike[str], *, compile: bool = False) -> Any:
    """Load a `.keras` file that holds layers or losses of this package.

    The same as `keras.saving.load_model` after everything that this package
    registers with Keras is registered.

    Args:
        path: The file.
        compile: Whether to compile the model as it was when saved.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: If it is no such file, or holds classes that Keras does not know.

    Example:
        >>> load_model("runs/mine/best.keras").output  # doctest: +SKIP
    """
    import keras

    _register()
    try:
        return keras.saving.load_model(path, compile=compile)
    except ValueError as error:
        if not str(error).startswith(("File not found", "File format not")):
            raise
        there = "is none, or was cut off" if os.path.exists(path) else "does not exist"
        raise ValueError(
            f"A .keras or .h5 file of a model is needed. {path} {there}."
        ) from error
    except TypeError as error:
        reason = str(error).partition("Full object config")[0].strip()
        raise ValueError(
            f"{path} holds what neither Keras nor this package has. "
            f"{reason.rpartition('Exception encountered: ')[2]} Commands cannot import "
            "classes of your own; call the package from Python for them."
        ) from error


# Where classes stand that Keras must know to load a file.
_REGISTERED = (
    "heads.losses",
    "heads.seg_losses",
    "layers.blur",
    "layers.fusion",
    "layers.conv2d",
    "layers.learned_group",
    "layers.norm",
    "layers.resampling",
    "layers.response",
    "layers.select",
    "layers.weightnet",
)


def _register() -> None:
    """Import what Keras must know to load a file."""
    for name in _REGISTERED:
        importlib.import_module(f"keras_lightnets.{name}")


def __getattr__(name: str) -> Any:
    """Resolve networks, families and sub-packages on first use."""
    if name.startswith("_"):  # the import system asks for private modules here
        raise AttributeError(f"module 'keras_lightnets' has no attribute {name!r}")
    from keras_lightnets import _registry

    if name in ("get_spec", "list_models"):
        return getattr(_registry, name)
    if name == "keep_memory":
        return importlib.import_module("keras_lightnets._memory").keep_memory
    if name in _registry.FAMILIES:
        return _registry.family_module(name)
    if name in _DENSE:
        return getattr(importlib.import_module("keras_lightnets.heads.dense"), name)
    if name in ("heads", "layers", "tasks", "tools", "cost"):
        return importlib.import_module(f"keras_lightnets.{name}")
    family = _registry.functions().get(name) if name[:1].isupper() else None
    if family is None:
        raise AttributeError(
            f"module 'keras_lightnets' has no attribute {name!r}. Networks: "
            f"{', '.join(sorted(_registry.functions()))}"
            if name[:1].isupper()
            else f"module 'keras_lightnets' has no attribute {name!r}"
        )
    return getattr(_registry.family_module(family), name)


def __dir__() -> list[str]:
    """List public names: functions, families, networks."""
    from keras_lightnets import _registry

    return sorted(
        [*_PUBLIC, *_DENSE, "__version__", *_registry.FAMILIES, *_registry.functions()]
    )


# `import keras, keras_lightnets` is enough for keras.saving.load_model; where keras
# is not loaded yet, it stays so and `load_model` above registers.
if "keras" in sys.modules:
    _register()
