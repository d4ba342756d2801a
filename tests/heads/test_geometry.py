"""Boxes, default boxes and assignment: numpy only."""

import subprocess
import sys

import numpy as np
import pytest

from keras_lightnets.heads import boxes as box_ops
from keras_lightnets.heads.anchors import (
    AnchorConfig,
    anchors_per_cell,
    feature_sizes,
    ssd_anchors,
)
from keras_lightnets.heads.matching import MatchConfig, match

ANCHORS = ssd_anchors(AnchorConfig(), (256, 256))


def random_boxes(count, seed, least=0.05, most=0.6):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.1, 0.9, (count, 2))
    size = rng.uniform(least, most, (count, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], 1).astype("float32")


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_numpy_parts_do_not_load_keras():
    code = (
        "import sys; from keras_lightnets.heads import anchors, boxes, matching;"
        "a = anchors.ssd_anchors(anchors.AnchorConfig(), (96, 96));"
        "matching.match(boxes.to_corners(a[:3]), [0, 1, 2], a);"
        "sys.exit('keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_corners_and_centres_are_inverse():
    boxes = random_boxes(50, 0)
    np.testing.assert_allclose(
        box_ops.to_corners(box_ops.to_centres(boxes)), boxes, atol=1e-6
    )


def test_iou_by_definition_and_symmetric():
    first, second = random_boxes(20, 1), random_boxes(30, 2)
    values = box_ops.iou(first, second)
    expected = [[slow_iou(a, b) for b in second] for a in first]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_array_equal(values, box_ops.iou(second, first).T)
    np.testing.assert_allclose(np.diag(box_ops.iou(first, first)), 1.0, atol=1e-5)
    assert values.max() > 0.2
    empty = np.zeros((1, 4), "float32")
    assert box_ops.iou(empty, empty) == 0.0


def test_giou_of_known_pairs():
    unit = np.array([0.0, 0.0, 1.0, 1.0], "float32")
    others = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1], [2, 0, 3, 1]], "float32")
    # Apart by one side: overlap 0, a third of the hull (3 x 1) is empty.
    np.testing.assert_allclose(
        box_ops.giou(np.tile(unit, (3, 1)), others), [1.0, 0.5, -1 / 3], atol=1e-6
    )


def test_encode_decode_round_trip():
    boxes = random_boxes(len(ANCHORS), 3)
    encodings = box_ops.encode(boxes, ANCHORS)
    np.testing.assert_allclose(box_ops.decode(encodings, ANCHORS), boxes, atol=1e-5)
    same = box_ops.encode(box_ops.to_corners(ANCHORS), ANCHORS)
    np.testing.assert_allclose(same, 0.0, atol=1e-4)


def test_encode_uses_the_weights():
    anchor = np.array([[0.5, 0.5, 0.2, 0.4]], "float32")
    box = np.array([[0.5, 0.4, 0.7, 0.8]], "float32")  # centre (0.6, 0.6), (0.2, 0.4)
    np.testing.assert_allclose(
        box_ops.encode(box, anchor), [[5.0, 2.5, 0.0, 0.0]], atol=1e-5
    )
    np.testing.assert_allclose(
        box_ops.encode(box, anchor, (1, 1, 1, 1)), [[0.5, 0.25, 0, 0]], atol=1e-6
    )


def test_decode_limits_the_size():
    huge = np.full((1, 4), 1e4, "float32")
    decoded = box_ops.decode(huge, np.array([[0.5, 0.5, 0.1, 0.1]], "float32"))
    width = decoded[0, 2] - decoded[0, 0]
    assert width == pytest.approx(6.25, rel=1e-3)
    inside = box_ops.clip(np.array([[-1.0, 0.2, 3.0, 0.9]], "float32"))
    np.testing.assert_allclose(inside, [[0.0, 0.2, 1.0, 0.9]])


@pytest.mark.parametrize(
    ("config", "size", "count"),
    [
        (AnchorConfig(), (320, 320), 3234),  # torchvision's detector
        (AnchorConfig(reduce_lowest=True), (300, 300), 1917),  # TensorFlow's
        (AnchorConfig(ratios=(2.0,), levels=3), (64, 96), 4 * (24 + 6 + 2)),
    ],
)
def test_number_of_default_boxes(config, size, count):
    anchors = ssd_anchors(config, size)
    assert anchors.shape == (count, 4)
    assert anchors.dtype == np.float32
    cells = [rows * cols for rows, cols in feature_sizes(config, size)]
    assert count == np.dot(cells, anchors_per_cell(config))
    assert len(np.unique(anchors, axis=0)) == count


def test_default_boxes_of_one_level():
    config = AnchorConfig(levels=1, scales=(0.25, 1.0), ratios=(4.0,))
    anchors = ssd_anchors(config, (16, 32))
    cell = [[0.25, 0.25], [0.5, 0.5], [0.5, 0.125], [0.125, 0.5]]
    np.testing.assert_allclose(anchors[:4, 2:], cell, atol=1e-7)
    np.testing.assert_allclose(anchors[::4, :2], [[0.25, 0.5], [0.75, 0.5]])


def test_default_boxes_are_row_major_and_clipped():
    anchors = ssd_anchors(AnchorConfig(), (64, 96))
    first = anchors[: 4 * 6 * 6].reshape(4, 6, 6, 4)
    assert (np.diff(first[..., 0], axis=1) > 0).all()  # cx grows along a row
    assert (np.diff(first[..., 1], axis=0) > 0).all()  # cy from row to row
    assert anchors[:, 2:].max() == 1.0
    loose = ssd_anchors(AnchorConfig(clip=False), (64, 96))
    assert loose[:, 2:].max() == pytest.approx(0.95 * 3**0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"levels": 0}, "levels >= 1"),
        ({"scales": (0.1, 0.2)}, "7"),
        ({"ratios": (0.0,)}, "must be positive"),
        ({"max_scale": 0.1}, "not be below min_scale"),
    ],
)
def test_anchor_config_refuses(options, text):
    with pytest.raises(ValueError, match=text):
        AnchorConfig(**options)


def slow_match(boxes, labels, anchors, threshold):
    """Assignment in loops: best object by threshold, then each one's best anchor."""
    corners = box_ops.to_corners(anchors)
    table = np.array([[slow_iou(b, a) for a in corners] for b in boxes])
    owner = np.where(table.max(0) >= threshold, table.argmax(0), -1)
    for index, row in enumerate(table):
        owner[row.argmax()] = index
    return np.where(owner >= 0, labels[owner] + 1, 0), owner


def test_match_by_definition():
    anchors = ssd_anchors(AnchorConfig(), (64, 64))
    boxes, labels = random_boxes(6, 5), np.array([0, 1, 2, 3, 4, 5])
    expected, owner = slow_match(boxes, labels, anchors, 0.5)
    encodings, assigned = match(boxes, labels, anchors)
    np.testing.assert_array_equal(assigned, expected)
    positive = assigned > 0
    decoded = box_ops.decode(encodings[positive], anchors[positive])
    np.testing.assert_allclose(decoded, boxes[owner[positive]], atol=1e-5)
    assert not encodings[~positive].any()
    assert encodings.dtype == np.float32
    assert assigned.dtype == np.int32


@pytest.mark.parametrize("seed", range(10))
def test_distinct_gives_every_object_an_anchor(seed):
    boxes = random_boxes(40, seed, 0.02, 0.4)
    boxes[20:] = boxes[:20] + 0.001  # pairs with the same favourite
    labels = np.arange(40)
    loose = match(boxes, labels, ANCHORS)[1]
    tight = match(boxes, labels, ANCHORS, config=MatchConfig(distinct=True))[1]
    assert set(tight[tight > 0]) == set(labels + 1)
    assert len(set(loose[loose > 0])) < 40


def test_more_objects_than_anchors():
    anchors = ssd_anchors(AnchorConfig(levels=1, ratios=()), (16, 16))
    boxes = random_boxes(5, 0)
    assigned = match(boxes, np.arange(5), anchors, config=MatchConfig(distinct=True))[1]
    assert (assigned > 0).all()


def test_ignore_band():
    boxes, labels = random_boxes(4, 7), np.zeros(4, int)
    overlap = box_ops.iou(boxes, box_ops.to_corners(ANCHORS)).max(0)
    config = MatchConfig(iou=0.6, ignore_iou=0.4)
    assigned = match(boxes, labels, ANCHORS, config=config)[1]
    band = (overlap >= 0.4) & (overlap < 0.6)
    assert set(assigned[band]) <= {-1, 1}
    assert (assigned[band] == -1).sum() >= band.sum() - 4  # favourites stay positive
    assert (assigned[overlap < 0.4] >= 0).all()
    assert band.sum() > 10


def test_crowds_are_ignored():
    crowd = np.array([[0.0, 0.0, 0.5, 1.0]], "float32")
    box = np.array([[0.6, 0.3, 0.9, 0.7]], "float32")
    both, labels = np.concatenate([crowd, box]), np.array([2, 1])
    assigned = match(both, labels, ANCHORS, crowd=np.array([True, False]))[1]
    assert set(assigned) == {-1, 0, 2}
    corners = box_ops.to_corners(ANCHORS)
    inside = (corners[:, 2] < 0.5) & (corners[:, 1] > 0) & (corners[:, 3] < 1)
    assert (assigned[inside & (corners[:, 0] > 0)] == -1).all()
    alone = match(crowd, labels[:1], ANCHORS, crowd=np.array([True]))[1]
    assert set(alone) == {-1, 0}


def test_no_objects():
    encodings, assigned = match(np.zeros((0, 4)), np.zeros(0, int), ANCHORS)
    assert not encodings.any()
    assert not assigned.any()
    assert encodings.shape == (len(ANCHORS), 4)


def test_match_refuses():
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        match(random_boxes(2, 0), np.zeros(1, int), ANCHORS)
    with pytest.raises(ValueError, match="ignore_iou <= iou"):
        MatchConfig(ignore_iou=0.7)
