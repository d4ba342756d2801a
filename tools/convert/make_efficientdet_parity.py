"""Make the stored reference outputs of the EfficientDet tests.

Needs torch, torchvision (its compiled operators are not used) and effdet 0.4.1::

    python tools/convert/make_efficientdet_parity.py tests/parity

writes `efficientdet_raw.npz` (raw outputs, parameter counts and default boxes of all
variants with seeded weights) and `efficientdet_task.npz` (D0: assignment, losses,
detections; soft suppression of random boxes).
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from keras_lightnets.tools.convert import make_ssdlite_parity as shared
except ImportError:  # beside torch this package need not be installed
    import make_ssdlite_parity as shared  # type: ignore[no-redef]

Array = npt.NDArray[Any]

# Input side: a multiple of the coarsest stride, but for lite0, whose published 320 is
# none either: 5 cells lie over 3.
SIZES = {
    **dict.fromkeys(("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7"), 128),
    "d7x": 256,
    "lite0": 160,
    **dict.fromkeys(("lite1", "lite2", "lite3", "lite3x", "lite4"), 128),
}
# With larger kernels float32 alone makes an error of 5e-4 in these deep networks,
# measured against float64; with these 2e-6.
KERNEL_SCALE = 0.79
ROWS = 23  # stored of all default boxes
CLASS_STEP = 9  # stored columns of the scores
TASK_VARIANT = "d0"
STORED_DETECTIONS = 50
SOFT_CASES = 4


def seeded_tensor(key: str, shape: tuple[int, ...]) -> Array:
    """Return the seeded value of one tensor of effdet's state dict.

    Args:
        key: Full key.
        shape: Shape in PyTorch's layout.

    Returns:
        float32 array that depends on the key and the shape only.
    """
    if key.endswith("edge_weights"):
        key = f"{key}.weight"  # positive, as they are after training
    scale = KERNEL_SCALE if len(shape) == 4 else 1.0
    return shared.seeded_tensor(key, shape) * np.float32(scale)


def seeded_image(size: int) -> Array:
    """Return the test image, float32, normalised, shape (size, size, 3)."""
    image = shared.seeded_image()[:size, :size]
    return (image.astype("float32") - 127.0) / 128.0


def summary(rows: Array) -> Array:
    """Return some rows of a table and, as the last one, their mean over all rows."""
    chosen = rows[np.linspace(0, len(rows) - 1, ROWS).astype("int64")]
    mean = rows.mean(0, dtype="float64", keepdims=True)
    return np.concatenate([chosen, mean]).astype("float32")


def main(folder: Path) -> None:
    """Write both files.

    Args:
        folder: Where they go.
    """
    os.environ["PYTORCH_JIT"] = "0"  # the stand-in for a compiled operator is Python
    shared.declare_operators()
    arrays: dict[str, Any] = {}
    for name in SIZES:
        for key, value in _raw(name).items():
            arrays[f"{name}_{key}"] = value
    _store(folder / "efficientdet_raw.npz", arrays)
    _store(folder / "efficientdet_task.npz", {**_task(), **_softly_suppressed()})


def _store(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def _network(name: str) -> Any:
    import effdet
    import torch

    config = effdet.get_efficientdet_config(f"tf_efficientdet_{name}")
    published = tuple(config.image_size)
    config.image_size = (SIZES[name],) * 2
    network = effdet.EfficientDet(config, pretrained_backbone=False)
    state = {
        key: torch.from_numpy(seeded_tensor(key, tuple(value.shape)))
        for key, value in network.state_dict().items()
        if value.ndim
    }
    counters = {k: v for k, v in network.state_dict().items() if not v.ndim}
    network.load_state_dict({**state, **counters})
    return network.eval(), published


def _outputs(network: Any, size: int) -> tuple[list[Any], list[Any]]:
    import torch

    pixels = torch.from_numpy(seeded_image(size)).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores, boxes = network(pixels)
    return scores, boxes


def _rows(maps: list[Any], columns: int) -> Array:
    """Return one row per default box."""
    flat = [x[0].permute(1, 2, 0).reshape(-1, columns) for x in maps]
    return np.concatenate([x.numpy() for x in flat])


def _raw(name: str) -> Mapping[str, Array]:
    from effdet.anchors import Anchors

    network, published = _network(name)
    scores, boxes = _outputs(network, SIZES[name])
    logits, encodings = _rows(scores, 90), _rows(boxes, 4)
    config = {**network.config, "image_size": published}
    anchors = Anchors.from_config(SimpleNamespace(**config)).boxes.numpy()
    return {
        # Parameters, default boxes, largest logit and encoding.
        "facts": np.asarray(
            [
                sum(p.numel() for p in network.parameters()),
                len(anchors),
                np.abs(logits).max(),
                np.abs(encodings).max(),
            ]
        ),
        "logits": summary(logits)[:, ::CLASS_STEP],
        "encodings": summary(encodings),
        "anchors_px": summary(anchors),
    }


def _task() -> Mapping[str, Array]:
    import torch
    from effdet import bench
    from effdet.anchors import AnchorLabeler, Anchors, generate_detections
    from effdet.loss import DetectionLoss

    size = SIZES[TASK_VARIANT]
    network, _ = _network(TASK_VARIANT)
    scores, boxes = _outputs(network, size)
    anchors = Anchors.from_config(network.config)
    objects, labels = shared.seeded_objects()
    order = [1, 0, 3, 2]
    targets = AnchorLabeler(anchors, 90).batch_label_anchors(
        [torch.from_numpy(objects[:, order]) * size],
        [torch.from_numpy(labels).long() + 1],
    )
    _, score_loss, box_loss = DetectionLoss(network.config)(scores, boxes, *targets)
    chosen = bench._post_process(scores, boxes, network.config.num_levels, 90)
    found = generate_detections(
        chosen[0][0],
        chosen[1][0],
        anchors.boxes,
        chosen[2][0],
        chosen[3][0],
        torch.tensor(1.0),
        torch.tensor([float(size), float(size)]),
    ).numpy()[:STORED_DETECTIONS]
    assigned = torch.cat([part[0].reshape(-1) for part in targets[0]])
    return {
        "assigned": (assigned.numpy() + 1).astype("int8"),
        "positives": targets[2].numpy(),
        "score_loss": score_loss.numpy(),
        "box_loss": box_loss.numpy(),
        "found_boxes_px": found[:, :4],
        "found_scores": found[:, 4],
        "found_labels": found[:, 5].astype("int16"),
    }


def _softly_suppressed() -> Mapping[str, Array]:
    import torch
    from effdet.soft_nms import soft_nms

    kept = {}
    for case in range(SOFT_CASES):
        boxes, scores, _ = shared.seeded_candidates(2 * case)
        index, values = soft_nms(
            torch.from_numpy(boxes), torch.from_numpy(scores), score_threshold=0.05
        )
        kept[f"soft{case}_index"] = index.numpy().astype("int16")
        kept[f"soft{case}_scores"] = values.numpy()
    return kept


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/parity"))
