"""Detection and segmentation heads: tensors in, tensors out.

`HEADS` is the table of all heads by name, `DETECTORS` that of published detectors.
Names resolve on first use, so that importing this package (for `anchors` or
`matching`, which are plain numpy) does not load keras.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_lightnets.heads._table import HEADS as HEADS
    from keras_lightnets.heads._table import Head as Head
    from keras_lightnets.heads._table import attach as attach
    from keras_lightnets.heads._table import pick_endpoints as pick_endpoints
    from keras_lightnets.heads.detectors import DETECTORS as DETECTORS
    from keras_lightnets.heads.detectors import create_detector as create_detector

_MODULES = {
    "DETECTORS": "detectors",
    "HEADS": "_table",
    "Head": "_table",
    "attach": "_table",
    "create_detector": "detectors",
    "pick_endpoints": "_table",
}

__all__ = [
    "DETECTORS",
    "HEADS",
    "Head",
    "attach",
    "create_detector",
    "pick_endpoints",
]


def __getattr__(name: str) -> Any:
    """Import the module that defines a name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'keras_lightnets.heads' has no {name!r}")
    module = importlib.import_module(f"keras_lightnets.heads.{_MODULES[name]}")
    return getattr(module, name)
