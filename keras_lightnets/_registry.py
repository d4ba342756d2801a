"""Which networks exist. Reads specs only: loads neither keras nor a backend."""

import fnmatch
import functools
import importlib
from types import ModuleType

from keras_lightnets._errors import unknown
from keras_lightnets._spec import ModelSpec

FAMILIES = (
    "alexnet",
    "channelnet",
    "condensenet",
    "dbb_mobilenet",
    "dbb_resnet",
    "eca_net",
    "efficientnet",
    "efficientnet_lite",
    "efficientnet_v2",
    "espnet",
    "espnet_v2",
    "fbnet",
    "fbnet_v2",
    "fbnet_v3",
    "g_ghost_regnet",
    "ghostnet",
    "gpunet",
    "igcv1",
    "igcv2",
    "igcv3",
    "mgic_mobilenet_v3",
    "mgic_resnet",
    "micronet",
    "mnasnet",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "nexception",
    "peleenet",
    "repghostnet",
    "repvgg",
    "res2net",
    "resnet",
    "resnext",
    "rm_repvgg",
    "rmnext",
    "senet",
    "shufflenet_v1",
    "shufflenet_v2",
    "sknet",
    "squeezenet",
    "squeezenext",
    "vgg",
    "weightnet",
    "wide_resnet",
    "xception",
)


def family_module(family: str) -> ModuleType:
    """Return the backbone module of a family, such as "ghostnet"."""
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    return importlib.import_module(f"keras_lightnets.backbones.{family}")


@functools.cache
def _table() -> dict[str, tuple[str, ModelSpec]]:
    table: dict[str, tuple[str, ModelSpec]] = {}
    for family in FAMILIES:
        for spec in family_module(family).SPECS:
            if spec.name in table:
                raise ValueError(f"Two specs are named {spec.name!r}; names are unique")
            table[spec.name] = (family, spec)
    return table


def list_models(pattern: str = "*", *, weights: bool = False) -> list[str]:
    """List registry names.

    Args:
        pattern: Shell-style pattern, such as "ghost*".
        weights: Keep only networks with published weights.

    Returns:
        Sorted names.

    Example:
        >>> list_models("ghost*", weights=True)
        ['ghostnet']
    """
    return sorted(
        name
        for name, (_, spec) in _table().items()
        if fnmatch.fnmatchcase(name, pattern) and (spec.weights or not weights)
    )


def get_spec(name: str) -> ModelSpec:
    """Return the spec of a registry name.

    Args:
        name: Registry name such as "ghostnet", or function name ("GhostNet").

    Returns:
        The frozen spec.

    Raises:
        ValueError: If there is no such network; the closest name is suggested.
    """
    table = _table()
    if name in table:
        return table[name][1]
    for _, spec in table.values():
        if spec.function == name:
            return spec
    raise unknown("model", name, sorted(table), "All: keras-lightnets list.")


def family_of(name: str) -> str:
    """Return the family module's name of a registry or function name."""
    return _table()[get_spec(name).name][0]


def functions() -> dict[str, str]:
    """Return public function name -> family, for every registered network."""
    return {spec.function: family for family, spec in _table().values()}
