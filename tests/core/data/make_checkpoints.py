"""Writes the checkpoints beside this file; needs torch, which the tests do not.

Run it as `python tests/core/data/make_checkpoints.py`; the files in the
repository came from torch 2.13.
"""

import argparse
import collections
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


def tensors() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(7)
    base = torch.randn(4, 3, 2, 2, generator=rng)
    flat = torch.arange(24, dtype=torch.float32)
    running = torch.nn.BatchNorm2d(4)
    running.running_mean.normal_(generator=rng)
    return {
        "conv.weight": torch.nn.Parameter(base),
        "conv.half": base[:2].half(),
        "conv.brain": base[1].bfloat16(),
        "view.offset": flat[5:17],
        "view.shared": flat[10:16],
        "view.turned": flat.reshape(4, 6).t(),
        "view.stepped": flat[1::3],
        "view.repeated": torch.ones(1, 3).expand(5, 3),
        "bn.running_mean": running.running_mean,
        "bn.num_batches_tracked": running.num_batches_tracked,
        "int.bytes": torch.arange(5, dtype=torch.uint8),
        "int.small": torch.arange(-2, 3, dtype=torch.int16),
        "flag": torch.tensor([True, False]),
        "double": torch.linspace(0, 1, 3, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }


def main() -> None:
    state = collections.OrderedDict((f"module.{k}", v) for k, v in tensors().items())
    state._metadata = {"": {"version": 1}}
    checkpoint = {
        "epoch": 3,
        "arch": "tiny",
        "best": np.float64(71.5),
        "args": argparse.Namespace(lr=0.1),
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }
    torch.save(checkpoint, HERE / "zip.pth")
    torch.save(checkpoint, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    expected = {k: v.detach().float().numpy() for k, v in tensors().items()}
    np.savez_compressed(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main()
