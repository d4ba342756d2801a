"""MegEngine's names for what torch computes, so that its networks' files run.

MegEngine has no wheel for current Pythons. Only what megvii-model/WeightNet calls is
here; tensors are torch's.
"""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _functional() -> types.ModuleType:
    import torch
    from torch.nn import functional

    def conv2d(
        x: Any, weight: Any, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Any:
        """Convolve; grouped kernels are (groups, out / groups, in / groups, h, w)."""
        if weight.ndim == 5:
            weight = weight.reshape(-1, *weight.shape[2:])
        return functional.conv2d(x, weight, None, stride, padding, groups=groups)

    module = types.ModuleType("megengine.functional")
    found = {"conv2d": conv2d, "relu": torch.relu, "concat": torch.cat}
    module.__dict__.update(found)
    return module


def _modules() -> types.ModuleType:
    from torch import nn

    module = types.ModuleType("megengine.module")
    names: tuple[str, ...] = (
        "Module",
        "Conv2d",
        "BatchNorm2d",
        "BatchNorm1d",
        "ReLU",
        "Sigmoid",
    )
    names += ("Sequential", "MaxPool2d", "AvgPool2d", "Linear", "Dropout")
    module.__dict__.update({name: getattr(nn, name) for name in names})
    nothing = types.SimpleNamespace(normal_=lambda *_: None, fill_=lambda *_: None)
    module.__dict__["init"] = nothing
    return module


@contextmanager
def installed() -> Iterator[None]:
    """Let `import megengine` find these names.

    `dimshuffle` is torch's `permute` and stays with its tensors, since networks call
    it when they run.
    """
    import torch

    torch.Tensor.dimshuffle = torch.Tensor.permute
    root = types.ModuleType("megengine")
    hub = types.ModuleType("megengine.hub")
    hub.__dict__["pretrained"] = lambda _: lambda function: function
    parts = {"functional": _functional(), "module": _modules(), "hub": hub}
    root.__dict__.update(parts)
    added = {"megengine": root} | {f"megengine.{k}": v for k, v in parts.items()}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)
