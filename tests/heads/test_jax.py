"""Head, losses and suppression on the jax backend give TensorFlow's results."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_lightnets import heads
from keras_lightnets.heads import losses, ssdlite
from keras_lightnets.heads.matching import match

HERE = pathlib.Path(__file__).parent
FILES = ("test_losses.py", "test_nms.py", "test_detectors.py")
SIZE = 64

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="this run is on the jax backend already"
)


def on_jax(*command):
    env = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    # Compiling takes longer than running: as few passes as there are.
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=env,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


# Runs with jax: everything in one compiled function, as in training.
SCRIPT = """
import sys
import jax, keras, numpy as np
from keras_lightnets.heads import losses, ssdlite

folder = sys.argv[1]
config = ssdlite.SSDLiteConfig(classes=3, image_size=64, extra_widths=(16,),
    max_detections=20)
model = keras.saving.load_model(f"{folder}/head.keras")
data = dict(np.load(f"{folder}/data.npz"))
variables = [v.value for v in model.trainable_variables]
rest = [v.value for v in model.non_trainable_variables]

def run(variables):
    raw, _ = model.stateless_call(variables, rest, data["image"], training=False)
    boxes, scores = data["true_boxes"], data["true_scores"]
    cost = losses.BoxLoss()(boxes, raw["boxes"])
    cost += losses.BoxLoss("giou")(boxes, raw["boxes"])
    cost += losses.MultiboxLoss()(scores, raw["scores"])
    cost += losses.FocalLoss()(scores, raw["scores"][..., 1:])
    return cost, (raw, ssdlite.detect(raw, config))

(cost, (raw, found)), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(variables)
norm = sum(float((g ** 2).sum()) for g in grads) ** 0.5
found = {k: v for k, v in found._asdict().items()}
np.savez(f"{folder}/found.npz", cost=cost, norm=norm, **raw,
         **{f"found_{k}": v for k, v in found.items()})
"""


def example(folder, config):
    """Save a head, images and targets; return what TensorFlow makes of them."""
    import tensorflow as tf

    image = keras.Input((SIZE, SIZE, 3))
    c4 = keras.layers.Conv2D(8, 16, 16)(image)
    c5 = keras.layers.Conv2D(8, 2, 2)(c4)
    backbone = keras.Model(image, {"c4": c4, "c5": c5})
    model = heads.attach(backbone, "ssdlite", config)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name.endswith(("level1_boxes_conv", "level1_scores_conv")):
            kernel, bias = layer.get_weights()
            layer.set_weights([rng.normal(0, 0.5, kernel.shape), bias])
    model.save(folder / "head.keras")
    encodings, labels = match(
        np.array([[0.1, 0.1, 0.5, 0.6], [0.3, 0.4, 0.95, 0.9]]),
        np.array([0, 2]),
        ssdlite.default_boxes(config),
    )
    encodings = np.concatenate([encodings, (labels > 0)[:, None]], axis=1)
    data = {
        "image": rng.uniform(0, 255, (1, SIZE, SIZE, 3)).astype("float32"),
        "true_boxes": encodings[None].astype("float32"),
        "true_scores": labels[None],
    }
    np.savez(folder / "data.npz", **data)

    with tf.GradientTape() as tape:
        raw = model(data["image"], training=False)
        boxes, scores = data["true_boxes"], data["true_scores"]
        cost = losses.BoxLoss()(boxes, raw["boxes"])
        cost += losses.BoxLoss("giou")(boxes, raw["boxes"])
        cost += losses.MultiboxLoss()(scores, raw["scores"])
        cost += losses.FocalLoss()(scores, raw["scores"][..., 1:])
    grads = tape.gradient(cost, [v.value for v in model.trainable_variables])
    norm = sum(float(tf.reduce_sum(g**2)) for g in grads if g is not None) ** 0.5
    found = ssdlite.detect(raw, config)._asdict()
    found = {f"found_{key}": value for key, value in found.items()}
    return {"cost": cost, "norm": norm, **raw, **found}


@pytest.mark.full
def test_same_as_tensorflow(tmp_path):
    pytest.importorskip("jax")
    config = ssdlite.SSDLiteConfig(
        classes=3, image_size=SIZE, extra_widths=(16,), max_detections=20
    )
    expected = example(tmp_path, config)
    on_jax("-c", SCRIPT, tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name], np.asarray(value), rtol=1e-3, atol=1e-4, err_msg=name
            )
    assert float(expected["norm"]) > 0.1
    assert int(expected["found_count"][0]) > 5


@pytest.mark.full
def test_whole_suite_on_jax():
    pytest.importorskip("jax")
    files = [HERE / name for name in FILES]
    out = on_jax("-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|skipped)", out)}
    # What is compared with a TensorFlow function runs on TensorFlow only.
    assert counts["passed"] >= 50
    assert counts.get("skipped", 0) <= 2
