"""What every network of the registry must hold; each check takes its spec.

The checks are functions so that a new family gets all of them by being listed in
the registry. They ask the spec for capabilities, never the name.
"""

import fnmatch
import functools
import inspect
import re

import keras
import numpy as np
from keras import ops

import keras_lightnets
from keras_lightnets import cost
from keras_lightnets._registry import family_module, family_of

SIZE = 64
NAMES = re.compile(
    r"^(image|normalise|(stem|top|stage\d+_block\d+)(_[a-z0-9]+)*_"
    r"(conv|bn|act|pad|add|concat|pool|scale|flatten|dropout|classifier|probabilities"
    r"|split|swap|shuffle|select))$"
)
FIRST_ARGUMENTS = list(
    inspect.signature(keras.applications.EfficientNetB0).parameters.items()
)[:8]


def seeded_values(model):
    """Give every weight values drawn from a seed that is its own path."""
    for layer in model.layers:
        for variable in layer.weights:
            if "int" in variable.dtype:
                continue  # indices are no numbers to draw
            key = f"{layer.name}/{variable.name}".encode()
            random = np.random.RandomState(np.frombuffer(key, "uint8").astype("uint32"))
            shape = tuple(variable.shape)
            if len(shape) > 1:
                # The last axis of a depthwise kernel (h, w, in, 1) is no fan-in.
                fan_in = np.prod(shape[:2] if shape[-1] == 1 else shape[:-1])
                value = random.randn(*shape) / np.sqrt(fan_in)
            elif variable.name in ("gamma", "moving_variance"):
                value = random.uniform(0.7, 1.3, shape)
            else:
                value = random.uniform(-0.2, 0.2, shape)
            variable.assign(value.astype("float32"))


def images(height=SIZE, width=SIZE, count=2):
    random = np.random.RandomState(3)
    return random.randint(0, 256, (count, height, width, 3)).astype("float32")


def build(spec, **options):
    return keras_lightnets.create_model(spec.name, weights=None, **options)


@functools.lru_cache(maxsize=2)
def logits_model(spec):
    """Return the network at the small size, shared by the checks, seeded afresh."""
    return build(spec, input_shape=(SIZE, SIZE, 3), classifier_activation=None)


def levels(spec):
    return [level.name for level in spec.levels]


def build_maps(spec, output_stride):
    """Build all feature maps for any size, or for odd sides where it must be known."""
    return build(
        spec,
        include_top=False,
        endpoints=levels(spec),
        output_stride=output_stride,
        input_shape=(None, None, 3) if spec.dynamic_size else (67, 93, 3),
    )


@functools.lru_cache(maxsize=2)
def maps_model(spec):
    """Return the network of all feature maps, shared by the checks."""
    return build_maps(spec, 32)


def deepest(spec):
    """Return "c5", or the last map of a network that ends at a smaller stride."""
    return max(name for name in levels(spec) if name[1:].isdigit())


def facts(spec):
    """Return what the golden file records of a network."""
    size = (spec.default_size, spec.default_size, 3)
    model = build(spec, input_shape=size)
    maps = maps_model(spec)
    whole = cost.total(model)
    return {
        "params": whole.params,
        "madds": whole.madds,
        "layers": len(model.layers),
        "channels": {key: value.shape[-1] for key, value in maps.output.items()},
        "fingerprint": fingerprint(spec),
    }


def fingerprint(spec):
    """Return a few logits for weights and images from fixed seeds."""
    model = logits_model(spec)
    seeded_values(model)
    logits = np.asarray(model(images(count=1), training=False))[0]
    return [round(float(v), 5) for v in logits[::200]]


def check_signature(spec):
    function = getattr(keras_lightnets, spec.function)
    own = list(inspect.signature(function).parameters.items())[:8]
    for (name, ours), (theirs_name, theirs) in zip(own, FIRST_ARGUMENTS, strict=True):
        assert name == theirs_name
        if name != "name":
            assert ours.default == theirs.default, name
    assert function.__name__ == spec.function
    assert "Returns:" in function.__doc__


def check_flat_and_named(spec):
    model = logits_model(spec)
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)
    assert [name for name in names if not NAMES.match(name)] == []
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)


def check_bias_only_without_norm(spec):
    model = logits_model(spec)
    names = {layer.name for layer in model.layers}
    for layer in model.layers:
        if layer.name.endswith("_conv"):
            normed = layer.name[: -len("conv")] + "bn" in names
            odd = any(fnmatch.fnmatch(layer.name, p) for p in spec.bias_exceptions)
            assert layer.use_bias is (normed is odd), layer.name


def check_layouts_in_building_order(spec):
    """Loading part of a network needs to know what stands behind it."""
    layouts = family_module(family_of(spec.name)).LAYOUTS
    # Blocks, not layers: within one, branches have no order.
    part = re.compile(r"^[^_]+_[^_]+")
    built = [layer.name for layer in logits_model(spec).layers if layer.weights]
    expected = list(dict.fromkeys(part.match(name)[0] for name in built))
    for name, layout in layouts.items():
        named = list(dict.fromkeys(part.match(key)[0] for key in layout.names(spec)))
        assert named == expected, name


def check_endpoints(spec, golden):
    """Check channels and strides, also for sides that no stride divides."""
    for output_stride in spec.output_strides:
        whole = output_stride == 32
        model = maps_model(spec) if whole else build_maps(spec, output_stride)
        found = model(images(67, 93, 1), training=False)
        assert list(found) == levels(spec)
        for level in spec.levels:
            stride = level.stride if whole else min(level.stride, output_stride)
            channels = golden["channels"][level.name]
            count, *sides, depth = found[level.name].shape
            assert (count, depth) == (1, channels), level.name
            for side, image in zip(sides, (67, 93), strict=True):
                short = -(-image // stride) - side
                # An unpadded 7x7 stem loses three.
                allowed = 0 if spec.exact_strides else 3
                assert 0 <= short <= allowed, level.name


def check_dilation_keeps_what_it_computes(spec):
    """A dilated network computes the strided one's values, and more between.

    With symmetric padding the strided grid is a subset of the dense one. Squeeze
    gates average over the grid, so only networks without them are compared.
    """
    last = deepest(spec)
    changes = {"padding": "symmetric", "endpoints": (last,), "include_top": False}
    strided, dense = (
        build(spec, input_shape=(65, 65, 3), output_stride=s, **changes)
        for s in (32, 8)
    )
    for model in (strided, dense):
        seeded_values(model)
    x = images(65, 65, 1)
    coarse, fine = (np.asarray(m(x, training=False)[last]) for m in (strided, dense))
    stride = next(level.stride for level in spec.levels if level.name == last)
    step = max(1, stride // 8)
    np.testing.assert_allclose(
        fine[:, ::step, ::step], coarse, atol=1e-4 * np.abs(coarse).max()
    )


def has_gates(spec):
    """Return whether something but the top depends on means over the whole map."""
    return any(
        isinstance(layer, keras.layers.Multiply)
        or isinstance(layer, keras.layers.GlobalAveragePooling2D)
        and not layer.name.startswith("top_")
        for layer in logits_model(spec).layers
    )


def check_round_trip(spec, folder):
    model = logits_model(spec)
    seeded_values(model)
    path = folder / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    x = images()
    np.testing.assert_array_equal(again(x, training=False), model(x, training=False))
    copy = keras.models.clone_model(maps_model(spec))
    assert list(copy.output) == levels(spec)


def check_gradients(spec):
    """Every trainable weight gets a gradient that is not all zero."""
    import tensorflow as tf

    model = logits_model(spec)
    seeded_values(model)
    with tf.GradientTape() as tape:
        logits = model(images(count=4), training=True)
        loss = ops.sum(logits * np.random.RandomState(1).randn(*logits.shape))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.abs(gradient).max() > 0, variable.path


def check_options(spec):
    """Pooling, input tensors, classes and left-out preprocessing do what they say.

    The same seed gives the same network, another seed another one.
    """
    keras.utils.set_random_seed(5)
    tensor = keras.Input((SIZE, SIZE, 3))
    pooled = build(spec, include_top=False, pooling="avg", input_tensor=tensor)
    assert len(pooled.output.shape) == 2
    keras.utils.set_random_seed(4)
    probabilities = build(spec, input_shape=(SIZE, SIZE, 3), classes=5)
    keras.utils.set_random_seed(4)
    bare = build(
        spec, input_shape=(SIZE, SIZE, 3), classes=5, include_preprocessing=False
    )
    sums = [
        np.asarray([float(np.abs(w).sum()) for w in model.get_weights()])
        for model in (pooled, probabilities, bare)
    ]
    np.testing.assert_array_equal(sums[2], sums[1])
    # The first kernel may be one that starts as zeros.
    assert any(a != b for a, b in zip(*sums[:2], strict=False))
    found = np.asarray(probabilities(images(), training=False))
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    mean, std = (
        np.asarray(v) for v in (spec.preprocessing.mean, spec.preprocessing.std)
    )
    x = ((images() - mean) / std).astype("float32")
    np.testing.assert_allclose(bare(x, training=False), found, atol=1e-4)
