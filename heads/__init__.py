"""Detection and segmentation heads: tensors in, tensors out.

`HEADS` is the table of all heads by name. It resolves on first use, so that
importing this package (for `anchors` or `matching`, which are plain numpy) does
not load keras.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_lightnets.heads._table import HEADS as HEADS
    from keras_lightnets.heads._table import Head as Head
    from keras_lightnets.heads._table import attach as attach
    from keras_lightnets.heads._table import pick_endpoints as pick_endpoints

__all__ = ["HEADS", "Head", "attach", "pick_endpoints"]


def __getattr__(name: str) -> Any:
    """Load the table on first use."""
    if name not in __all__:
        raise AttributeError(
            f"module 'keras_lightnets.heads' has no attribute {name!r}"
        )
    from keras_lightnets.heads import _table

    return getattr(_table, name)
