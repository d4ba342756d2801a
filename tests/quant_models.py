"""Small models and pictures for the tests of quantisation."""

import keras
import numpy as np
from keras import layers

from keras_lightnets.layers import BatchNormalization


def pictures(count, size=32, seed=0):
    """Smooth colour pictures, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 5, 5, 3))
    grid = np.linspace(0, 3.999, size)
    low, part = grid.astype(int), grid - grid.astype(int)
    rows = (
        coarse[:, low] * (1 - part)[None, :, None, None]
        + coarse[:, low + 1] * part[None, :, None, None]
    )
    both = (
        rows[:, :, low] * (1 - part)[None, None, :, None]
        + rows[:, :, low + 1] * part[None, None, :, None]
    )
    return np.round(both).astype("uint8")


def settle(model, seed=0):
    """Give every normalisation random weights and the statistics of real data."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for norm in norms:
        if norm.scale:
            norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        if norm.center:
            norm.beta.assign(rng.normal(0, 0.3, norm.beta.shape))
    for layer in model._flatten_layers():
        if getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.2, layer.bias.shape))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(pictures(16, model.input.shape[1]).astype("float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def exactly(model, values, twin=None):
    """Return the largest relative difference when both compute in float64.

    In float32 either side is up to 1e-5 from that, by rounding alone. Zero but for
    constants such as 1/6, which one side holds in float32. The twin is the bridge's,
    or a given tf_keras model.
    """
    import tf_keras

    from keras_lightnets.tools.quantize import bridge

    def double(operation):
        config = operation.get_config()
        if isinstance(operation, keras.Layer | tf_keras.layers.Layer):
            config["dtype"] = "float64"
        return type(operation).from_config(config)

    twin = twin or bridge.to_tf_keras(model).model
    both = []
    for source, models in ((model, keras.models), (twin, tf_keras.models)):
        copy = models.clone_model(source, clone_function=double)
        copy.set_weights(source.get_weights())
        both.append(copy(values.astype("float64"), training=False))
    want, got = both
    if not isinstance(want, dict):
        want, got = {"out": want}, {"out": got}
    return max(
        float(np.abs(value - got[key]).max() / np.abs(value).max())
        for key, value in want.items()
    )


def _conv_bn(x, filters, name, act="relu6", **options):
    x = layers.Conv2D(filters, padding="same", use_bias=False, name=name, **options)(x)
    x = BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_act")(x) if act else x


def detector(size=32, mean=127.0):
    """A two-level detector with every kind of layer that our networks use."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3), name="image")
    x = layers.Rescaling(1 / 128, -np.asarray(mean) / 128, name="normalise")(image)
    x = _conv_bn(x, 8, "stem", kernel_size=3, strides=2, act=None)
    x = layers.Activation("hard_swish", name="stem_swish")(x)
    d = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(x)
    d = layers.ReLU(name="dw_act")(BatchNormalization(name="dw_bn")(d))
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(d)
    gate = layers.Conv2D(8, 1, name="excite")(gate)
    gate = layers.Activation("hard_sigmoid", name="gate")(gate)
    d = layers.Multiply(name="gated")([d, gate])
    x = layers.Concatenate(name="ghost")([x, d])
    x = _conv_bn(x, 16, "grouped", kernel_size=3, groups=2)
    low = layers.MaxPooling2D(name="pool")(x)
    up = layers.UpSampling2D(2, interpolation="nearest", name="up")(low)
    x = layers.Add(name="add")([x, up])
    x = layers.Activation("silu", name="silu")(x)
    boxes, scores = [], []
    for level, y in (("p1", x), ("p2", low)):
        box = layers.Conv2D(8, 1, name=f"{level}_box")(y)
        score = layers.Conv2D(10, 1, name=f"{level}_score")(y)
        boxes.append(layers.Reshape((-1, 4), name=f"{level}_boxes")(box))
        scores.append(layers.Reshape((-1, 5), name=f"{level}_scores")(score))
    outputs = {
        "scores": layers.Concatenate(axis=1, name="all_scores")(scores),
        "boxes": layers.Concatenate(axis=1, name="all_boxes")(boxes),
    }
    return keras.Model(image, outputs, name="detector")


def classifier(size=32, act="relu6"):
    """A small classifier of five classes."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="normalise")(image)
    x = _conv_bn(x, 8, "stem", kernel_size=3, strides=2)
    x = _conv_bn(x, 16, "middle", kernel_size=3, strides=2)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(5, name="logits")(x), name="classifier")
