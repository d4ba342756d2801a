"""Make the stored reference outputs of the segmenter tests.

Needs torch and torchvision (their compiled operators are not used)::

    python tools/convert/make_segmenter_parity.py tests/parity

writes `segmenters_torchvision.npz`: raw outputs and parameter counts of torchvision's
LR-ASPP and DeepLabv3 on MobileNetV3-Large with seeded weights.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

try:
    from keras_lightnets.tools.convert import make_ssdlite_parity as shared
except ImportError:  # beside torch this package need not be installed
    import make_ssdlite_parity as shared  # type: ignore[no-redef]

NAMES = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
# The second size does not double from map to map: 5 x 7 and 9 x 13 cells.
SIZES = ((96, 128), (72, 104))
STORED_CLASSES = 7  # of 21: the files stay small


def seeded_image(size: tuple[int, int]) -> Any:
    """Return the test image of a size, uint8, shape (height, width, 3)."""
    height, width = size
    return shared.seeded_image()[:height, :width]


def main(folder: Path) -> None:
    """Write the file.

    Args:
        folder: Where it goes.
    """
    shared.declare_operators()
    arrays: dict[str, Any] = {}
    for name in NAMES:
        network = _network(name)
        arrays[f"{name}_parameters"] = _count(network)
        for size in SIZES:
            logits = _logits(network, seeded_image(size))
            arrays[f"{name}_{size[0]}x{size[1]}"] = logits[..., :STORED_CLASSES]
            arrays[f"{name}_{size[0]}x{size[1]}_mean"] = logits.mean((0, 1))
    np.savez_compressed(folder / "segmenters_torchvision.npz", **arrays)


def _network(name: str) -> Any:
    import torch
    from torchvision.models import segmentation

    network = getattr(segmentation, name)(weights=None, weights_backbone=None)
    state = {
        key: torch.from_numpy(shared.seeded_tensor(key, tuple(value.shape)))
        for key, value in network.state_dict().items()
        if value.ndim
    }
    counters = {k: v for k, v in network.state_dict().items() if not v.ndim}
    network.load_state_dict({**state, **counters})
    return network.eval()


def _count(network: Any) -> int:
    return sum(p.numel() for p in network.parameters())


def _logits(network: Any, image: Any) -> Any:
    """Return raw outputs, (rows, columns, classes), not resized to the image."""
    import torch

    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255.0
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        features = network.backbone(((pixels - mean) / std)[None])
        # LR-ASPP's head takes both maps, DeepLab's the last.
        logits = network.classifier(features.get("out", features))
    return logits[0].permute(1, 2, 0).numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/parity"))
