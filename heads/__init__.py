"""Detection and segmentation heads: tensors in, tensors out.

`HEADS` is the table of all heads by name, `DETECTORS` and `SEGMENTERS` those of
published networks.
Names resolve on first use, so that importing this package (for `anchors` or
`matching`, which are plain numpy) does not load keras.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_lightnets.heads._table import HEADS as HEADS
    from keras_lightnets.heads._table import Head as Head
    from keras_lightnets.heads._table import attach as attach
    from keras_lightnets.heads._table import for_task as for_task
    from keras_lightnets.heads._table import pick_endpoints as pick_endpoints
    from keras_lightnets.heads.detectors import DETECTORS as DETECTORS
    from keras_lightnets.heads.detectors import create_detector as create_detector
    from keras_lightnets.heads.segmenters import SEGMENTERS as SEGMENTERS
    from keras_lightnets.heads.segmenters import create_segmenter as create_segmenter
    from keras_lightnets.heads.segmenters import find_segmenter as find_segmenter

_MODULES = {
    "DETECTORS": "detectors",
    "HEADS": "_table",
    "Head": "_table",
    "SEGMENTERS": "segmenters",
    "attach": "_table",
    "create_detector": "detectors",
    "create_segmenter": "segmenters",
    "find_segmenter": "segmenters",
    "for_task": "_table",
    "pick_endpoints": "_table",
}

__all__ = [
    "DETECTORS",
    "HEADS",
    "Head",
    "SEGMENTERS",
    "attach",
    "create_detector",
    "create_segmenter",
    "find_segmenter",
    "for_task",
    "pick_endpoints",
]


def __getattr__(name: str) -> Any:
    """Import the module that defines a name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'keras_lightnets.heads' has no {name!r}")
    module = importlib.import_module(f"keras_lightnets.heads.{_MODULES[name]}")
    return getattr(module, name)
