"""Input side of an application: shapes, normalisation, class names."""

import csv
import functools
from importlib import resources
from typing import Any

from keras_lightnets._errors import unknown
from keras_lightnets._spec import ModelSpec, Preprocessing

MIN_SIZE = 32


def input_layer(
    spec: ModelSpec, input_tensor: Any, input_shape: Any, fixed: bool
) -> tuple[Any, Any]:
    """Return the tensor to build on and the model's input.

    Args:
        spec: Gives the default size.
        input_tensor: Keras tensor to build on, or None.
        input_shape: (height, width, channels) or None.
        fixed: Use the default size where no shape is given.

    Returns:
        (tensor, model inputs).

    Raises:
        ValueError: If tensor or shape are not usable.
    """
    import keras

    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras_lightnets builds channels_last networks only. Received the global "
            f"image data format {keras.config.image_data_format()!r}. Call "
            "keras.config.set_image_data_format('channels_last') first."
        )
    if input_tensor is not None:
        if not isinstance(input_tensor, keras.KerasTensor):
            raise ValueError(
                "input_tensor must be a Keras tensor, such as keras.Input(...) or the "
                f"output of a layer. Received: {type(input_tensor).__name__}"
            )
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != shape:
            raise ValueError(
                f"input_shape {tuple(input_shape)} contradicts the shape {shape} of "
                "input_tensor. Leave input_shape out."
            )
        check_shape(spec, shape)
        return input_tensor, keras.utils.get_source_inputs(input_tensor)
    side = spec.default_size if fixed or not spec.dynamic_size else None
    shape = (side, side, 3) if input_shape is None else tuple(input_shape)
    check_shape(spec, shape)
    inputs = keras.Input(shape, name="image")
    return inputs, inputs


def check_shape(spec: ModelSpec, shape: tuple[Any, ...]) -> None:
    """Raise unless the shape is (height, width, channels) and large enough."""
    if len(shape) != 3:
        raise ValueError(
            f"input_shape of {spec.function} must be (height, width, channels), such "
            f"as ({spec.default_size}, {spec.default_size}, 3). Received: {shape}"
        )
    small = [side for side in shape[:2] if side is not None and side < MIN_SIZE]
    if small or shape[2] is None:
        raise ValueError(
            f"input_shape of {spec.function} needs height and width of at least "
            f"{MIN_SIZE} and a known number of channels. Received: {shape}"
        )
    if None in shape[:2] and not spec.dynamic_size:
        raise ValueError(
            f"{spec.function} needs a fixed input size: {spec.flags_reason}. "
            f"Received: {shape}"
        )


def normalise(x: Any, rule: Preprocessing) -> Any:
    """Normalise pixels of 0-255 with a layer named "normalise"."""
    import keras

    channels = x.shape[-1]
    mean, std = (
        (v[:channels] if channels <= 3 else (v[0],) * channels)
        for v in (rule.mean, rule.std)
    )
    scale: Any = [1.0 / s for s in std]
    offset: Any = [-m / s for m, s in zip(mean, std, strict=True)]
    if len(set(scale)) == 1 and len(set(offset)) == 1:
        scale, offset = scale[0], offset[0]
    return keras.layers.Rescaling(scale, offset, name="normalise")(x)


def preprocess_with(rule: Preprocessing, x: Any, include_preprocessing: bool) -> Any:
    """Return what a model of the family expects for RGB images of 0-255."""
    if include_preprocessing:
        return x
    import numpy as np
    from keras import ops

    mean, std = (np.asarray(v, "float32") for v in (rule.mean, rule.std))
    if isinstance(x, np.ndarray):
        return (x.astype("float32") - mean) / std
    return (ops.cast(x, "float32") - mean) / std


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Return (WordNet id, name) of the 1000 ImageNet classes, in training order."""
    text = resources.files("keras_lightnets").joinpath("imagenet_classes.csv")
    with text.open(encoding="utf-8") as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        return tuple((wnid, name) for wnid, name in rows)


def decode_predictions(preds: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Name the most probable ImageNet classes.

    Args:
        preds: Array of shape (batch, 1000), as the classifier returns it.
        top: Number of classes per image.

    Returns:
        Per image a list of (WordNet id, name, score), best first.

    Raises:
        ValueError: If `preds` is not of shape (batch, 1000).

    Example:
        >>> import numpy as np
        >>> decode_predictions(np.eye(1, 1000), top=1)
        [[('n01440764', 'tench', 1.0)]]
    """
    import numpy as np

    scores = np.asarray(preds)
    if scores.ndim != 2 or scores.shape[1] != 1000:
        raise ValueError(
            "decode_predictions needs ImageNet scores of shape (batch, 1000). "
            f"Received: {scores.shape}"
        )
    names = imagenet_classes()
    best = np.argsort(-scores, axis=1)[:, :top]
    return [
        [(*names[i], float(row[i])) for i in order]
        for row, order in zip(scores, best, strict=True)
    ]


def check_pooling(pooling: str | None) -> None:
    """Raise unless pooling is None, "avg" or "max"."""
    if pooling not in (None, "avg", "max"):
        raise unknown("pooling", pooling, ("None", "avg", "max"))
