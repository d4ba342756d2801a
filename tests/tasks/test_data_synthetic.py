"""The drawn data set is sound, repeatable and has tight boxes."""

import numpy as np
import pytest

from keras_lightnets.tasks.data import coco, synthetic
from keras_lightnets.tasks.data.synthetic import SHAPES, SyntheticConfig


def files(folder) -> dict:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_a_small_set_is_written_and_read(tmp_path):
    config = SyntheticConfig(train=12, val=5, size=128)
    paths = synthetic.write_shapes(tmp_path / "a", config)
    assert paths["train"] == tmp_path / "a" / "train"
    for split, count in (("train", 12), ("val", 5)):
        data, report = coco.open_coco(paths[split], paths[f"{split}_annotations"])
        assert report.problems == ()
        assert data.names == tuple(SHAPES) and len(data) == count
        for record in data.records:
            sides = (record.boxes[:, 2:] - record.boxes[:, :2]).max(1) / 128
            assert 1 <= len(sides) <= 6
            assert (sides >= 0.11).all() and (sides <= 0.47).all()
    synthetic.write_shapes(tmp_path / "b", config)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    synthetic.write_shapes(
        tmp_path / "c", SyntheticConfig(train=12, val=5, size=128, seed=1)
    )
    same = files(tmp_path / "c").items() & files(tmp_path / "a").items()
    assert same == set()
    train, val = (list(files(paths[s]).values()) for s in ("train", "val"))
    assert len({*train, *val}) == 17


def test_boxes_are_tight_around_whole_shapes():
    config = SyntheticConfig()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for box, label, points, mask in synthetic._place(rng, (300, 320), config):
            outline = np.concatenate([points.min(0), points.max(0)])
            assert np.abs(box - outline).max() <= 1.5
            x1, y1, x2, y2 = map(int, box)
            core = mask >= 128
            inside = core[y1:y2, x1:x2]
            assert inside.sum() == core.sum()
            edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
            assert all(edge.any() for edge in edges)
            assert 0 <= x1 < x2 <= 320 and 0 <= y1 < y2 <= 300
            assert label in range(len(SHAPES))


def test_no_object_is_mostly_hidden():
    config = SyntheticConfig(objects=(6, 6))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        placed = synthetic._place(rng, (320, 320), config)
        for i, (*_, mask) in enumerate(placed):
            above = np.zeros_like(mask, bool)
            for *_, other in placed[i + 1 :]:
                above |= other > 0
            hidden = above[mask > 0].mean()
            assert hidden <= synthetic.MOST_COVERED + 1e-6


def test_shapes_stand_out_from_their_background():
    image, boxes, labels, areas = synthetic.draw_image(3)
    assert image.dtype == np.uint8 and image.ndim == 3
    assert len(boxes) == len(labels) == len(areas) >= 1
    extents = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert ((areas > 0.2 * extents) & (areas < extents)).all()
    blank = synthetic.draw_image(3, SyntheticConfig(noise=0.0))[0]
    assert blank.shape == image.shape and (blank != image).any()


@pytest.mark.parametrize(
    "change", [{"train": 0}, {"size": 8}, {"extent": (0.5, 0.2)}, {"objects": (0, 3)}]
)
def test_settings_that_cannot_work_are_refused(change):
    with pytest.raises(ValueError, match="Received"):
        SyntheticConfig(**change)
