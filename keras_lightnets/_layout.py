"""How a publisher names and lays out the tensors of a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A publisher's tensor names for the layers of a family.

    Attributes:
        names: Maps a spec to {layer name here: prefix of the publisher's keys}
            for every layer that has weights, the classifier included.
        kind: "torch" (OIHW kernels; `.weight`, `.bias`, `.running_mean`,
            `.running_var`) or "keras" (HWIO kernels, HDF5 by layer name).
        top: Layer names that exist only with `include_top=True`.
    """

    names: Callable[[Any], dict[str, str]]
    kind: str = "torch"
    top: tuple[str, ...] = ("top_classifier",)
