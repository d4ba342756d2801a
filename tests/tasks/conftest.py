"""A tiny COCO data set and the options that train on it in seconds."""

import json

import cv2
import numpy as np
import pytest

CLASSES = {3: "blue", 7: "red"}
SIDE = 96


def draw_set(folder, name, count, seed):
    """Draw pictures with two coloured rectangles each and write their JSON."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir()
    images, annotations = [], []
    for index in range(count):
        picture = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for _ in range(2):
            width, height = (int(v) for v in rng.integers(24, 48, 2))
            x, y = int(rng.integers(0, SIDE - width)), int(rng.integers(SIDE - height))
            key = list(CLASSES)[int(rng.integers(2))]
            colour = (60, 60, 220) if CLASSES[key] == "blue" else (220, 60, 60)
            picture[y : y + height, x : x + width] = colour
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": key,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        file = f"{name}{index}.png"
        cv2.imwrite(str(folder / name / file), picture[:, :, ::-1])
        size = {"width": SIDE, "height": SIDE}
        images.append({"id": index + 1, "file_name": file, **size})
    categories = [{"id": key, "name": text} for key, text in CLASSES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def boxes_set(tmp_path_factory):
    """Return a folder with train/, val/ and their JSON files: 8 and 4 pictures."""
    folder = tmp_path_factory.mktemp("boxes")
    draw_set(folder, "train", 8, seed=0)
    draw_set(folder, "val", 4, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_options(boxes_set):
    """Return options of a detector small enough for tests."""
    return {
        "data": str(boxes_set / "train"),
        "annotations": str(boxes_set / "train.json"),
        "val_data": str(boxes_set / "val"),
        "val_annotations": str(boxes_set / "val.json"),
        "backbone": "vgg_cifar_11",
        "backbone_options": {"width": 0.1},
        "head_options": {"width": 0.1, "extra_widths": [64]},
        "weights": None,
        "image_size": 64,
        "batch_size": 4,
        "epochs": 3,
        "freeze": "c1",
        "cache_mb": 0,
    }
