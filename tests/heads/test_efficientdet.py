"""EfficientDet against effdet's stored results, its topology, and its structure."""

import dataclasses
import functools
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lightnets
from keras_lightnets import heads
from keras_lightnets._checkpoints import download
from keras_lightnets.heads import (
    _joined,
    bifpn,
    detectors,
    efficientdet,
    losses,
    matching,
    nms,
)
from keras_lightnets.heads import boxes as box_ops
from keras_lightnets.heads.efficientdet import VARIANTS, EfficientDetConfig
from keras_lightnets.layers.fusion import WeightedFusion
from keras_lightnets.tools.convert import make_efficientdet_parity as source
from keras_lightnets.tools.convert import make_ssdlite_parity as shared

FOLDER = Path(__file__).parents[1] / "parity"
COUNTS = {
    "d0": 3_880_067,
    "d1": 6_625_898,
    "d2": 8_097_039,
    "d3": 12_032_296,
    "d4": 20_723_675,
    "d5": 33_653_315,
    "d6": 51_871_782,
    "d7": 51_871_782,
    "lite0": 3_243_470,
    "lite1": 4_248_318,
    "lite2": 5_252_334,
    "lite3": 8_350_862,
    "lite3x": 9_280_862,
    "lite4": 15_130_894,
}
SMALL = ("d0", "lite0")
CASES = [
    pytest.param(name, marks=[] if name in SMALL else pytest.mark.full)
    for name in VARIANTS
]
PREFIXES = {"gamma": "weight", "beta": "bias", "kernel": "weight"}
PREFIXES |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
TINY = EfficientDetConfig(
    classes=3, image_size=64, channels=8, cells=1, repeats=1, act="relu6"
)


def load(name):
    with np.load(FOLDER / name) as arrays:
        return dict(arrays)


def row_of(name):
    """The published detector at the small size of the stored outputs."""
    row = detectors.DETECTORS[f"efficientdet_{name}"]
    small = dataclasses.replace(row.config, image_size=source.SIZES[name])
    return dataclasses.replace(row, config=small)


def state_of(model, names):
    """The seeded state dict of effdet's network, in PyTorch's layout."""
    state = {}
    for layer in model.layers:
        for weight in layer.weights:
            key = f"{names[layer.name]}.{PREFIXES.get(weight.name, weight.name)}"
            shape = tuple(weight.shape)
            if len(shape) == 4:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                shape = tuple(shape[i] for i in order)
            state[key] = source.seeded_tensor(key, shape)
    return state


@functools.cache
def raw_outputs(name, folder):
    """The detector's raw outputs, its weights read from a file in effdet's layout."""
    safetensors = pytest.importorskip("safetensors.numpy")
    row, joined = row_of(name), f"efficientdet_{name}"

    def create(weights):
        return _joined.create(joined, row, weights, lambda c: (*c.size, 3))

    model, _ = create(None)
    names = _joined.layout_of(row).names(_joined.spec_of(joined, row))
    path = folder / f"{name}.safetensors"
    safetensors.save_file(state_of(model, names), path)
    model, config = create(path)
    # The stored outputs are those of normalised pixels.
    image = shared.seeded_image()[: source.SIZES[name], : source.SIZES[name]]
    rule = row.weights[0].preprocessing
    image = (image.astype("float64") - 127.0) / 128.0 * rule.std + rule.mean
    found = model(image[None].astype("float32"), training=False)
    raw = {key: keras.ops.convert_to_numpy(value) for key, value in found.items()}
    count = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return raw, count, config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("effdet")


@pytest.fixture(scope="module")
def stored():
    return load("efficientdet_raw.npz")


@pytest.mark.parametrize("name", CASES)
def test_equals_effdet(name, stored, folder):
    raw, count, _ = raw_outputs(name, folder)
    facts = stored[f"{name}_facts"]
    assert count == facts[0] == COUNTS.get(name, count)
    swapped = raw["boxes"][0][:, [1, 0, 3, 2]]
    for key, ours, step, largest in (
        ("logits", raw["scores"][0], source.CLASS_STEP, facts[2]),
        ("encodings", swapped, 1, facts[3]),
    ):
        assert np.abs(ours).max() == pytest.approx(largest, rel=1e-4)
        np.testing.assert_allclose(
            source.summary(ours)[:, ::step],
            stored[f"{name}_{key}"],
            rtol=0,
            atol=1e-4 * largest,
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_default_boxes_equal_effdets(name, stored):
    config = detectors.DETECTORS[f"efficientdet_{name}"].config
    corners = box_ops.to_corners(efficientdet.default_boxes(config)) * config.size[0]
    assert len(corners) == stored[f"{name}_facts"][1]
    np.testing.assert_allclose(
        source.summary(corners[:, [1, 0, 3, 2]]),
        stored[f"{name}_anchors_px"],
        rtol=0,
        atol=1e-3,
    )


@pytest.fixture(scope="module")
def task():
    return load("efficientdet_task.npz")


@pytest.fixture(scope="module")
def targets():
    config = row_of(source.TASK_VARIANT).config
    anchors = efficientdet.default_boxes(config)
    boxes, labels = shared.seeded_objects()
    return matching.match(boxes, labels, anchors, weights=config.box_weights)


def test_assignment_equals_effdets(targets, task):
    _, assigned = targets
    different = np.flatnonzero(assigned != task["assigned"])
    # Of two objects with one favourite, effdet gives it to the first, here the last.
    assert len(different) <= 1
    assert (assigned > 0).sum() == task["positives"]


def test_losses_equal_effdets(targets, task, folder):
    raw, _, config = raw_outputs(source.TASK_VARIANT, folder)
    encodings, _ = targets
    assigned = task["assigned"].astype("int32")
    positive = task["positives"].item()
    parts = efficientdet.build_losses(config)
    assert isinstance(parts["scores"], losses.FocalLoss)
    y_true = np.concatenate([encodings, (assigned > 0)[:, None]], 1).astype("float32")
    box_loss = float(parts["boxes"](y_true[None], raw["boxes"]))
    score_loss = float(parts["scores"](assigned[None], raw["scores"]))
    # effdet divides by the positives plus one, and weighs boxes by 50 later.
    share = positive / (positive + 1.0)
    assert score_loss * share == pytest.approx(float(task["score_loss"]), rel=1e-4)
    assert box_loss * share / 50 == pytest.approx(float(task["box_loss"]), rel=2e-2)


def test_detections_equal_effdets(task, folder):
    raw, _, config = raw_outputs(source.TASK_VARIANT, folder)
    found = efficientdet.detect(raw, config)
    first = [keras.ops.convert_to_numpy(part)[0] for part in found]
    top = slice(source.STORED_DETECTIONS)
    np.testing.assert_allclose(first[1][top], task["found_scores"], atol=1e-5)
    np.testing.assert_array_equal(first[2][top] + 1, task["found_labels"])
    boxes_px = first[0][top] * config.size[0]
    np.testing.assert_allclose(boxes_px, task["found_boxes_px"], atol=1e-2)


@pytest.mark.parametrize("case", range(source.SOFT_CASES))
def test_soft_suppression_equals_effdets(case, task):
    boxes, scores, _ = shared.seeded_candidates(2 * case)
    found = nms.soft_nms(
        boxes[None], scores[None, :, None], score_threshold=0.05, max_detections=120
    )
    index, values = task[f"soft{case}_index"], task[f"soft{case}_scores"]
    assert np.asarray(found.count).tolist() == [len(index)]
    np.testing.assert_array_equal(
        np.asarray(found.boxes)[0, : len(index)], boxes[index]
    )
    np.testing.assert_allclose(
        np.asarray(found.scores)[0, : len(index)], values, rtol=1e-4
    )


def test_published_files_have_hash_and_licence():
    for name in VARIANTS:
        (weights,) = detectors.DETECTORS[f"efficientdet_{name}"].weights
        assert weights.licence == "Apache-2.0"
        assert download.file_name(weights.url).endswith(f"{weights.hash[7:]}.pth")
        assert len(weights.hash) == len("sha256:") + 8


def test_topology_is_effdets():
    """Positions as effdet numbers them for five levels."""
    assert [(node.level + 3, node.inputs) for node in bifpn.topology(5)] == [
        *((6, (3, 4)), (5, (2, 5)), (4, (1, 6)), (3, (0, 7))),
        *((4, (1, 7, 8)), (5, (2, 6, 9)), (6, (3, 5, 10)), (7, (4, 11))),
    ]
    for levels in range(2, 9):
        nodes = bifpn.topology(levels)
        assert [node.level for node in nodes[-levels:]] == list(range(levels))
        for position, node in enumerate(nodes, levels):
            assert max(node.inputs) < position


def test_fusion_shares():
    layer = WeightedFusion(epsilon=0.0)
    inputs = [np.full((1, 2), value, "float32") for value in (1.0, 10.0, 100.0)]
    np.testing.assert_allclose(np.asarray(layer(inputs)), 37.0, rtol=1e-6)
    layer.edge_weights.assign([1.0, -5.0, 3.0])
    np.testing.assert_allclose(np.asarray(layer(inputs)), 75.25, rtol=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        WeightedFusion()([inputs[0]])


def maps(size=64):
    image = keras.Input((size, size, 3), name="image")
    c3 = keras.layers.Conv2D(6, 8, 8, padding="same", name="stem_conv")(image)
    c4 = keras.layers.Conv2D(8, 3, 2, padding="same", name="mid_conv")(c3)
    c5 = keras.layers.Conv2D(10, 3, 2, padding="same", name="top_conv")(c4)
    return keras.Model(image, {"c3": c3, "c4": c4, "c5": c5}, name="tiny")


def test_trains_and_is_saved(tmp_path):
    """Every weight gets a gradient, the loss falls, the file gives the same model."""
    keras.utils.set_random_seed(2)
    config, model = TINY, heads.attach(maps(), "efficientdet_lite0", TINY)
    anchors = efficientdet.default_boxes(config)
    boxes = np.array([[0.1, 0.1, 0.6, 0.6], [0.0, 0.2, 0.95, 0.9]], "float32")
    encodings, labels = matching.match(
        boxes, np.array([0, 2]), anchors, weights=config.box_weights
    )
    target = {
        "boxes": np.stack([np.concatenate([encodings, (labels > 0)[:, None]], 1)] * 2),
        "scores": np.stack([labels] * 2),
    }
    image = np.random.default_rng(0).uniform(0, 1, (2, 64, 64, 3)).astype("float32")
    model.compile(
        keras.optimizers.Adam(3e-3),
        loss=efficientdet.build_losses(config),
        run_eagerly=keras.backend.backend() == "tensorflow",  # tracing takes longer
        jit_compile=keras.backend.backend() == "jax",
    )
    before = {w.path: w.numpy().copy() for w in model.trainable_weights}
    history = model.fit(image, target, batch_size=2, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    still = [
        w.path
        for w in model.trainable_weights
        if np.array_equal(w.numpy(), before[w.path])
    ]
    # No object belongs to the coarse levels' boxes; and the shift of the last map, one
    # cell large, is removed by the normalisations behind it.
    allowed = ("head_boxes_level", "head_cell1_node8_bn/beta")
    assert not [path for path in still if not path.startswith(allowed)]
    model.save(tmp_path / "d.keras")
    again = keras_lightnets.load_model(tmp_path / "d.keras")
    for key, value in model(image, training=False).items():
        np.testing.assert_allclose(
            np.asarray(again(image, training=False)[key]), np.asarray(value), atol=1e-5
        )


def test_predictors_are_shared_and_normalisations_are_not():
    model = heads.attach(maps(), "efficientdet_lite0", TINY)
    names = [layer.name for layer in model.layers]
    assert len(names) == len(set(names))
    predictors = [n for n in names if n.startswith(("head_boxes_", "head_scores_"))]
    convs = [n for n in predictors if n.endswith("_conv")]
    norms = [n for n in predictors if n.endswith("_bn")]
    assert len(convs) == 2 * 2 * (TINY.repeats + 1)
    assert len(norms) == 2 * TINY.repeats * TINY.levels
    biased = [x.name for x in model.layers if getattr(x, "use_bias", False)]
    assert {n for n in biased if n.startswith("head_")} == {
        "head_boxes_conv",
        "head_scores_conv",
    }


def test_scores_start_at_the_prior():
    model = heads.attach(maps(), "efficientdet_lite0", TINY)
    raw = model(np.zeros((1, 64, 64, 3), "float32"), training=False)
    scores = keras.ops.convert_to_numpy(keras.ops.sigmoid(raw["scores"]))
    np.testing.assert_allclose(scores, 0.01, rtol=1e-3)


def test_reads_other_backbones():
    backbone = "mobilenet_v1"
    levels = [level.name for level in keras_lightnets.get_spec(backbone).levels]
    endpoints = heads.pick_endpoints("efficientdet_lite0", levels)
    assert endpoints == ("c3", "c4", "c5")
    body = keras_lightnets.create_model(
        backbone,
        include_top=False,
        weights=None,
        input_shape=(96, 96, 3),
        endpoints=endpoints,
    )
    config = dataclasses.replace(TINY, image_size=96)
    model = heads.attach(body, "efficientdet_lite0", config)
    cells = 12**2 + 6**2 + 3**2 + 2**2 + 1
    assert model.output["boxes"].shape == (None, 9 * cells, 4)
    assert model.output["scores"].shape == (None, 9 * cells, 3)


def test_table_holds_all_variants():
    for name, variant in VARIANTS.items():
        head = heads.HEADS[f"efficientdet_{name}"]
        config = head.config(classes=2, image_size=128, **head.defaults)
        assert (config.channels, config.cells) == (variant.channels, variant.cells)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fusion": "fats"}, "Did you mean 'fast'"),
        ({"suppression": "sof"}, "Did you mean 'soft'"),
        ({"box_loss": "hubert"}, "Did you mean 'huber'"),
        ({"levels": 2}, "levels >= 3"),
        ({"classes": 0}, "classes >= 1"),
        ({"anchors": efficientdet.OctaveAnchorConfig(levels=4)}, "levels=5"),
    ],
)
def test_config_refuses(options, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(TINY, **options)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="EfficientDetConfig the image_size"):
        heads.attach(maps(96), "efficientdet_lite0", TINY)
    c3, c4 = keras.Input((9, 9, 8)), keras.Input((4, 4, 8))
    with pytest.raises(ValueError, match="maps that halve"):
        bifpn.bifpn([c3, c4], bifpn.BiFPNConfig(channels=8, cells=1, levels=2))


@pytest.mark.parametrize("suppression", nms.KINDS)
def test_options_of_suppression(suppression):
    """Two classes on one box: both stay, or one if classes suppress each other."""
    count = len(efficientdet.default_boxes(TINY))
    scores = np.full((1, count, 3), -9.0, "float32")
    scores[0, 0, :2] = 2.0, 1.0
    raw = {"boxes": np.zeros((1, count, 4), "float32"), "scores": scores}
    found = {}
    for agnostic in (False, True):
        config = dataclasses.replace(
            TINY,
            suppression=suppression,
            class_agnostic=agnostic,
            score_threshold=0.3,
        )
        result = efficientdet.detect(raw, config)
        found[agnostic] = np.asarray(result.labels)[0][: int(result.count[0])].tolist()
    assert found == {False: [0, 1], True: [0]}
