"""The training loop on a network of one layer: NaN, optimiser, average, feed."""

import dataclasses
import json

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras_lightnets.tasks import callbacks, loop, run  # noqa: E402
from keras_lightnets.tasks.detector import DetectConfig  # noqa: E402
from keras_lightnets.tasks.schedules import make_optimizer  # noqa: E402


@dataclasses.dataclass
class Points:
    """Three batches per epoch of a line's points; one may hold a NaN."""

    broken: tuple[int, int] | None = None
    asked: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return 3

    def stream(self, epoch, step):
        while True:
            for number in range(step, 3):
                self.asked.append((epoch, number))
                rng = np.random.default_rng([epoch, number])
                x = rng.normal(size=(4, 2)).astype("float32")
                y = {"out": x.sum(1, keepdims=True)}
                if (epoch, number) == self.broken:
                    x = x * np.nan
                yield x, y
            epoch, step = epoch + 1, 0

    def names(self, epoch, step):
        return [f"e{epoch}s{step}.jpg"]


def line():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs))
    return keras.Model(inputs, {"out": keras.layers.Dense(1)(hidden)})


def job(source, **options):
    values = {"warmup_epochs": 0, "learning_rate": 0.05, "batch_size": 4, **options}
    config = DetectConfig(epochs=2, **values)
    return loop.Job(
        config=config,
        model=line(),
        twin=line(),
        loss={"out": keras.losses.MeanSquaredError()},
        source=source,
        evaluate=lambda model: {"mAP": float(np.abs(model.get_weights()[0]).sum())},
        monitor="mAP",
        meta={"labels": ["a"]},
    )


def test_nan_loss_stops_with_the_images_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(run.TrainingError, match=r"epoch 2, batch 2.*e1s1\.jpg"):
        loop.fit(job(Points(broken=(1, 1))), tmp_path)
    model = line()
    model.compile(make_optimizer(DetectConfig(epochs=2), model, 3), loss="mse")
    assert callbacks.load_state(tmp_path / "state.npz", model).epoch == 1
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert run.read_meta(tmp_path / "last.keras") == {"labels": ["a"]}
    loaded = keras.saving.load_model(tmp_path / "last.keras", compile=False)
    assert all(np.isfinite(w).all() for w in loaded.get_weights())


def test_exploding_rate_stops_too(tmp_path):
    with pytest.raises(run.TrainingError, match="loss became"):
        loop.fit(job(Points(), learning_rate=1e30, clip_norm=0), tmp_path)


def test_finished_run_has_history_and_monitored_best(tmp_path):
    record = loop.fit(job(Points()), tmp_path)
    assert [row["epoch"] for row in record.history] == [1, 2]
    assert record.best == max(row["mAP"] for row in record.history)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["last"]["mAP"] == record.history[-1]["mAP"]
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,") and len(lines) == 3
    assert record.history[1]["loss"] < record.history[0]["loss"]


def test_saved_model_is_the_average_and_training_goes_on_from_the_last(tmp_path):
    given = job(Points(), ema=0.9)
    optimizer = make_optimizer(given.config.replace(epochs=100), given.model, 3)
    given.model.compile(optimizer, loss=given.loss)
    seen = []
    for x, y in (next(Points().stream(0, i)) for i in (0, 1, 2)):
        given.model.train_on_batch(x, y)
        seen.append(given.model.get_weights())
    average = callbacks.averaged_weights(given.model)
    for before, after in zip(seen[-1], given.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    kernels = [weights[0] for weights in seen]
    wanted = kernels[0]
    for kernel in kernels[1:]:
        wanted = 0.9 * wanted + 0.1 * kernel
    np.testing.assert_allclose(average[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_shrinks_kernels_only(name):
    model = line()
    config = DetectConfig(optimizer=name, weight_decay=0.1, learning_rate=0.5, ema=0)
    optimizer = make_optimizer(config, model, 3)
    before = [np.array(v) for v in model.trainable_variables]
    zeros = [np.zeros(v.shape, "float32") for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        factor = 0.95 if len(variable.shape) > 1 else 1.0
        np.testing.assert_allclose(np.array(variable), old * factor, rtol=1e-6)


def test_feed_keeps_one_stream_through_epochs_and_starts_where_asked():
    source = Points()
    feed = loop.Feed(source, 4)
    for epoch in (4, 5):
        feed.epoch = epoch
        for index in range(feed.num_batches):
            assert feed[index][0].shape == (4, 2)
    assert source.asked == [(e, s) for e in (4, 5) for s in range(3)]
    again = loop.Feed(Points(), 4)[1]
    np.testing.assert_array_equal(again[0], next(source.stream(4, 1))[0])


def test_fit_takes_the_batches_in_the_sources_order(tmp_path):
    """Another order would depend on the process, so a resumed run would differ."""
    source = Points()
    given = job(source)
    for _ in range(3):  # Whatever Python's generator says.
        del source.asked[:]
        loop.fit(given, tmp_path)
        (tmp_path / "state.npz").unlink()
        # Some of the first were asked for already, to learn their shapes.
        assert source.asked[-6:] == [(e, s) for e in range(2) for s in range(3)]


def test_layers_up_to_a_level_and_unknown_level():
    inputs = keras.Input((8,))
    first = keras.layers.Dense(4, name="first")(inputs)
    second = keras.layers.Dense(4, name="second")(first)
    backbone = keras.Model(inputs, {"c1": first, "c2": second})
    loop.freeze(backbone, "c1", norms=False)
    frozen = {layer.name: not layer.trainable for layer in backbone.layers}
    assert frozen["first"] and not frozen["second"]
    with pytest.raises(ValueError, match="Unknown level to freeze 'c3'"):
        loop.freeze(backbone, "c3", norms=False)
