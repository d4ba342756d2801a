"""Make the stored reference outputs of the SSDLite tests.

Needs torch and torchvision (their compiled operators are not used)::

    python tools/convert/make_ssdlite_parity.py tests/parity

writes `ssdlite_torchvision.npz` (the detector with seeded weights: raw outputs,
default boxes, decoded boxes, detections, assignment and losses) and
`ssdlite_nms.npz` (suppression of random boxes, ties included).
"""

import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SIZE = 320
CLASSES = 90
ROW_STEP = 41  # stored rows of the raw outputs; odd, so it visits all box shapes
STORED_DETECTIONS = 60


def seeded_tensor(key: str, shape: tuple[int, ...]) -> Array:
    """Return the seeded value of one tensor of a PyTorch state dict.

    Args:
        key: Full key, such as "backbone.extra.0.0.1.running_var".
        shape: Shape in PyTorch's layout.

    Returns:
        float32 array that depends on the key and the shape only; scales and
        variances are within 0.5 to 1.5.
    """
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if len(shape) == 4:
        value = rng.normal(0.0, np.sqrt(_GAIN / np.prod(shape[1:])), shape)
    elif key.endswith(("running_var", "weight")):
        value = rng.uniform(0.5, 1.5, shape)
    else:
        value = rng.normal(0.0, 0.1, shape)
    return value.astype("float32")


def seeded_image() -> Array:
    """Return the test image, uint8, shape (SIZE, SIZE, 3)."""
    rng = np.random.default_rng(320)
    coarse = rng.integers(0, 256, (SIZE // 16, SIZE // 16, 3))
    fine = rng.integers(-40, 41, (SIZE, SIZE, 3))
    image = np.kron(coarse, np.ones((16, 16, 1), "int64")) + fine
    return np.clip(image, 0, 255).astype("uint8")


def seeded_objects() -> tuple[Array, Array]:
    """Return the test image's boxes (x1, y1, x2, y2 as shares) and labels from 0."""
    rng = np.random.default_rng(11)
    centre = rng.uniform(0.15, 0.85, (12, 2))
    size = rng.uniform(0.05, 0.6, (12, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    boxes[1] = boxes[0] + 0.01  # two objects with one favourite anchor
    labels = rng.integers(0, CLASSES, 12)
    return np.clip(boxes, 0.0, 1.0).astype("float32"), labels.astype("int32")


def seeded_candidates(case: int) -> tuple[Array, Array, float]:
    """Return boxes (M, 4), scores (M,) and threshold of one suppression test."""
    rng = np.random.default_rng(case)
    centre = rng.uniform(0.2, 0.8, (120, 2))
    size = rng.uniform(0.1, 0.5, (120, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    scores = rng.uniform(0.05, 1.0, 120)
    if case % 2:  # ties: few distinct scores, repeated boxes
        scores = np.round(scores, 1) + 0.05
        boxes[60:] = boxes[:60]
    threshold = (0.3, 0.45, 0.55, 0.7)[case % 4]
    return boxes.astype("float32"), scores.astype("float32"), threshold


NMS_CASES = 8

# Feature maps and outputs of this network get a deviation of about 1; with 2.0 they
# reach thousands, and float32 alone makes an error of 1e-2.
_GAIN = 1.6

# Definitions of operators end with the life of their library.
_LIBRARIES: list[Any] = []


def main(folder: Path) -> None:
    """Write both files.

    Args:
        folder: Where they go.
    """
    declare_operators()
    detector = _detector()
    _store(folder / "ssdlite_torchvision.npz", _reference(detector))
    _store(folder / "ssdlite_nms.npz", _suppressed())


def _store(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def declare_operators() -> None:
    """Let torchvision import without its compiled operators; define NMS in Python."""
    import importlib.util
    import re

    import torch

    library = torch.library.Library("torchvision", "DEF")
    origin = importlib.util.find_spec("torchvision")
    if origin is None or origin.origin is None:
        raise ImportError("This script needs torchvision: pip install torchvision")
    source = (Path(origin.origin).parent / "_meta_registrations.py").read_text()
    names = set(re.findall(r'register_meta\("(\w+)"', source))
    names |= set(re.findall(r'"torchvision::(\w+)"', source))
    for name in sorted(names - {"nms"}):
        library.define(f"{name}(Tensor x) -> Tensor")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _greedy_nms, "CPU")
    _LIBRARIES.append(library)
    import torchvision

    # Python's "nms" stands in for the compiled one.
    torchvision.extension._has_ops = lambda: True


def _greedy_nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Suppress by definition, as torchvision's CPU kernel does (stable order)."""
    import torch
    from torchvision.ops import box_iou

    order = scores.sort(descending=True, stable=True)[1]
    overlap = box_iou(boxes, boxes) > iou_threshold
    kept: list[int] = []
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for index in order.tolist():
        if not gone[index]:
            kept.append(index)
            gone |= overlap[index]
    return torch.tensor(kept, dtype=torch.int64)


def _detector() -> Any:
    import torch
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    state = {
        key: torch.from_numpy(seeded_tensor(key, tuple(value.shape)))
        for key, value in detector.state_dict().items()
        if value.ndim
    }
    counters = {k: v for k, v in detector.state_dict().items() if not v.ndim}
    detector.load_state_dict({**state, **counters})
    return detector.eval()


def _reference(detector: Any) -> Mapping[str, Array]:
    import torch
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import box_iou

    image = torch.from_numpy(seeded_image()).permute(2, 0, 1).float() / 255.0
    boxes, labels = seeded_objects()
    target = {
        "boxes": torch.from_numpy(boxes) * SIZE,
        "labels": torch.from_numpy(labels).long() + 1,
    }
    with torch.no_grad():
        batch = ((image - 0.5) / 0.5)[None]
        features = list(detector.backbone(batch).values())
        raw = detector.head(features)
        anchors = detector.anchor_generator(ImageList(batch, [(SIZE, SIZE)]), features)[
            0
        ]
        decoded = detector.box_coder.decode_single(raw["bbox_regression"][0], anchors)
        matched = detector.proposal_matcher(box_iou(target["boxes"], anchors))
        losses = detector.compute_loss([target], raw, [anchors], [matched])
        found = detector([image])[0]
    rows = slice(None, None, ROW_STEP)
    logits = raw["cls_logits"][0].numpy()
    encodings = raw["bbox_regression"][0].numpy()
    top = slice(STORED_DETECTIONS)
    return {
        "parameters": np.asarray(sum(p.numel() for p in detector.parameters())),
        "logits": logits[rows],
        "encodings": encodings[rows],
        "logits_mean": logits.mean(axis=0, dtype="float64"),
        "encodings_mean": encodings.mean(axis=0, dtype="float64"),
        "anchors_px": anchors.numpy()[rows],
        "anchors_mean_px": anchors.numpy().mean(axis=0, dtype="float64"),
        "decoded_px": decoded.numpy()[rows],
        "matched": matched.numpy().astype("int8"),
        "box_loss": losses["bbox_regression"].numpy(),
        "score_loss": losses["classification"].numpy(),
        "found_boxes_px": found["boxes"].numpy()[top],
        "found_scores": found["scores"].numpy()[top],
        "found_labels": found["labels"].numpy()[top].astype("int16"),
    }


def _suppressed() -> Mapping[str, Array]:
    import torch
    from torchvision.ops import nms

    kept = {}
    for case in range(NMS_CASES):
        boxes, scores, threshold = seeded_candidates(case)
        order = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
        kept[f"case{case}"] = order.numpy().astype("int16")
    return kept


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/parity"))
