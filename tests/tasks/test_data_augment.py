"""Boxes stay where the pixels go, and a seed decides everything."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_lightnets.tasks.data import augment
from keras_lightnets.tasks.data.augment import PRESETS, Augment, Op, Preset


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Return a dark picture with two bright boxes of different brightness."""
    image = np.full((90, 120, 3), 10, np.uint8)
    boxes = np.array([[20, 10, 60, 40], [70, 50, 110, 85]], np.float32)
    for value, (x1, y1, x2, y2) in zip((130, 250), boxes.astype(int), strict=True):
        image[y1:y2, x1:x2] = value
    return image, boxes


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("name", PRESETS)
def test_boxes_stay_on_their_pixels(name, fit):
    image, boxes = scene()
    change = Augment(Preset(PRESETS[name].geometry), (128, 160), fit)
    seen = 0
    for seed in range(40):
        changed, moved, kept = change(image, boxes, seed)
        assert changed.shape == (128, 160, 3) and changed.dtype == np.uint8
        assert moved.dtype == np.float32 and len(moved) == len(kept)
        for box, row in zip(moved, kept, strict=True):
            bright = changed[..., 0] > 190 if row == 1 else changed[..., 0] > 122
            bright &= (changed[..., 0] < 140) if row == 0 else True
            x, y = np.flatnonzero(bright.any(0)), np.flatnonzero(bright.any(1))
            if row == 0:  # the other box's soft edges have this brightness too
                inside = bright[int(box[1]) + 3 : int(box[3]) - 2]
                inside = inside[:, int(box[0]) + 3 : int(box[2]) - 2]
                assert inside.mean() > 0.95 if inside.size else True
            else:
                found = [x[0], y[0], x[-1] + 1, y[-1] + 1]
                assert np.abs(box - found).max() <= 2.5
            seen += 1
    assert seen >= 60


@pytest.mark.parametrize("name", PRESETS)
def test_same_seed_same_result_in_any_thread(name):
    image, boxes = scene()
    first = Augment(name, (64, 64))
    wanted = [first(image, boxes, seed) for seed in range(12)]
    other = Augment(name, (64, 64))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: other(image, boxes, s), reversed(range(12))))
    for a, b in zip(wanted, reversed(found), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    different = {a[0].tobytes() for a in wanted}
    assert len(different) == (1 if name == "none" else len(different)) >= 1
    assert name == "none" or len(different) >= 4


def test_transforms_draw_independently():
    both = Preset((Op("HorizontalFlip", {"p": 0.5}), Op("VerticalFlip", {"p": 0.5})))
    change = Augment(both, (90, 120))
    image, boxes = scene()
    places = {tuple(change(image, boxes, s)[1][0].tolist()) for s in range(40)}
    assert len(places) == 4


@pytest.mark.parametrize("name", PRESETS)
def test_images_without_boxes(name):
    image, _ = scene()
    changed, boxes, kept = Augment(name, (48, 64))(image, np.zeros((0, 4)), 3)
    assert changed.shape == (48, 64, 3)
    assert boxes.shape == (0, 4) and kept.shape == (0,)


@pytest.mark.parametrize("name", ["Affine", "Perspective", "Transpose", "RandomScale"])
def test_any_albumentations_transform_can_stand_in_a_preset(name):
    image, boxes = scene()
    change = Augment(Preset((Op(name, {"p": 1.0}),)), (90, 90))
    seen = 0
    for seed in range(10):
        changed, moved, kept = change(image, boxes, seed)
        assert changed.shape == (90, 90, 3)
        assert (moved >= 0).all() and (moved <= 90).all()
        assert len(change(image, boxes[:0], seed)[1]) == 0
        for x1, y1, x2, y2 in np.rint(moved[kept == 1]).astype(int):
            assert np.median(changed[y1:y2, x1:x2]) > 200
            seen += 1
    assert seen >= 7


def test_no_degenerate_box_survives():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
    starts = rng.uniform(0, 0.9, (60, 2)) * (160, 120)
    boxes = np.concatenate([starts, starts + rng.uniform(0.5, 30, (60, 2))], 1)
    boxes = np.clip(boxes, 0, [160, 120, 160, 120]).astype(np.float32)
    change = Augment("ssd", (96, 96))
    dropped = 0
    for seed in range(30):
        _, moved, kept = change(image, boxes, seed)
        assert (moved[:, 2:] - moved[:, :2] >= augment.LEAST_SIDE).all()
        assert (moved >= 0).all() and (moved <= 96).all()
        assert len(set(kept.tolist())) == len(kept)
        dropped += len(boxes) - len(moved)
    assert dropped > 0


def test_a_box_mostly_cut_off_is_dropped():
    crop = Op("Crop", {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 40})
    boxes = np.array([[0, 0, 30, 30], [36, 0, 60, 30], [30, 0, 50, 30]], np.float32)
    image = np.zeros((80, 80, 3), np.uint8)
    _, moved, kept = Augment(Preset((crop,)), (80, 80))(image, boxes, 0)
    assert kept.tolist() == [0, 2]
    assert moved.tolist() == [[0, 0, 60, 60], [60, 0, 80, 60]]


def test_input_is_left_alone():
    image, boxes = scene()
    pixels, corners = image.copy(), boxes.copy()
    image.flags.writeable = False
    for name in PRESETS:
        for seed in range(8):
            Augment(name, (90, 120))(image, boxes, seed)
    assert np.array_equal(image, pixels) and np.array_equal(boxes, corners)


def test_crop_windows_fulfil_the_paper():
    boxes = np.array([[20, 10, 60, 40], [70, 50, 110, 85]], np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    windows = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        window = augment.iou_window((90, 120), boxes, rng)
        x1, y1, x2, y2 = window
        assert 0 <= x1 < x2 <= 120 and 0 <= y1 < y2 <= 90
        inside = ((centres >= [x1, y1]) & (centres < [x2, y2])).all(1)
        assert inside.any()
        assert 0.45 < (x2 - x1) / (y2 - y1) * 90 / 120 < 2.2
        windows.add(window)
    assert len(windows) > 100
    none = np.zeros((0, 4), np.float32)
    rng = np.random.default_rng(0)
    assert augment.iou_window((90, 120), none, rng) == (0, 0, 120, 90)


def test_unknown_words_are_answered():
    with pytest.raises(ValueError, match="Did you mean 'light'"):
        Augment("ligth", (32, 32))
    with pytest.raises(ValueError, match="Legal: stretch, letterbox"):
        Augment("none", (32, 32), "crop")
    image, boxes = scene()
    with pytest.raises(ValueError, match="Did you mean 'HorizontalFlip'"):
        Augment(Preset((Op("HorizontalFlop"),)), (32, 32))(image, boxes, 0)
