"""Batches depend on seed, epoch and step alone; bad images do not stop training."""

import itertools
import threading

import numpy as np
import pytest

from keras_lightnets.tasks.data import coco, synthetic
from keras_lightnets.tasks.data.augment import Augment
from keras_lightnets.tasks.data.images import ImageError
from keras_lightnets.tasks.data.loader import Loader, LoaderOptions

COUNT = 22


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    config = synthetic.SyntheticConfig(train=COUNT, val=3, size=96)
    paths = synthetic.write_shapes(tmp_path_factory.mktemp("shapes"), config)
    return coco.CocoDataset(paths["train"], paths["train_annotations"])


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    after = set(threading.enumerate()) - before
    assert [t.name for t in after if t.name.startswith("loader")] == []


class Broken:
    """A data set some of whose images cannot be read."""

    def __init__(self, dataset, bad):
        self.dataset, self.bad, self.reads = dataset, set(bad), []
        self.records = dataset.records

    def __len__(self):
        return len(self.dataset)

    def sample(self, index, target=None, fit="stretch"):
        self.reads.append(index)
        if index in self.bad:
            name = self.records[index].file_name
            raise ImageError("truncated_image", name, "cut off")
        return self.dataset.sample(index, target, fit)


def make(dataset, batch_size=5, preset="ssd", size=(64, 80), **options) -> Loader:
    chosen = {k: options.pop(k) for k in ("shuffle", "seed", "encode") if k in options}
    augment = Augment(preset, size)
    return Loader(
        dataset, augment, batch_size, options=LoaderOptions(**options), **chosen
    )


def equal(a, b) -> bool:
    keys = a[1].keys() | b[1].keys()
    return np.array_equal(a[0], b[0]) and all(
        np.array_equal(a[1][key], b[1][key]) for key in keys
    )


def all_equal(a, b) -> bool:
    return all(equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_have_the_promised_form(shapes):
    loader = make(shapes)
    batches = list(loader)
    assert len(batches) == len(loader) == COUNT // 5
    for images, targets in batches:
        assert images.shape == (5, 64, 80, 3) and images.dtype == np.uint8
        assert set(targets) == {"boxes", "labels", "crowd"}
        filled = targets["labels"] >= 0
        boxes = targets["boxes"][filled]
        assert (boxes >= 0).all() and (boxes <= 1).all() and filled.any()
        assert (targets["boxes"][~filled] == 0).all()
    rest = make(shapes, drop_remainder=False)
    assert len(rest) == 5 and [len(x) for x, _ in rest] == [5, 5, 5, 5, 2]


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_gives_the_same(shapes, workers):
    one, more = make(shapes, workers=1), make(shapes, workers=workers, prefetch=1)
    for _ in range(2):
        assert all_equal(one, more)


def test_seed_and_epoch_change_order_and_pictures(shapes):
    loader = make(shapes)
    first, second = list(loader), list(loader)
    assert not equal(first[0], second[0])
    assert not equal(first[0], next(iter(list(make(shapes, seed=1)))))
    orders = [tuple(loader.order(epoch)) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    still = make(shapes, shuffle=False)
    assert still.order(3).tolist() == list(range(COUNT))


def test_resume_continues_the_same_stream(shapes):
    whole = make(shapes).stream()
    steps = list(itertools.islice(whole, 11))
    whole.close()
    later = make(shapes, workers=3).stream(epoch=1, step=2)
    assert all_equal(steps[6:], itertools.islice(later, 5))
    later.close()
    epochs = make(shapes)
    epochs.set_epoch(2)
    assert equal(next(iter(list(epochs))), steps[8])


def test_names_tell_the_images_of_a_batch(shapes):
    loader = make(shapes, preset="none")
    by_name = {record.file_name: record for record in shapes.records}
    for epoch in range(2):
        for step, (_, targets) in enumerate(loader):
            names = loader.names(epoch, step)
            for row, name in enumerate(names):
                labels = targets["labels"][row]
                expected = by_name[name].labels.tolist()
                assert labels[labels >= 0].tolist() == expected
        assert (
            len(set(itertools.chain(*map(loader.names, [epoch] * 4, range(4))))) == 20
        )


def test_encode_makes_the_targets(shapes):
    seen = []

    def encode(boxes, labels, crowd):
        seen.append((boxes, labels, crowd))
        return {"count": np.int32(len(boxes)), "grid": np.zeros((3, 2), np.float32)}

    images, targets = next(iter(list(make(shapes, encode=encode, workers=1))))
    assert targets["count"].shape == (5,) and targets["grid"].shape == (5, 3, 2)
    assert targets["count"].tolist() == [len(boxes) for boxes, *_ in seen[:5]]
    for boxes, labels, crowd in seen:
        assert len(boxes) == len(labels) == len(crowd)
        assert boxes.dtype == np.float32 and crowd.dtype == bool
        assert (boxes >= 0).all() and (boxes <= 1).all()


def test_targets_follow_their_objects(shapes):
    loader = make(shapes, preset="none", size=(96, 96), shuffle=False)
    images, targets = next(iter(list(loader)))
    for row in range(5):
        record = shapes.records[row]
        count = len(record.boxes)
        height, width = record.size
        shares = record.boxes / [width, height, width, height]
        assert np.allclose(targets["boxes"][row, :count], shares, atol=1e-5)
        assert targets["labels"][row, :count].tolist() == record.labels.tolist()


@pytest.mark.parametrize("workers", [1, 4])
def test_bad_images_are_replaced_and_counted(shapes, workers, caplog):
    bad = {3, 4, 17}
    loader = make(Broken(shapes, bad), workers=workers)
    again = make(Broken(shapes, bad), workers=2)
    for epoch in range(2):
        assert all_equal(loader, again)
        order = loader.order(epoch)
        for step in range(len(loader)):
            names = loader.names(epoch, step)
            assert not {shapes.records[i].file_name for i in bad} & set(names)
            for row, name in enumerate(names):
                index = order[step * 5 + row]
                if index not in bad:
                    assert name == shapes.records[index].file_name
    assert len(loader.skipped) <= 3 and set(loader.skipped.values()) == {"cut off"}
    assert "Skipped image" in caplog.text


def test_only_bad_images_stop_with_a_reason(shapes):
    loader = make(Broken(shapes, range(COUNT)))
    with pytest.raises(ImageError, match="none of 22 can be read.*cut off"):
        next(iter(loader))


def test_an_error_in_a_worker_reaches_the_caller(shapes):
    def encode(boxes, labels, crowd):
        raise ZeroDivisionError("in the worker")

    with pytest.raises(ZeroDivisionError, match="in the worker"):
        list(make(shapes, encode=encode))


def test_dropping_an_iteration_ends_its_threads(shapes):
    before = set(threading.enumerate())
    loader = make(shapes, workers=3)
    stream = loader.stream()
    next(stream)
    started = set(threading.enumerate()) - before
    running = [t for t in started if t.name.startswith("loader")]
    assert running
    stream.close()
    assert not any(t.is_alive() for t in running)
    other = loader.stream()
    next(other)
    loader.close()
    assert len(list(itertools.islice(other, 50))) < 50


def test_balance_draws_rare_classes_more_often(shapes):
    rare = [i for i, r in enumerate(shapes.records) if i % 11 == 0]

    class Skewed(Broken):
        def __init__(self, dataset):
            super().__init__(dataset, ())
            self.records = tuple(
                coco.Record(
                    r.image_id,
                    r.file_name,
                    r.size,
                    r.boxes[:1],
                    np.array([1 if i in rare else 0], np.int32),
                    r.crowd[:1],
                    r.areas[:1],
                )
                for i, r in enumerate(dataset.records)
            )

    loader = make(Skewed(shapes), balance=True)
    drawn = np.concatenate([loader.order(epoch) for epoch in range(50)])
    share = np.isin(drawn, rare).mean()
    # 2 of 22 images, each sqrt(20 / 2) = 3.16 times as likely: 6.3 of 26.3.
    assert share == pytest.approx(0.24, abs=0.01)
    assert len(loader.order(0)) == COUNT
    assert np.array_equal(make(Skewed(shapes), balance=True).order(3), loader.order(3))


def test_cache_reads_once_and_keeps_to_its_limit(shapes):
    counted = Broken(shapes, ())
    held = make(counted, cache_bytes=2**24, drop_remainder=False)
    fresh = make(shapes, drop_remainder=False)
    for _ in range(3):
        assert all_equal(held, fresh)
    assert sorted(counted.reads) == list(range(COUNT))
    small = Broken(shapes, ())
    tight = make(small, cache_bytes=60_000)
    for _ in range(2):
        list(tight)
    assert 0 < tight._cache.bytes <= 60_000
    assert len(small.reads) > COUNT


def test_sizes_that_do_not_fit_are_refused(shapes):
    for size in (0, COUNT + 1):
        with pytest.raises(ValueError, match="batch_size must be 1 to 22"):
            make(shapes, size)
    assert len(make(shapes, 30, drop_remainder=False)) == 1


def test_a_file_damaged_during_training_is_skipped(tmp_path):
    config = synthetic.SyntheticConfig(train=6, val=1, size=96)
    paths = synthetic.write_shapes(tmp_path, config)
    data, report = coco.open_coco(paths["train"], paths["train_annotations"])
    assert report.problems == ()
    loader = make(data, 3)
    assert len(list(loader)) == 2 and loader.skipped == {}
    file = data.path(4)
    file.write_bytes(file.read_bytes()[:2000])
    data.path(1).unlink()
    assert [len(images) for images, _ in loader] == [3, 3]
    assert set(loader.skipped) == {"000002.jpg", "000005.jpg"}
    assert "ends too early" in loader.skipped["000005.jpg"]
    assert "no such file" in loader.skipped["000002.jpg"]


def test_keras_trains_on_the_stream(shapes):
    import keras

    def encode(boxes, labels, crowd):
        return {"count": np.float32(len(labels))}

    inputs = keras.Input((64, 80, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {"count": keras.layers.Dense(1, name="count")(x)}
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.05), loss={"count": "mse"})
    loader = make(shapes, preset="light", encode=encode)
    history = model.fit(
        loader.stream(),
        steps_per_epoch=len(loader),
        epochs=6,
        verbose=0,
        shuffle=False,
    )
    loader.close()
    losses = history.history["loss"]
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_real_photographs(shared):
    root = shared / "data" / "coco128"
    data, _ = coco.open_coco(
        root / "val2017", root / "annotations" / "instances_val2017.json"
    )
    loader = make(data, 16, size=(160, 160))
    images, targets = next(iter(list(loader)))
    assert images.shape == (16, 160, 160, 3) and images.std() > 20
    assert targets["labels"].max() < 80 and (targets["labels"] >= 0).sum() > 16
    plain = make(data, 16, size=(160, 160), reduced=False, preset="none")
    reduced = make(data, 16, size=(160, 160), preset="none")
    a, b = plain.batch(0, 0), reduced.batch(0, 0)
    assert np.abs(a[0].astype(int) - b[0]).mean() < 6
    assert np.allclose(a[1]["boxes"], b[1]["boxes"], atol=1e-2)
