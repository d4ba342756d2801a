"""One report lists every problem of a data set; what is sound is read right."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from keras_lightnets.tasks.data import checks, coco
from keras_lightnets.tasks.data.checks import DatasetError


def write_image(path, width=40, height=30, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 5 % 256, y * 7 % 256, x + y], -1).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)


def image(number, name=None, width=40, height=30) -> dict:
    name = name or f"{number}.jpg"
    return {"id": number, "file_name": name, "width": width, "height": height}


def box(number, image_id=1, bbox=(5, 5, 10, 10), category=7, **more) -> dict:
    entry = {"id": number, "image_id": image_id, "category_id": category}
    return {**entry, "bbox": list(bbox) if bbox else bbox, **more}


def content(images=None, annotations=None, categories=None) -> dict:
    return {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": [box(1), box(2, 2)] if annotations is None else annotations,
        "categories": (
            [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
            if categories is None
            else categories
        ),
    }


@pytest.fixture
def save(tmp_path):
    """Write two good images and a JSON; return what `open_coco` takes."""
    folder = tmp_path / "images"
    for number in (1, 2):
        write_image(folder / f"{number}.jpg")

    def write(data, name="data.json"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return folder, path

    return write


def kinds(report) -> dict:
    return report.counts


def test_good_data_set(save):
    crowd = box(3, 2, (0, 0, 40, 30), 3, iscrowd=1, area=99.5)
    folder, path = save(content(annotations=[box(1), box(2, 2), crowd]))
    data, report = coco.open_coco(folder, path)
    assert report.problems == () and "No problem found. images: 2" in report.text()
    assert len(data) == 2
    assert data.names == ("cat", "dog") and data.category_ids == (7, 3)
    pixels, boxes, labels, meta = data.sample(1)
    assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8
    assert boxes.tolist() == [[5, 5, 15, 15], [0, 0, 40, 30]]
    assert labels.tolist() == [0, 1] and labels.dtype == np.int32
    assert meta["image_id"] == 2 and meta["file_name"] == "2.jpg"
    assert (meta["height"], meta["width"], meta["reduce"]) == (30, 40, 1)
    assert meta["iscrowd"].tolist() == [False, True]
    annotations = data.coco_dict()["annotations"]
    assert [a["id"] for a in annotations] == [1, 2, 3]
    assert [a["area"] for a in annotations] == [100, 100, 99.5]
    assert annotations[2]["category_id"] == 3 and annotations[2]["iscrowd"] == 1


def test_reduced_sample_scales_its_boxes(save, tmp_path):
    write_image(tmp_path / "images" / "1.jpg", 160, 121)
    write_image(tmp_path / "images" / "2.png", 160, 121)
    listed = [image(1, None, 160, 121), image(2, "2.png", 160, 121)]
    folder, path = save(content(images=listed))
    data = coco.CocoDataset(folder, path)
    pixels, boxes, _, meta = data.sample(0, target=(40, 40))
    assert pixels.shape == (31, 40, 3) and meta["reduce"] == 4
    assert boxes.tolist() == [[1.25, 1.25, 3.75, 3.75]]
    assert (meta["height"], meta["width"]) == (121, 160)
    pixels, boxes, _, meta = data.sample(1, target=(40, 40))
    assert pixels.shape == (121, 160, 3) and meta["reduce"] == 1
    assert boxes.tolist() == [[5, 5, 15, 15]]


BOXES = {
    "nan_box": [[math.nan, 0, 5, 5], [0, 0, math.inf, 5]],
    "zero_area_box": [[1, 1, 0, 5], [1, 1, 5, -2]],
    "outside_box": [[50, 5, 10, 10], [5, -20, 10, 10]],
    "clipped_box": [[-5, 5, 20, 10], [30, 20, 40, 40]],
    "malformed_box": [[1, 2, 3], None, "1,2,3,4", [1, 2, 3, "4"], [1, 2, True, 4]],
}


@pytest.mark.parametrize("kind", BOXES)
def test_bad_boxes_are_counted_and_refused_by_strict(kind, save):
    bad = [box(10 + i, bbox=None, **{}) for i in range(len(BOXES[kind]))]
    for entry, value in zip(bad, BOXES[kind], strict=True):
        entry["bbox"] = value
    folder, path = save(content(annotations=[box(1), box(2, 2), *bad]))
    data, report = coco.open_coco(folder, path)
    assert kinds(report) == {kind: len(bad)}
    assert "annotation 10 (1.jpg)" in report.text()
    assert not report.fatal
    report.raise_if_fatal()
    kept = data.records[0].boxes
    assert len(kept) == 1 + (len(bad) if kind == "clipped_box" else 0)
    assert (kept[:, 2:] > kept[:, :2]).all() and np.isfinite(kept).all()
    assert (kept >= 0).all() and (kept <= [40, 30, 40, 30]).all()
    _, strict = coco.open_coco(folder, path, strict=True)
    assert len(strict.fatal) == len(bad)
    with pytest.raises(DatasetError, match=kind):
        strict.raise_if_fatal()


def test_rounding_of_an_annotation_tool_is_no_problem(save):
    edge = box(1, bbox=(-0.5, 0, 41, 30.9))
    data, report = coco.open_coco(*save(content(annotations=[edge])))
    assert report.problems == ()
    assert data.records[0].boxes.tolist() == [[0, 0, 40, 30]]


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def damage_middle(path) -> None:
    write_image(path.with_suffix(".png"), 80, 60)
    data = bytearray(path.with_suffix(".png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    path.write_bytes(data)


FILES = {
    "missing_image": lambda path: path.unlink(),
    "empty_image": lambda path: path.write_bytes(b""),
    "unreadable_image": lambda path: path.write_text("<html>404</html>"),
    "truncated_image": cut,
    "size_mismatch": lambda path: write_image(path, 64, 30),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("decode", [None, False, True])
def test_bad_files_are_left_out(kind, decode, save):
    folder, path = save(content())
    FILES[kind](folder / "1.jpg")
    data, report = coco.open_coco(folder, path, decode=decode)
    assert kinds(report) == {kind: 1}
    assert not report.fatal and report.left_out == {1}
    assert [r.file_name for r in data.records] == ["2.jpg"]
    assert [i["id"] for i in data.coco_dict()["images"]] == [2]
    _, strict = coco.open_coco(folder, path, strict=True)
    assert len(strict.fatal) == 1


def test_damage_in_the_middle_is_found_by_decoding(save):
    folder, path = save(content(images=[image(1, None, 80, 60), image(2)]))
    damage_middle(folder / "1.jpg")
    _, report = coco.open_coco(folder, path)
    assert kinds(report) == {"unreadable_image": 1}
    _, quick = coco.open_coco(folder, path, decode=False)
    assert quick.problems == ()


def test_size_mismatch_names_ignored_exif_rotation(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder, path = save(content())
    write_image(folder / "1.jpg", exif=exif)
    _, report = coco.open_coco(folder, path)
    assert kinds(report) == {"size_mismatch": 1}
    assert "is 30x40, the JSON says 40x30" in report.text()
    assert "EXIF" in report.text()


def test_upright_size_of_a_rotated_image_is_right(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder, path = save(content(images=[image(1, None, 30, 40), image(2)]))
    write_image(folder / "1.jpg", exif=exif)
    data, report = coco.open_coco(folder, path)
    assert report.problems == ()
    assert data.sample(0)[0].shape == (40, 30, 3)


def test_no_image_left_is_fatal(save):
    folder, path = save(content())
    data, report = coco.open_coco(folder / "elsewhere", path)
    assert kinds(report) == {"no_images": 1, "missing_image": 2}
    assert len(report.fatal) == 1 and len(data) == 0


FATAL = {
    "no_images": content(images=[]),
    "no_annotations": content(annotations=[]),
    "no_categories": content(categories=[]),
    "unknown_category": content(annotations=[box(1), box(2, category=99)]),
    "duplicate_image_id": content(images=[image(1), image(1, "2.jpg")]),
    "duplicate_category": content(
        categories=[{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}]
    ),
    "malformed_entry": content(images=[image(1), {"id": 2}]),
}


@pytest.mark.parametrize("kind", FATAL)
def test_fatal_problems(kind, save):
    folder, path = save(FATAL[kind])
    data, report = coco.open_coco(folder, path)
    assert data is None
    assert kind in {p.kind for p in report.fatal}
    with pytest.raises(DatasetError, match=kind) as caught:
        coco.CocoDataset(folder, path)
    assert caught.value.report.counts == report.counts
    assert isinstance(caught.value, ValueError)


def test_two_categories_of_one_name_are_refused(save):
    twice = [{"id": 7, "name": "cat"}, {"id": 8, "name": "cat"}]
    _, report = coco.open_coco(*save(content(categories=twice)))
    assert report.counts == {"duplicate_category": 1} and report.fatal


def test_ids_written_as_floats_are_understood(save):
    listed = [{**image(1), "id": 1.0}, {**image(2), "id": "second"}]
    boxes = [box(1.0, 1), box(2, "second", category=7.0)]
    kinds = [{"id": 7.0, "name": "cat"}]
    data, report = coco.open_coco(*save(content(listed, boxes, kinds)))
    assert report.problems == ()
    assert [len(record.boxes) for record in data.records] == [1, 1]
    assert data.category_ids == (7,) and data.records[0].image_id == 1


ESCAPES = ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", ""]


@pytest.mark.parametrize("name", ESCAPES)
def test_paths_stay_in_the_folder(name, save, tmp_path):
    write_image(tmp_path / "x.jpg")
    entry = {**image(2), "file_name": name}
    _, report = coco.open_coco(*save(content(images=[image(1), entry])))
    assert "path_outside" in {p.kind for p in report.fatal}


def test_sub_folders_and_links_are_fine(save, tmp_path):
    write_image(tmp_path / "images" / "a" / "1.jpg")
    write_image(tmp_path / "storage" / "2.jpg")
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "storage" / "2.jpg")
    listed = [image(1, "a/../a/1.jpg"), image(2, "link.jpg")]
    data, report = coco.open_coco(*save(content(images=listed)))
    assert report.problems == () and len(data) == 2


def test_broken_json_names_line_and_column(save):
    folder, path = save('{"images": [],\n  "annotations": [1, 2,, 3]}')
    _, report = coco.open_coco(folder, path)
    assert kinds(report) == {"broken_json": 1}
    assert f"{path}, line 2, column 24" in report.text()
    for text in ("[1, 2]", "", '"x"', "[" * 100_000):
        _, report = coco.open_coco(*save(text))
        assert kinds(report) == {"broken_json": 1}
    path.write_bytes(b"\xff\xfe\x00bad")
    assert kinds(coco.open_coco(folder, path)[1]) == {"broken_json": 1}
    _, report = coco.open_coco(folder, path.with_name("none.json"))
    assert "No such file" in report.text()


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_lists_of_the_wrong_kind(key, save):
    for value in ({}, "x", 3, [1, "x", None]):
        data, report = coco.open_coco(*save({**content(), key: value}))
        assert data is None and "malformed_entry" in report.counts


@pytest.mark.parametrize("value", [None, 0, -4, "40", 2.5, math.inf, math.nan, True])
def test_sizes_must_be_pixels(value, save):
    entry = {**image(2), "width": value}
    _, report = coco.open_coco(*save(content(images=[image(1), entry])))
    assert "malformed_entry" in {p.kind for p in report.fatal}


def test_repeated_and_lost_annotations_are_counted(save):
    listed = [box(1), box(1, 2), box(3, 55), box(None, [1]), {"image_id": 1}]
    listed[4] |= {"category_id": 7, "bbox": [1, 1, 2, 2]}
    data, report = coco.open_coco(*save(content(annotations=listed)))
    assert kinds(report) == {"unknown_image": 2, "duplicate_annotation_id": 1}
    assert not report.fatal
    assert [a["id"] for a in data.coco_dict()["annotations"]] == [1, 2, 3]


def test_one_report_lists_all_problems_of_two_sets(save):
    odd = [image(1), image(2), image(3), image(4, "../4.jpg")]
    boxes = [box(1, bbox=(0, 0, 0, 1)), box(2, category=5), box(3)]
    folder, path = save(content(odd, boxes))
    (folder / "1.jpg").write_bytes(b"")
    save(content(images=[image(1), image(2), image(9)]), "val.json")
    reports = [
        coco.open_coco(folder, path.with_name(name))[1]
        for name in ("data.json", "val.json")
    ]
    report = checks.merge(reports)
    assert report.counts == {
        "path_outside": 1,
        "unknown_category": 1,
        "missing_image": 2,
        "empty_image": 2,
        "zero_area_box": 1,
    }
    assert len(report.left_out) == 4
    text = report.text()
    for name in ("data.json: 3.jpg", "val.json: 9.jpg", "../4.jpg", "category 5"):
        assert name in text
    full = report.json()
    assert full["fatal"] == 2 and full["images"] == 7
    assert len(json.loads(json.dumps(full))["problems"]) == len(report.problems)
    with pytest.raises(DatasetError, match="Problems: 7, fatal: 2. images: 7"):
        report.raise_if_fatal()


def test_long_lists_are_cut_in_the_text_only(save):
    boxes = [box(1), *(box(i, bbox=(1, 1, 0, 0)) for i in range(2, 30))]
    _, report = coco.open_coco(*save(content(annotations=boxes)))
    assert "... and 23 more" in report.text()
    assert len(report.json()["problems"]) == 28


def test_unknown_kind_of_problem_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'nan_box'"):
        checks.make_report([checks.Problem("nanbox", "x", "y")], (1, 1))


@pytest.mark.parametrize(
    ("folder", "name", "count", "boxes", "found"),
    [
        ("bccd/train", "bccd/annotations/instances_train.json", 205, 2804, 1),
        ("bccd/val", "bccd/annotations/instances_val.json", 87, 1137, 1),
        ("coco128/train2017", None, 128, 929, 0),
        ("coco128/val2017", None, 128, 898, 0),
    ],
)
def test_real_data(folder, name, count, boxes, found, shared):
    root = shared / "data"
    name = name or f"coco128/annotations/instances_{folder.split('/')[1]}.json"
    data, report = coco.open_coco(root / folder, root / name)
    assert len(report.problems) == found and len(data) == count
    assert sum(len(record.boxes) for record in data.records) == boxes
    dataset = data.coco_dict()
    raw = json.loads((root / name).read_text())
    assert dataset["categories"] == [
        {"id": c["id"], "name": c["name"]} for c in raw["categories"]
    ]
