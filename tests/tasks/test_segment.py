"""Segmentation end to end on drawn pictures: data, train, resume, eval, predict."""

import json

import cv2
import numpy as np
import pytest
from drawn import HEIGHT, NAMES, WIDTH, draw_scene, write_split
from PIL import Image

from keras_lightnets.tasks import label_metrics, labeller, run, segment
from keras_lightnets.tasks.data import masks, records
from keras_lightnets.tasks.segmenter import SegmentConfig
from keras_lightnets.tools import runtime_labels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_split(folder, "train", 8, 0)
    write_split(folder, "val", 3, 100)
    return folder


@pytest.fixture(scope="module")
def config(scenes, tmp_path_factory):
    return SegmentConfig(
        data=str(scenes),
        backbone="vgg_cifar_11",
        backbone_options={"width": 0.1},
        head_options={"filters": 16},
        weights=None,
        image_size=WIDTH,
        image_height=HEIGHT,
        batch_size=4,
        epochs=1,
        augment="light",
        learning_rate=5e-3,
        workers=1,
        runs=str(tmp_path_factory.mktemp("runs")),
        name="whole",
    )


@pytest.fixture(scope="module")
def trained(config):
    return segment.train(config)


def invoke(*words):
    from typer.testing import CliRunner

    result = CliRunner().invoke(segment.make_app(), [*words, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_run_folder_is_complete_and_resumes_to_itself(config, trained):
    names = {path.name for path in config.folder.iterdir()}
    assert names == {
        *("config.json", "versions.json", "data.json", "history.csv", "metrics.json"),
        *("curves.png", "samples", "best.keras", "last.keras", "state.npz"),
    }
    assert len(list((config.folder / "samples").glob("*.jpg"))) == 3
    assert trained["epochs"] == 1 and trained["best"]["images"] == 3
    meta = run.read_meta(config.folder / "best.keras")
    read = runtime_labels.LabelMeta.from_dict(meta)
    assert (read.labels, read.size, read.task) == (NAMES, (HEIGHT, WIDTH), "segment")
    with pytest.raises(run.RunError, match="--overwrite"):
        segment.train(config)
    assert segment.train(config, resume=True)["best"] == trained["best"]


def test_eval_repeats_the_runs_metrics_with_the_asked_keys(config, trained, scenes):
    code, found = invoke("eval", "--model", str(config.folder))
    assert code == 0, found
    keys = {"miou", "pixel_accuracy", "class_accuracy", "per_class_iou", "boundary_f1"}
    assert keys < found.keys()
    assert found["per_class_iou"].keys() == set(NAMES)
    assert found["miou"] == pytest.approx(trained["best"]["miou"], abs=1e-6)
    counted = 3 * HEIGHT * WIDTH - 3 * 2 * WIDTH
    assert int(np.sum(found["confusion"])) == counted  # void counts nowhere
    code, slid = invoke(
        *("eval", "--model", str(config.folder), "--data", str(scenes)),
        *("--split", "train", "--flip", "--slide"),
    )
    assert code == 0 and slid["images"] == 8


def test_predict_writes_masks_that_can_be_read_again(config, trained, scenes, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG cut")
    code, found = invoke(
        *("predict", str(scenes / "val" / "0.png"), str(tmp_path / "bad.png")),
        *("--model", str(config.folder), "--output", str(tmp_path / "out")),
    )
    assert code == 0, found
    good, bad = found["images"]
    assert "error" in bad
    numbers = masks.read_numbers(tmp_path / "out" / "0.labels.png")
    assert numbers.shape == (HEIGHT, WIDTH) and numbers.max() < len(NAMES)
    assert sum(good["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert cv2.imread(good["picture"]).shape == (HEIGHT, WIDTH, 3)


def test_perfect_predictor_scores_one_and_loss_falls(config):
    """Targets fed back as outputs: classes in another order, resize, void."""
    config = config.replace(labels=tuple(reversed(NAMES)), batch_size=3)
    images, targets = next(iter(segment.batches(config, "val")))
    truth = targets["logits"]
    assert images.shape == (3, HEIGHT, WIDTH, 3) and truth.shape == (3, HEIGHT, WIDTH)
    assert set(np.unique(truth)) == {0, 1, 2, 255}
    logits = 20 * np.eye(3, dtype="float32")[np.where(truth == 255, 0, truth)]

    def predictor(given):
        np.testing.assert_array_equal(given, images)
        return {"logits": logits}

    found = segment.evaluate_fn(config)(predictor)
    assert found["miou"] == found["pixel_accuracy"] == found["boundary_f1"] == 1.0
    loss = segment.make_loss(config.replace(balance="loss", dice=0.5, hard_share=0.2))
    right = float(loss(targets, {"logits": logits}))
    assert 0 <= right < 0.01 < float(loss(targets, {"logits": -logits}))


def test_batches_are_repeatable_and_masks_follow_images(config):
    config = config.replace(augment="default", labels=NAMES)
    first, again = (segment.batches(config.replace(workers=n)) for n in (1, 2))
    for (images, targets), (images2, targets2) in zip(first, again, strict=True):
        np.testing.assert_array_equal(images, images2)
        np.testing.assert_array_equal(targets["logits"], targets2["logits"])
        blue = (images[..., 2] > 180) & (images[..., 0] < 90)
        label = targets["logits"]
        inside = blue & (label != 255)
        assert inside.sum() > 100
        assert (label[inside] == 1).mean() > 0.9


@pytest.mark.parametrize("size", [(64, 96), (40, 50), (100, 150)])
def test_sliding_windows_cover_every_pixel(size):
    """A predictor that reads the class off the colour; every window is the net's."""
    meta = runtime_labels.LabelMeta("segment", ("a", "b"), (64, 96))
    rng = np.random.default_rng(0)
    bright = np.kron(
        rng.integers(0, 2, (size[0] // 10, size[1] // 10)), np.ones((10,) * 2)
    )
    picture = np.repeat(bright[..., None] * 200, 3, -1).astype(np.uint8)

    def predictor(images):
        assert images.shape == (4, 64, 96, 3)
        on = (images[..., 0] > 150).astype("float32") * 9
        return {"logits": np.stack([9 - on, on], -1)}

    for flip in (False, True):
        views = labeller.Views(slide=True, flip=flip)
        (found,) = labeller.batch_labeller(predictor, meta, views, 4)([picture])
        np.testing.assert_array_equal(found, bright)


def test_letterbox_undoes_its_border():
    meta = runtime_labels.LabelMeta("segment", ("a", "b"), (64, 64), "letterbox")
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 32:] = 200

    def predictor(images):
        assert (images[0, :16] == 114).all() and (images[0, 48:] == 114).all()
        on = (images[..., 0] > 150).astype("float32") * 9
        return {"logits": np.stack([9 - on, on], -1)}

    (found,) = labeller.batch_labeller(predictor, meta, labeller.Views(), 1)([picture])
    np.testing.assert_array_equal(found, picture[..., 0] > 0)


def test_confusion_equals_a_direct_count():
    rng = np.random.default_rng(1)
    counts = label_metrics.Confusion(4)
    truth = rng.integers(0, 4, (3, 20, 20))
    truth[truth == 3] = 255  # class 3 is in no truth
    found = rng.integers(0, 3, (3, 20, 20))
    for a, b in zip(truth, found, strict=True):
        counts.update(a, b)
    result = counts.result("abcd")
    for label, name in enumerate("abc"):
        valid = truth != 255
        both = ((truth == label) & (found == label)).sum()
        either = (((truth == label) | (found == label)) & valid).sum()
        assert result["per_class_iou"][name] == pytest.approx(both / either)
    assert result["per_class_iou"]["d"] is None
    assert result["miou"] == pytest.approx(
        np.mean([result["per_class_iou"][n] for n in "abc"])
    )


def test_boundary_f1_forgives_small_shifts_only():
    truth = np.zeros((100, 100), int)
    truth[30:70, 30:70] = 1
    scores = []
    for shift in (0, 1, 8):
        edges = label_metrics.BoundaryF1(2)
        edges.update(truth, np.roll(truth, shift, 1))
        scores.append(edges.result())
    assert scores[0] == scores[1] == 1.0 and scores[2] < 0.7


def problems(folder, **options):
    _, report = records.open_checked(masks.list_masks(folder, "train", **options))
    return report


def test_every_kind_of_bad_mask_is_explained(tmp_path):
    write_split(tmp_path, "train", 6, 0)
    folder = tmp_path / "train_labels"
    (folder / "0.png").unlink()
    cv2.imwrite(str(folder / "1.png"), np.zeros((8, 8), np.uint8))
    cv2.imwrite(str(folder / "2.png"), np.full((HEIGHT, WIDTH), 77, np.uint8))
    colours = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3))
    cv2.imwrite(str(folder / "3.png"), colours)
    (folder / "4.png").write_bytes(b"\x89PNG cut")
    report = problems(tmp_path)
    assert report.counts == {
        "missing_mask": 1,
        "unreadable_mask": 1,
        "colour_mask": 1,
        "mask_size": 1,
        "mask_label": 1,
    }
    text = report.text()
    for words in (
        "no mask at",
        "the mask is 8x8, the image 96x64",
        "holds 77 on 100.0% of its pixels; legal: 0 to 2, and 3 and 255 for no class",
        "save the class numbers as an 8-bit grey or palette PNG",
    ):
        assert words in text
    assert not report.fatal and len(report.left_out) == 5
    strict = masks.list_masks(tmp_path, "train").check(strict=True)
    assert len(strict.fatal) == 5
    lost = problems(tmp_path / "nowhere")
    assert lost.counts["no_classes"] == 1 and lost.fatal
    assert "must name the classes, one per line" in lost.text()


def test_the_layout_is_guessed_and_its_fixed_numbers_stay(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    assert "try --layout cityscapes" in problems(tmp_path).text()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for layout in ("cityscapes", "panoptic"):
        with pytest.raises(ValueError, match=r"are fixed.*void=\(3,\)"):
            masks.list_masks(tmp_path, "train", layout, (3,))
    assert masks.list_masks(tmp_path, "train", void=(3,)).void == (3,)


def test_palette_masks_are_read_by_number(tmp_path):
    write_split(tmp_path, "train", 1, 0)
    file = tmp_path / "train_labels" / "0.png"
    before = masks.list_masks(tmp_path, "train").sample(0)[1]
    picture = Image.fromarray(masks.read_numbers(file).astype(np.uint8))
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    picture.save(file)
    with Image.open(file) as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(
        masks.list_masks(tmp_path, "train").sample(0)[1], before
    )


def test_voc_cityscapes_and_panoptic_layouts(tmp_path):
    picture, mask = draw_scene(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "JPEGImages" / "a.jpg"), picture)
    cv2.imwrite(str(tmp_path / "SegmentationClass" / "a.png"), mask)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    voc = masks.list_masks(tmp_path, "val", "voc")
    assert voc.names[15] == "person" and voc.check().problems == ()
    assert set(np.unique(voc.sample(0)[1])) == {0, 1, 2, 3}

    images, truth = (
        tmp_path / part / "val" / "ulm" for part in ("leftImg8bit", "gtFine")
    )
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    cv2.imwrite(str(images / "ulm_1_2_leftImg8bit.png"), picture)
    ids = np.array([7, 26, 33, 4], np.uint8)[mask]
    cv2.imwrite(str(truth / "ulm_1_2_gtFine_labelIds.png"), ids)
    city = masks.list_masks(tmp_path, "val", "cityscapes")
    assert city.check().problems == ()
    labels = city.sample(0)[1]
    np.testing.assert_array_equal(labels, np.array([0, 13, 18, 255])[mask])

    notes = tmp_path / "annotations" / "panoptic_val"
    notes.mkdir(parents=True)
    (tmp_path / "val").mkdir()
    cv2.imwrite(str(tmp_path / "val" / "1.jpg"), picture)
    numbers = np.array([300, 70000, 9, 0])[mask]
    bands = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1)
    cv2.imwrite(str(notes / "1.png"), bands[..., ::-1])
    segments = [(300, 5), (70000, 2), (9, 5)]
    content = {
        "categories": [{"id": 5, "name": "sky"}, {"id": 2, "name": "car"}],
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "1.png",
                "segments_info": [{"id": i, "category_id": c} for i, c in segments],
            }
        ],
    }
    notes.with_suffix(".json").write_text(json.dumps(content))
    panoptic = masks.list_masks(tmp_path, "val", "panoptic")
    assert panoptic.names == ("car", "sky") and panoptic.check().problems == ()
    found = panoptic.sample(0)[1]
    np.testing.assert_array_equal(found, np.array([1, 0, 1, 255])[mask])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("train",), "--data FOLDER"),
        (("train", "--data", ".", "--head", "ssdlite"), "Unknown head 'ssdlite'"),
        (("eval", "--model", "lraspp_mobilenet_v3_large"), "needs --weights"),
        (
            ("eval", "--model", "lrasp", "--weights", "coco_voc"),
            "published net 'lrasp'",
        ),
        (("eval", "--model", "absent.keras"), "No model at absent.keras"),
        (("train", "--data", ".", "--void", "x"), "'11,255'"),
    ],
)
def test_bad_option_is_one_json_error(words, text, tmp_path, scenes):
    if words[0] == "train":
        words = (*words, "--runs", str(tmp_path))
        words = tuple(str(scenes) if word == "." else word for word in words)
    code, found = invoke(*words)
    assert code == 2 and text in found["error"]
    assert not list(tmp_path.iterdir())


def test_other_classes_are_refused(config, trained, tmp_path):
    write_split(tmp_path, "val", 1, 0)
    (tmp_path / "classes.txt").write_text("ground\nblue\ngreen\n")
    code, found = invoke("eval", "--model", str(config.folder), "--data", str(tmp_path))
    assert code == 2
    assert "Only the model has: red. Only the data has: green" in found["error"]
