"""Weights of a small made-up family: every way in, and every way to fail."""

import dataclasses
import fnmatch
import hashlib
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_lightnets import _weights, layers
from keras_lightnets._application import Family, make_application
from keras_lightnets._checkpoints import convert, download, readers, store
from keras_lightnets._errors import WeightsError
from keras_lightnets._layout import Layout
from keras_lightnets._spec import IMAGENET, ModelSpec, Weights

SIZE = (32, 32, 3)
PARTS = ("stem", "stage1_block1", "stage2_block1", "top")


def build(spec, x, output_stride):
    maps = {}
    x = maps["c1"] = layers.conv_bn(x, 8, 3, spec, "stem", stride=2)
    x = maps["c2"] = layers.depthwise_bn(x, 3, spec, "stage1_block1", stride=2)
    x = layers.activate(x, "prelu", "stage2_block1")
    x = maps["c3"] = layers.conv_bn(x, 8, 3, spec, "stage2_block1", groups=4)
    return {**maps, "features": layers.conv_bn(x, 6, 1, spec, "top")}


def names(separator):
    def of(spec):
        found = {}
        for part in PARTS:
            for kind in ("conv", "bn"):
                found[f"{part}_{kind}"] = f"net{separator}{part}{separator}{kind}"
        found["stage2_block1_act"] = f"net{separator}act"
        return found | {"top_classifier": "head"}

    return of


def weights_entry(tag, url, **changes):
    return Weights(
        **{
            "tag": tag,
            "url": url,
            "layout": "torchlike",
            "licence": "MIT",
            "source": "a test",
            **changes,
        }
    )


TORCHLIKE = weights_entry(
    "torch_in1k",
    "https://example.invalid/torch.safetensors",
    preprocessing=IMAGENET,
    changes=(("padding", "symmetric"), ("bn_epsilon", 1e-5)),
)
BACKGROUND = weights_entry(
    "background", "https://example.invalid/background.safetensors", class_offset=1
)
LICENSED = weights_entry(
    "licensed",
    "https://example.invalid/licensed.safetensors",
    licence="CC-BY-NC-4.0",
    accept_licence=True,
)
SPEC = ModelSpec(
    name="tiny",
    function="Tiny",
    rows=(),
    reference="none",
    default_size=32,
    dropout=0.0,
    weights=(TORCHLIKE, BACKGROUND, LICENSED),
)
LAYOUTS = {
    "torchlike": Layout(names=names(".")),
    "keraslike": Layout(names=names("_"), kind="keras"),
}
FAMILY = Family(specs=(SPEC,), build=build, layouts=LAYOUTS)
Tiny = make_application(SPEC, FAMILY)


def random_values(model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        f"{layer.name}/{v.name}": rng.uniform(0.1, 1, v.shape).astype("float32")
        for layer in model.layers
        for v in layer.weights
    }


def torch_state(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write our tensors as PyTorch would; independent of the code under test."""
    leaf = {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
        "alpha": "weight",
        "kernel": "weight",
        "bias": "bias",
    }
    state = {}
    for key, value in own.items():
        layer, variable = key.split("/")
        if layer == "stage1_block1_conv":
            value = value.transpose(2, 3, 0, 1)
        elif layer == "top_classifier" and variable == "kernel":
            value = value.T
        elif variable == "kernel":
            value = value.transpose(3, 2, 0, 1)
        elif variable == "alpha":
            value = value.reshape(-1)
        prefix = names(".")(SPEC)[layer]
        state[f"{prefix}.{leaf[variable]}"] = np.ascontiguousarray(value)
        if variable == "gamma":
            state[f"{prefix}.num_batches_tracked"] = np.array([7], "int64")
    return state


@pytest.fixture(scope="module")
def own() -> dict[str, np.ndarray]:
    return random_values(Tiny(weights=None, input_shape=SIZE))


@pytest.fixture
def torch_file(own, tmp_path, monkeypatch) -> pathlib.Path:
    """A published file in a mirror folder; the network is off."""
    monkeypatch.setenv(download.HOME, str(tmp_path / "home"))
    monkeypatch.setenv(download.MIRROR, str(tmp_path / "mirror"))
    monkeypatch.setenv(download.OFFLINE, "1")
    path = tmp_path / "mirror" / "torch.safetensors"
    path.parent.mkdir()
    save_file(torch_state(own), path)
    return path


def values_of(model) -> dict[str, np.ndarray]:
    return {
        f"{layer.name}/{v.name}": np.asarray(v)
        for layer in model.layers
        for v in layer.weights
    }


def same(model, own) -> bool:
    values = values_of(model)
    return bool(values) and all(np.array_equal(values[k], own[k]) for k in values)


def epsilons(model) -> set[float]:
    return {layer.epsilon for layer in model.layers if hasattr(layer, "epsilon")}


def test_published_weights_come_with_their_numerics(torch_file, own):
    model = Tiny(weights="imagenet", input_shape=SIZE)
    assert same(model, own)
    assert epsilons(model) == {1e-5}
    assert any(layer.name == "stem_pad" for layer in model.layers)
    np.testing.assert_allclose(
        model.get_layer("normalise").scale, 1 / np.array(IMAGENET.std)
    )
    assert epsilons(Tiny(weights=None, input_shape=SIZE)) == {1e-3}


def test_second_load_uses_the_converted_file(torch_file, own, monkeypatch):
    Tiny(weights="torch_in1k", input_shape=SIZE)
    read = []
    kept = readers.read
    monkeypatch.setattr(readers, "read", lambda p: read.append(p) or kept(p))
    assert same(Tiny(weights="torch_in1k", input_shape=SIZE), own)
    assert [p.parent.name for p in read] == ["converted"]
    read[0].write_bytes(b"damaged in the meantime")
    assert same(Tiny(weights="torch_in1k", input_shape=SIZE), own)


def test_another_file_under_the_same_name_is_converted_anew(torch_file, own):
    Tiny(weights="torch_in1k", input_shape=SIZE)
    changed = {key: value + 1 for key, value in own.items()}
    save_file(torch_state(changed), torch_file)
    assert same(Tiny(weights="torch_in1k", input_shape=SIZE), changed)


def test_wrong_hash_raises_before_anything_is_read(torch_file, monkeypatch):
    bad = dataclasses.replace(TORCHLIKE, hash="sha256:" + "0" * 64)
    monkeypatch.setattr(readers, "read", lambda path: pytest.fail("was read"))
    with pytest.raises(WeightsError, match="not the published file"):
        _weights.resolve(dataclasses.replace(SPEC, weights=(bad,)), LAYOUTS, "imagenet")
    good = hashlib.sha256(torch_file.read_bytes()).hexdigest()
    fine = dataclasses.replace(TORCHLIKE, hash=f"sha256:{good[:8]}")
    monkeypatch.undo()
    monkeypatch.setenv(download.MIRROR, str(torch_file.parent))
    spec = dataclasses.replace(SPEC, weights=(fine,))
    assert _weights.resolve(spec, LAYOUTS, "imagenet").tag == "torch_in1k"


def test_background_class_is_dropped(torch_file, own):
    state = torch_state(own)
    for key in ("head.weight", "head.bias"):
        state[key] = np.concatenate([np.full_like(state[key][:1], 9), state[key]])
    path = torch_file.with_name("background.safetensors")
    save_file(state, path)
    assert same(Tiny(weights="background", input_shape=SIZE), own)
    assert same(Tiny(weights=path, input_shape=SIZE), own)


def test_licence_must_be_accepted(torch_file, own, monkeypatch):
    shutil.copy(torch_file, torch_file.with_name("licensed.safetensors"))
    with pytest.raises(WeightsError, match="CC-BY-NC-4.0.*ACCEPT_LICENCE"):
        Tiny(weights="licensed", input_shape=SIZE)
    assert _weights.resolve(SPEC, LAYOUTS, "licensed", accept_licence=True)
    monkeypatch.setenv(_weights.ACCEPT, "MIT, cc-by-nc-4.0")
    assert same(Tiny(weights="licensed", input_shape=SIZE), own)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("ending", [".weights.h5", ".keras", ".safetensors"])
def test_own_files_come_back_with_their_numerics(own, tmp_path, ending, padding):
    options = {"bn_epsilon": 1e-5} if padding == "symmetric" else {}
    model = Tiny(weights=None, input_shape=SIZE, padding=padding, **options)
    for layer in model.layers:
        for v in layer.weights:
            v.assign(own[f"{layer.name}/{v.name}"])
    path = tmp_path / f"own{ending}"
    if ending == ".keras":
        model.save(path)
    elif ending == ".safetensors":
        _weights.save(model, path)
    else:
        model.save_weights(path)
    again = Tiny(weights=path, input_shape=SIZE)
    assert same(again, own)
    assert epsilons(again) == epsilons(model)
    pads = [la.name for la in again.layers if la.name.endswith("_pad")]
    assert bool(pads) == (padding == "symmetric")
    assert same(Tiny(weights=str(path), include_top=False, input_shape=SIZE), own)
    assert same(Tiny(weights=path, endpoints=("c2",), input_shape=SIZE), own)


def test_publishers_file_by_path(torch_file, own, tmp_path):
    moved = tmp_path / "x.bin"
    shutil.copy(torch_file, moved)
    model = Tiny(weights=moved, input_shape=SIZE)
    assert same(model, own)
    assert epsilons(model) == {1e-5}
    assert same(Tiny(weights=moved, include_top=False, input_shape=SIZE), own)


def test_file_that_fits_two_published_sets_is_told_apart_or_said(
    torch_file, own, caplog
):
    assert epsilons(Tiny(weights=torch_file, input_shape=SIZE)) == {1e-5}
    assert "alike" not in caplog.text
    named = torch_file.with_name("licensed.safetensors")
    shutil.copy(torch_file, named)
    assert epsilons(Tiny(weights=named, input_shape=SIZE)) == {1e-3}
    unknown = torch_file.with_name("mine.safetensors")
    shutil.copy(torch_file, unknown)
    assert epsilons(Tiny(weights=unknown, input_shape=SIZE)) == {1e-5}
    assert "'torch_in1k' and 'background'" in caplog.text


def test_layout_of_a_relative_lends_its_numerics():
    from keras_lightnets import get_spec
    from keras_lightnets.backbones import mobilenet_v2

    spec = get_spec("mobilenet_v2_075")
    assert "timm" not in {entry.layout for entry in spec.weights}
    found = convert.candidates(spec, mobilenet_v2.LAYOUTS, _weights._relatives(spec))
    lent = [c.entry for c in found if c.layout == "timm"]
    assert [dict(e.changes)["padding"] for e in lent] == ["symmetric"]
    assert [e.tag for e in lent] == [""]


def test_keras_like_file_by_path(own, tmp_path):
    import h5py

    table = names("_")(SPEC)
    with h5py.File(tmp_path / "k.h5", "w") as file:
        grouped: dict[str, list[str]] = {}
        for key in own:
            grouped.setdefault(key.split("/")[0], []).append(key)
        file.attrs["layer_names"] = [table[layer].encode() for layer in grouped]
        for layer, keys in grouped.items():
            group = file.create_group(table[layer])
            written = [f"{table[layer]}/{key.split('/')[1]}:0" for key in keys]
            group.attrs["weight_names"] = [name.encode() for name in written]
            for name, key in zip(written, keys, strict=True):
                group[name] = own[key]
    model = Tiny(weights=tmp_path / "k.h5", input_shape=SIZE)
    assert same(model, own)
    assert epsilons(model) == {1e-3}


def test_finetuned_classifier_of_a_publishers_file(own, torch_file):
    state = torch_state(own)
    state["head.weight"], state["head.bias"] = (
        state["head.weight"][:10],
        state["head.bias"][:10],
    )
    save_file(state, torch_file.with_name("ten.safetensors"))
    path = torch_file.with_name("ten.safetensors")
    assert Tiny(weights=path, classes=10, input_shape=SIZE).output.shape == (None, 10)
    with pytest.raises(WeightsError, match="classifies 10 classes.*classes=10"):
        Tiny(weights=path, input_shape=SIZE)


def test_weights_after_a_layer_of_the_callers(own, torch_file):
    import keras

    image = keras.Input(SIZE)
    before = keras.layers.Conv2D(3, 1, name="callers")(image)
    model = Tiny(weights="imagenet", input_tensor=before, include_top=False)
    values = values_of(model)
    mine = {key: value for key, value in values.items() if "callers" not in key}
    assert len(values) > len(mine)
    assert all(np.array_equal(mine[key], own[key]) for key in mine)


def refused(state, path) -> str:
    save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        Tiny(weights=path, input_shape=SIZE)
    return str(caught.value)


def test_missing_and_extra_layers_are_listed(own, tmp_path):
    state = torch_state(own)
    state["stranger.weight"] = np.zeros((2, 2), "float32")
    text = refused(state, tmp_path / "a.safetensors")
    assert "'torchlike'" in text and "stranger" in text and "own names" in text
    state = torch_state(own)
    del state["net.stem.conv.weight"]
    assert "net.stem.conv" in refused(state, tmp_path / "b.safetensors")


def test_missing_tensor_and_wrong_shape_are_listed(own, tmp_path):
    state = torch_state(own)
    del state["net.stem.bn.bias"]
    text = refused(state, tmp_path / "a.safetensors")
    assert "Missing: stem_bn/beta" in text
    state = torch_state(own)
    state["net.stem.conv.bias"] = np.zeros(8, "float32")
    text = refused(state, tmp_path / "b.safetensors")
    assert "Left over: stem_conv/bias" in text
    state = torch_state(own)
    state["net.stem.conv.weight"] = state["net.stem.conv.weight"][:4]
    text = refused(state, tmp_path / "c.safetensors")
    assert "stem_conv/kernel (3, 3, 3, 4) for (3, 3, 3, 8)" in text


def test_a_failed_load_changes_nothing(own, torch_file):
    source = _weights.resolve(SPEC, LAYOUTS, "imagenet")
    model = Tiny(weights=None, input_shape=SIZE, classes=7)
    before = values_of(model)
    with pytest.raises(WeightsError, match="classifies 1000 classes"):
        _weights.load(model, source)
    assert same(model, before)


def test_file_without_classifier_needs_include_top_false(own, tmp_path):
    state = {k: v for k, v in torch_state(own).items() if not k.startswith("head")}
    text = refused(state, tmp_path / "no_top.safetensors")
    assert "holds no classifier" in text
    path = tmp_path / "no_top.safetensors"
    assert same(Tiny(weights=path, include_top=False, input_shape=SIZE), own)


def test_saved_activation_is_compared(own, tmp_path):
    model = Tiny(weights=None, input_shape=SIZE)
    model.save(tmp_path / "own.keras")
    with pytest.raises(WeightsError, match="computes otherwise.*epsilon"):
        Tiny(weights=tmp_path / "own.keras", input_shape=SIZE, bn_epsilon=0.5)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ("imagnet", "Did you mean 'imagenet'.*'torch_in1k'.*'background'"),
        ("nowhere/net.pth", "no file"),
        ("", "Unknown weights ''"),
        (5, "must be None"),
        ("imagenet", "holds no torch.safetensors.*forbids the network.*Next step"),
    ],
)
def test_bad_weights_arguments(tmp_path, monkeypatch, weights, text):
    import re

    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(download.MIRROR, str(tmp_path / "empty"))
    monkeypatch.setenv(download.OFFLINE, "1")
    with pytest.raises(WeightsError) as caught:
        Tiny(weights=weights, input_shape=SIZE)
    assert re.search(text, str(caught.value), re.DOTALL)


def test_network_without_published_weights_names_those_with():
    with pytest.raises(WeightsError, match="No weights are published.*efficientnet_"):
        Tiny(input_shape=SIZE, width=2.0)


def test_conversion_is_kept_atomically(tmp_path, monkeypatch):
    monkeypatch.setenv(download.HOME, str(tmp_path))
    store.keep("a", {"x/kernel": np.ones(3, "float32")})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.safetensors"]
    np.testing.assert_array_equal(store.cached("a")["x/kernel"], np.ones(3))
    assert store.cached("b") is None


def test_every_published_set_can_be_asked_for():
    from keras_lightnets import _registry

    files: dict[str, str] = {}
    for name in _registry.list_models(weights=True):
        spec = _registry.get_spec(name)
        layouts = _registry.family_module(_registry.family_of(name)).LAYOUTS
        tags = [entry.tag for entry in spec.weights]
        assert len(set(tags)) == len(tags), name
        for entry in spec.weights:
            found = convert.published(spec, layouts, entry)
            whole = [
                theirs
                for ours, theirs in found.names.items()
                if not any(fnmatch.fnmatch(ours, rule[0]) for rule in found.pieces)
            ]
            assert len(set(whole)) == len(whole), (name, entry.tag)
            for url, expected in download._alternatives(entry):
                assert url.startswith(("https://", "pypi:")), (name, url)
                kind, _, digits = expected.partition(":")
                assert not expected or kind in download._ALGORITHMS, (name, expected)
                assert not expected or len(digits) >= download._LEAST_HASH
                if url.startswith("https://"):
                    file = download.file_name(url)
                    assert files.setdefault(file, url) == url, file
