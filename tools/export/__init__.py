"""Files for devices, and the proof that they work.

`export(model, format, path, ...)` writes any row of `FORMATS` and compares the file
with the model; names resolve on first use.
"""

import importlib
from typing import Any

_PLACES = {
    "Artifact": "artifact",
    "Detector": "artifact",
    "ExportError": "artifact",
    "FORMATS": "formats",
    "export": "formats",
    "Postprocess": "postprocess",
    "verdict": "edgetpu",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import the module that holds a name on first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PLACES[name]}")
    return getattr(module, name)
