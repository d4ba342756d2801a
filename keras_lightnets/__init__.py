"""Light-weight convolutional backbones for Keras 3, and what deploys them.

Names resolve on first use, so importing this package loads neither keras nor a
backend::

    import keras_lightnets

    model = keras_lightnets.GhostNet(weights=None)
    keras_lightnets.ghostnet.preprocess_input(images)
    keras_lightnets.list_models("mobilenet*")
"""

import importlib
from typing import Any

from keras_lightnets._version import __version__ as __version__

_REGISTRY_NAMES = ("create_model", "get_spec", "list_models")


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


def __getattr__(name: str) -> Any:
    """Resolve networks, families and sub-packages on first use."""
    if name.startswith("_"):  # the import system asks for private modules here
        raise AttributeError(f"module 'keras_lightnets' has no attribute {name!r}")
    from keras_lightnets import _registry

    if name in ("get_spec", "list_models"):
        return getattr(_registry, name)
    if name in _registry.FAMILIES:
        return _registry.family_module(name)
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
        [*_REGISTRY_NAMES, "__version__", *_registry.FAMILIES, *_registry.functions()]
    )
