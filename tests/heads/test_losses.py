"""Losses: values by definition, mining, gradients, serialisation."""

import json

import keras
import numpy as np
import pytest

from keras_lightnets.heads.losses import (
    BoxLoss,
    FocalLoss,
    MultiboxLoss,
    class_balanced_weights,
)

BATCH, ANCHORS, CLASSES = 3, 40, 4


def labels_with(positives, seed=0, ignored=0):
    """Labels with the given number of objects per image."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((len(positives), ANCHORS), "int32")
    for row, count in zip(labels, positives, strict=True):
        place = rng.permutation(ANCHORS)
        row[place[:count]] = rng.integers(1, CLASSES + 1, count)
        row[place[count : count + ignored]] = -1
    return labels


def logits(columns, seed=1, scale=2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (BATCH, ANCHORS, columns)).astype("float32")


def gradient(loss, y_true, y_pred):
    """Gradient of the loss with respect to the prediction, on the active backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        y_pred = tf.constant(y_pred)
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(tf.constant(y_true), y_pred)
        return tape.gradient(value, y_pred).numpy()
    import jax

    return np.asarray(jax.grad(lambda y: loss(y_true, y))(y_pred))


def entropies(labels, values):
    shifted = values - values.max(-1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_prob, np.maximum(labels, 0)[..., None], -1)[..., 0]


def test_multibox_by_definition():
    labels, values = labels_with([2, 5, 0], ignored=3), logits(CLASSES + 1)
    each = entropies(labels, values)
    total = 0.0
    for row, cost in zip(labels, each, strict=True):
        mined = np.sort(cost[row == 0])[::-1][: 3 * (row > 0).sum()]
        total += cost[row > 0].sum() + mined.sum()
    assert float(MultiboxLoss()(labels, values)) == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_mining_counts(tied):
    labels = labels_with([2, 5, 0], ignored=4)
    values = logits(CLASSES + 1) * (0.0 if tied else 1.0)
    grads = gradient(MultiboxLoss(), labels, values)
    used = np.abs(grads).sum(-1) > 0
    assert (used & (labels == 0)).sum(1).tolist() == [6, 15, 0]
    assert (used & (labels > 0)).sum(1).tolist() == [2, 5, 0]
    assert not (used & (labels < 0)).any()


def test_mining_takes_no_more_than_there_is():
    labels, values = labels_with([30, 0, 0]), logits(CLASSES + 1)
    each = entropies(labels, values)
    total = each[0].sum()  # 30 positives and all of the 10 negatives
    assert float(MultiboxLoss()(labels, values)) == pytest.approx(total / 30, rel=1e-5)


def test_min_negatives_use_images_without_objects():
    labels, values = labels_with([0, 0, 0]), logits(CLASSES + 1)
    assert float(MultiboxLoss()(labels, values)) == 0.0
    grads = gradient(MultiboxLoss(min_negatives=4), labels, values)
    assert (np.abs(grads).sum(-1) > 0).sum(1).tolist() == [4, 4, 4]


def test_focal_by_definition():
    labels, values = labels_with([2, 5, 0], ignored=3), logits(CLASSES, scale=3.0)
    total = 0.0
    for anchor in np.ndindex(BATCH, ANCHORS):
        for column in range(CLASSES):
            prob = 1.0 / (1.0 + np.exp(-np.float64(values[(*anchor, column)])))
            hit = labels[anchor] == column + 1
            right, alpha = (prob, 0.25) if hit else (1.0 - prob, 0.75)
            if labels[anchor] >= 0:
                total -= alpha * (1.0 - right) ** 2 * np.log(right)
    assert float(FocalLoss()(labels, values)) == pytest.approx(total / 7, rel=1e-4)


def test_focal_without_focus_is_cross_entropy():
    labels, values = labels_with([3, 3, 3]), logits(CLASSES) * 20.0
    target = (labels[..., None] == np.arange(1, CLASSES + 1)).astype("float64")
    values64 = values.astype("float64")
    total = (np.logaddexp(0, values64) - values64 * target).sum() / 9
    loss = FocalLoss(alpha=-1.0, gamma=0.0)
    assert float(loss(labels, values)) == pytest.approx(total, rel=1e-5)
    assert np.isfinite(gradient(FocalLoss(), labels, values)).all()


def box_target(positives):
    rng = np.random.default_rng(4)
    target = rng.normal(0, 1, (BATCH, ANCHORS, 5))
    target[..., 4] = labels_with(positives) > 0
    return target.astype("float32")


def test_smooth_l1_by_definition():
    target, pred = box_target([2, 5, 0]), logits(4)
    error = np.abs(target[..., :4] - pred)
    each = np.where(error < 1, error**2 / 2, error - 0.5).sum(-1)
    expected = (each * target[..., 4]).sum() / 7
    assert float(BoxLoss()(target, pred)) == pytest.approx(expected, rel=1e-5)
    grads = gradient(BoxLoss(), target, pred)
    np.testing.assert_array_equal(np.abs(grads).sum(-1) > 0, target[..., 4] > 0)


def test_huber_by_definition():
    target, pred = box_target([2, 5, 0]), logits(4)
    error = np.abs(target[..., :4] - pred)
    each = np.where(error < 0.1, error**2 / 2, 0.1 * (error - 0.05)).sum(-1)
    expected = 3.0 * (each * target[..., 4]).sum() / 7
    loss = BoxLoss("huber", weight=3.0, delta=0.1)
    assert float(loss(target, pred)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="delta > 0"):
        BoxLoss("huber", delta=0.0)


def test_giou_loss():
    target = box_target([2, 5, 1])
    loss = BoxLoss("giou")
    assert float(loss(target, target[..., :4])) == pytest.approx(0.0, abs=1e-5)
    far = target[..., :4] + np.array([500.0, 0, 0, 0], "float32")
    assert 1.0 < float(loss(target, far)) < 2.0
    # An anchor's frame does not matter: the same boxes seen from anchor 2 x 3.
    wide = target.copy()
    wide[..., 2:4] -= 5.0 * np.log([2.0, 3.0])
    wide[..., :2] /= [2.0, 3.0]
    pred = logits(4, scale=1.0)
    moved = pred.copy()
    moved[..., 2:4] -= 5.0 * np.log([2.0, 3.0])
    moved[..., :2] /= [2.0, 3.0]
    assert float(loss(wide, moved)) == pytest.approx(
        float(loss(target, pred)), rel=1e-4
    )


@pytest.mark.parametrize(
    ("loss", "columns"),
    [
        (BoxLoss(), 4),
        (BoxLoss("giou"), 4),
        (MultiboxLoss(), CLASSES + 1),
        (MultiboxLoss(class_weights=(1.0, 2.0, 0.5, 1.0)), CLASSES + 1),
        (FocalLoss(), CLASSES),
    ],
)
def test_gradient_equals_differences(loss, columns):
    pred = logits(columns, scale=1.0)
    target = box_target([2, 5, 1]) if columns == 4 and isinstance(loss, BoxLoss) else 0
    target = target if isinstance(loss, BoxLoss) else labels_with([2, 5, 1])
    grads = gradient(loss, target, pred)
    direction = np.random.default_rng(9).normal(0, 1, pred.shape).astype("float32")
    step = 2e-3
    up, down = (float(loss(target, pred + s * step * direction)) for s in (1, -1))
    expected = (up - down) / (2 * step)
    assert (grads * direction).sum() == pytest.approx(expected, rel=0.02, abs=0.01)


def test_class_weights_scale_objects_only():
    labels, values = labels_with([6, 6, 6]), logits(CLASSES + 1)
    each = entropies(labels, values)
    plain = float(MultiboxLoss()(labels, values))
    weighted = float(MultiboxLoss(class_weights=(3.0, 1, 1, 1))(labels, values))
    extra = 2.0 * each[labels == 1].sum() / 18
    assert extra > 0
    assert weighted - plain == pytest.approx(extra, rel=1e-3)
    columns = FocalLoss(class_weights=(1, 0, 0, 0))
    grads = gradient(columns, labels, logits(CLASSES))
    assert (grads[..., 0] != 0).all()
    assert not grads[..., 1:].any()


def test_sample_weight_and_batch_normalisation():
    labels, values = labels_with([2, 5, 3]), logits(CLASSES + 1)
    loss = MultiboxLoss()
    parts = [
        float(loss(labels, values, sample_weight=np.eye(3, dtype="float32")[i]))
        for i in range(3)
    ]
    assert sum(parts) == pytest.approx(float(loss(labels, values)), rel=1e-5)
    alone = float(loss(labels[1:2], values[1:2]))
    assert parts[1] == pytest.approx(alone * 5 / 10, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        BoxLoss("giou", weight=2.0, box_weights=(1, 1, 1, 1)),
        BoxLoss("huber", delta=0.1),
        MultiboxLoss(2.0, 5, class_weights=[1.0, 2.0], weight=0.5, name="mine"),
        FocalLoss(0.5, 1.0, class_weights=np.ones(3)),
    ],
)
def test_losses_serialise(loss):
    record = json.loads(json.dumps(keras.losses.serialize(loss)))
    again = keras.losses.deserialize(record)
    assert type(again) is type(loss)
    assert json.dumps(again.get_config()) == json.dumps(loss.get_config())


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.function is TensorFlow's"
)
@pytest.mark.parametrize("known", [True, False])
def test_inside_a_tensorflow_function(known):
    """As plain callables in a training step of a tf_keras model."""
    import tensorflow as tf

    target, labels = box_target([2, 5, 0]), labels_with([2, 5, 0])
    pred = {"boxes": logits(4), "scores": logits(CLASSES + 1)}
    parts = {"boxes": BoxLoss("giou"), "scores": MultiboxLoss()}
    batch, anchors = (BATCH, ANCHORS) if known else (None, None)

    @tf.function(
        input_signature=[
            tf.TensorSpec((batch, anchors, 5)),
            tf.TensorSpec((batch, anchors), tf.int32),
            tf.TensorSpec((batch, anchors, 4)),
            tf.TensorSpec((batch, anchors, CLASSES + 1)),
        ]
    )
    def step(boxes, scores, pred_boxes, pred_scores):
        return parts["boxes"](boxes, pred_boxes) + parts["scores"](scores, pred_scores)

    value = step(target, labels, pred["boxes"], pred["scores"])
    expected = float(parts["boxes"](target, pred["boxes"]))
    expected += float(parts["scores"](labels, pred["scores"]))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_unknown_kind():
    with pytest.raises(ValueError, match="Did you mean 'giou'"):
        BoxLoss("gio")


def test_class_balanced_weights():
    weights = class_balanced_weights([10, 1000, 0], beta=0.99)
    # Effective numbers (1 - 0.99^n) / 0.01: 9.56 and 99.996.
    assert weights[0] / weights[1] == pytest.approx(99.9957 / 9.5618, rel=1e-3)
    assert weights[:2].mean() == pytest.approx(1.0)
    assert weights[2] == 1.0
    np.testing.assert_allclose(class_balanced_weights([3, 9], beta=0.0), 1.0)
    with pytest.raises(ValueError, match="beta < 1"):
        class_balanced_weights([1], beta=1.0)
