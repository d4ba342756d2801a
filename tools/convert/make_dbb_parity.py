"""Makes tests/parity/dbb_training.npz: a diverse branch block while it trains.

Run it with torch installed; keras is not needed. LIGHTNETS_DBB is a checkout of
DingXiaoH/DiverseBranchBlock::

    python tools/convert/make_dbb_parity.py

Inputs, weights, outputs, gradients of the input, and statistics after one step are
stored as they are: the maps are small.
"""

import importlib
import os
import pathlib
import sys
from typing import Any

import numpy as np

PATH = pathlib.Path(__file__).resolve().parents[2] / "tests/parity/dbb_training.npz"
# Input channels, output channels, kernel, stride, groups.
CASES = ((4, 6, 3, 1, 1), (4, 4, 5, 2, 1), (4, 4, 3, 1, 4))
SIZE = (7, 5)


def train(block: Any, channels: int, number: int) -> dict[str, np.ndarray]:
    """Run one step of a block with random weights.

    Args:
        block: The authors' block.
        channels: Of its input.
        number: Seed, and first part of the keys.

    Returns:
        {"NUMBER/KEY": array}; of the state, "before" and "after" the step.
    """
    import torch

    random = np.random.default_rng(number)
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for key, tensor in block.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            low = 0.5 if key.endswith("running_var") or tensor.ndim == 1 else -1.0
            value = random.uniform(low, low + 1.0, tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(value))
            found[f"{number}/before/{key}"] = tensor.numpy().copy()
    x = random.normal(0.3, 1.0, (2, *SIZE, channels)).astype("float32")
    given = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    out = block.train()(given)
    factors = random.normal(size=tuple(out.shape)).astype("float32")
    (out * torch.from_numpy(factors)).sum().backward()
    for key, tensor in block.state_dict().items():
        if ".running_" in key:
            found[f"{number}/after/{key}"] = tensor.numpy().copy()
    maps = {"x": given, "out": out, "grad": given.grad}
    for key, tensor in maps.items():
        found[f"{number}/{key}"] = tensor.detach().numpy().transpose(0, 2, 3, 1)
    found[f"{number}/factors"] = factors.transpose(0, 2, 3, 1)
    return found


def main() -> int:
    """Write the file.

    Returns:
        The process's exit status.
    """
    sys.path.insert(0, os.environ["LIGHTNETS_DBB"])
    block = importlib.import_module("diversebranchblock").DiverseBranchBlock
    found: dict[str, np.ndarray] = {}
    for i, (channels, filters, kernel, stride, groups) in enumerate(CASES):
        made = block(channels, filters, kernel, stride, kernel // 2, groups=groups)
        found |= train(made, channels, i)
    found["cases"] = np.asarray(CASES)
    np.savez_compressed(PATH, **found)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
