"""Pixel loss against direct formulas."""

import keras
import numpy as np
import pytest

from keras_lightnets.heads.seg_losses import HARD_SCORE, PixelLoss


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (2, 6, 8, 4)).astype("float32")
    labels = rng.integers(0, 4, (2, 6, 8)).astype("uint8")
    labels[0, :2] = 255
    return labels, logits


def entropies(labels, logits):
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    index = np.where(labels == 255, 0, labels)[..., None].astype(int)
    return -np.take_along_axis(log_prob, index, -1)[..., 0]


def test_mean_of_counted_pixels_and_class_weights(case):
    labels, logits = case
    each, counted = entropies(labels, logits), labels != 255
    found = float(PixelLoss()(labels, logits))
    assert found == pytest.approx(each[counted].mean(), rel=1e-5)
    weights = np.array([0.5, 1, 2, 4])
    factor = np.where(counted, weights[np.where(counted, labels, 0)], 0)
    expected = (each * factor).sum() / factor.sum()
    found = float(PixelLoss(class_weights=weights.tolist())(labels, logits))
    assert found == pytest.approx(expected, rel=1e-5)


def test_hard_pixels_only(case):
    labels, logits = case
    each = np.where(labels == 255, 0.0, entropies(labels, logits))
    kept = []
    for image in each:
        least = np.sort(image.ravel())[-int(np.ceil(0.25 * image.size))]
        kept.append(image >= min(least, -np.log(HARD_SCORE)))
    kept = np.stack(kept) & (labels != 255)
    found = float(PixelLoss(hard_share=0.25)(labels, logits))
    assert found == pytest.approx(each[kept].mean(), rel=1e-5)
    assert found > float(PixelLoss()(labels, logits))


def test_dice_is_zero_for_right_and_large_for_wrong_pixels(case):
    labels, _ = case
    index = np.where(labels == 255, 0, labels)
    right = 30 * np.eye(4, dtype="float32")[index]
    only_dice = PixelLoss(dice=1.0)
    assert float(only_dice(labels, right)) == pytest.approx(0, abs=1e-3)
    wrong = 30 * np.eye(4, dtype="float32")[(index + 1) % 4]
    extra = float(only_dice(labels, wrong)) - float(PixelLoss()(labels, wrong))
    assert 0.7 < extra <= 1


def test_coarse_logits_are_resized_and_smoothing_spreads(case):
    labels, logits = case
    coarse = logits[:, ::2, ::2]
    fine = np.asarray(keras.ops.image.resize(coarse, (6, 8), interpolation="bilinear"))
    loss = PixelLoss(label_smoothing=0.1)
    assert float(loss(labels, coarse)) == pytest.approx(
        float(loss(labels, fine)), rel=1e-5
    )
    same = np.zeros((1, 2, 2, 4), "float32")
    assert float(loss(np.zeros((1, 2, 2)), same)) == pytest.approx(np.log(4), rel=1e-5)


def test_all_void_is_zero_and_config_round_trips(case):
    _, logits = case
    void = np.full((2, 6, 8), 255)
    loss = PixelLoss(class_weights=(1, 2, 3, 4), hard_share=0.5, dice=0.3)
    assert float(loss(void, logits)) == 0
    again = PixelLoss.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    with pytest.raises(ValueError, match="hard_share"):
        PixelLoss(hard_share=0)
