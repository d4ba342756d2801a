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
# No stride divides them; half of them, rounded up, is odd again down to stride 16.
ODD = (65, 97)
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


# What the weights of shared networks were before a check seeded them.
drawn: dict[tuple[str, str], dict[str, tuple[tuple[int, ...], float]]] = {}


def build_drawn(spec, seed, label, **options):
    """Build with a seed and keep shape and sum of magnitudes of every weight."""
    keras.utils.set_random_seed(seed)
    model = build(spec, **options)
    drawn[spec.name, label] = {
        v.path: (tuple(v.shape), float(np.abs(v).sum())) for v in model.weights
    }
    return model


@functools.lru_cache(maxsize=2)
def whole_model(spec):
    """Return maps and logits of a network for any size: one build for most checks."""
    return build_drawn(
        spec,
        *(4, "logits"),
        endpoints=[*levels(spec), "logits"],
        input_shape=(None, None, 3),
    )


@functools.lru_cache(maxsize=2)
def logits_model(spec):
    """Return the network that the checks share, at the small size if it needs one."""
    if spec.dynamic_size:
        model = whole_model(spec)
        return keras.Model(model.input, model.output["logits"], name=spec.name)
    options = {"input_shape": (SIZE, SIZE, 3), "classifier_activation": None}
    return build_drawn(spec, 4, "logits", **options)


def levels(spec):
    return [level.name for level in spec.levels]


@functools.lru_cache(maxsize=2)
def maps_model(spec):
    """Return the network of all feature maps, for any size where it can be."""
    if spec.dynamic_size:
        model = whole_model(spec)
        return keras.Model(model.input, {k: model.output[k] for k in levels(spec)})
    options = {"include_top": False, "endpoints": levels(spec)}
    return build(spec, input_shape=(*ODD, 3), **options)


@functools.lru_cache(maxsize=2)
def dense_model(spec):
    """Return maps and logits of 5 classes at the smallest stride, unnormalised."""
    return build_drawn(
        spec,
        *(4, "dense"),
        endpoints=[*levels(spec), "logits"],
        output_stride=min(spec.output_strides),
        input_shape=(*ODD, 3),
        classes=5,
        include_preprocessing=False,
    )


def normalised(spec, x):
    rule = spec.preprocessing
    return ((x - np.asarray(rule.mean)) / np.asarray(rule.std)).astype("float32")


def facts(spec):
    """Return what the golden file records of a network."""
    size = (spec.default_size, spec.default_size, 3)
    if spec.dynamic_size:
        model = logits_model(spec)
    else:
        model = build(spec, input_shape=size, classifier_activation=None)
    maps = maps_model(spec)
    whole = cost.total(model, size)
    return {
        "params": whole.params,
        "madds": whole.madds,
        "layers": len(model.layers) + 1,  # The softmax.
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
    sizes = [ODD, (67, 93)] if spec.dynamic_size else [ODD]
    for size in sizes:
        found = maps_model(spec)(images(*size, 1), training=False)
        assert list(found) == levels(spec)
        check_shapes(spec, golden, found, size, 32)


def check_shapes(spec, golden, found, size, output_stride):
    for level in spec.levels:
        stride = level.stride
        if output_stride < 32:
            stride = min(stride, output_stride)
        channels = golden["channels"][level.name]
        count, *sides, depth = found[level.name].shape
        assert (count, depth) == (1, channels), level.name
        for side, image in zip(sides, size, strict=True):
            short = -(-image // stride) - side
            # An unpadded 7x7 stem loses three.
            allowed = 0 if spec.exact_strides else 3
            assert 0 <= short <= allowed, level.name


def check_output_stride(spec, golden, output_stride):
    """Check the shapes of a network that dilates instead of striding."""
    options = {"endpoints": levels(spec), "output_stride": output_stride}
    model = build(spec, include_top=False, input_shape=(67, 93, 3), **options)
    found = model(images(67, 93, 1), training=False)
    check_shapes(spec, golden, found, (67, 93), output_stride)


def check_dilation_keeps_what_it_computes(spec, golden):
    """A dilated network computes the strided one's values, and more between.

    At sides of which every half is odd, too, "same" padding is symmetric, so the
    strided grid is a subset of the dense one. Squeeze gates average over the grid:
    of networks with them, only maps before the dilation are compared. One of the
    networks normalises its images, the other is given normalised ones.
    """
    strided, dense = maps_model(spec), dense_model(spec)
    if spec.padding == "same" and not spec.exact_strides:
        # A stem without padding leaves even sides.
        options = {"endpoints": levels(spec), "padding": "symmetric"}
        options |= {"include_top": False, "input_shape": (*ODD, 3)}
        strided = build(spec, **options)
        options["output_stride"] = min(spec.output_strides)
        dense = build(spec, include_preprocessing=False, **options)
    for model in (strided, dense):
        seeded_values(model)
    x = images(*ODD, 1)
    coarse = strided(x, training=False)
    fine = dense(normalised(spec, x), training=False)
    least = min(spec.output_strides)
    check_shapes(spec, golden, fine, ODD, least)
    for level in spec.levels:
        step = max(1, level.stride // least)
        if step > 1 and has_gates(spec):
            continue
        expected = np.asarray(coarse[level.name])
        found = np.asarray(fine[level.name])[:, ::step, ::step]
        limit = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=limit, err_msg=level.name)


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
    x = images(count=1)
    np.testing.assert_array_equal(again(x, training=False), model(x, training=False))


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


def check_seeds(spec):
    """The same seed gives the same network but for a classifier of other classes."""
    for model in (logits_model, dense_model):
        model(spec)
    first, same = (drawn[spec.name, k] for k in ("logits", "dense"))
    assert first.keys() == same.keys()
    differ = [path for path, value in first.items() if same[path] != value]
    assert differ
    assert all(path.startswith("top_") for path in differ)
    assert dense_model(spec).output["logits"].shape == (None, 5)


def check_another_seed(spec):
    """Another seed draws other kernels."""
    logits_model(spec)
    options = {"input_shape": (SIZE, SIZE, 3), "classifier_activation": None}
    build_drawn(spec, 5, "other", **options)
    first, other = (drawn[spec.name, k] for k in ("logits", "other"))
    kernels = [path for path in first if path.endswith("kernel")]
    same = [path for path in kernels if first[path] == other[path]]
    # An identity is the same for every seed, and its sum a whole number.
    assert [path for path in same if not first[path][1].is_integer()] == []
    assert len(same) < len(kernels)
