"""Post-training quantisation: pictures in, ranges out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from keras_lightnets.tools.quantize import _passes, bridge, rules
from keras_lightnets.tools.quantize._graph import Graph

# More pictures move the ranges by little and each costs an inference.
MAX_SAMPLES = 500


def prepare(
    model: Any,
    samples: Iterable[Any],
    raw: bool = True,
    lower: Callable[[Graph], Any] = _passes.expand_hard_swish,
) -> tuple[
    Callable[..., Any], Graph, Callable[[], Iterator[list[np.ndarray]]]
]:  # fmt: skip
    """Make what the TFLite converter needs to quantise a Keras 3 model.

    Batch normalisation and the input normalisation are folded, see
    `_passes.fold_input`.

    Args:
        model: A functional Keras 3 model with one input.
        samples: Representative pictures, see `check_samples`.
        raw: Whether the file shall read the bytes of a picture; False for float
            grey levels.
        lower: Changes the folded graph for the target.

    Returns:
        A function on the (folded) input tensor, its graph, and the representative
        data set as the converter calls it.

    Raises:
        ValueError: If the samples do not fit; see `check_samples`.
        NotQuantisableError: If a layer has no int8 counterpart.
    """
    graph = bridge.to_graph(model)
    if len(graph.inputs) != 1:
        raise ValueError(
            "Post-training quantisation takes models with one input. Received inputs: "
            f"{', '.join(graph.inputs)}"
        )
    graph = graph.copy()
    _passes.fold_norms(graph)
    _passes.fold_shifts(graph)
    _passes.fold_input(graph, raw)
    _passes.bake(graph)
    rules.check_kinds(graph)
    lower(graph)
    (shape,) = graph.inputs.values()
    pictures = check_samples(samples, shape[1:], graph.raw_zero_point is not None)
    tf_model, _ = bridge.emit(graph, batch=1)

    def representative() -> Iterator[list[np.ndarray]]:
        for i, picture in enumerate(pictures):
            yield [to_real(_stretch(picture) if i == 0 else picture, graph)[None]]

    def _stretch(picture: np.ndarray) -> np.ndarray:
        # The converter takes the input's range from the data: two pixels make it
        # exactly 0-255, so that one step is one grey level.
        if graph.raw_zero_point is None:
            return picture
        picture = picture.copy()
        picture[0, 0], picture[0, 1] = 0, 255
        return picture

    return lambda x: tf_model(x, training=False), graph, representative


def to_real(pictures: np.ndarray, graph: Graph) -> np.ndarray:
    """Return grey levels as the real values that a folded graph reads."""
    pixels = np.asarray(pictures, "float32")
    if graph.raw_zero_point is None:
        return pixels
    return (pixels - np.float32(graph.raw_zero_point)) * np.float32(graph.raw_scale)


def check_samples(
    samples: Iterable[Any], shape: tuple[int | None, ...], grey_levels: bool = True
) -> list[np.ndarray]:
    """Take and check a calibration set.

    Args:
        samples: Pictures, (height, width, channels) or with a batch axis in front;
            uint8, or floats of the same range.
        shape: Shape the model reads, without batch.
        grey_levels: Whether the model reads grey levels of 0-255.

    Returns:
        At most 500 pictures, (height, width, channels) each; the first ones.

    Raises:
        ValueError: If there are none, or one has another shape, another type, NaN,
            or a range that is not 0-255.
    """
    found: list[np.ndarray] = []
    top = 0.0
    for i, sample in enumerate(samples):
        array = np.asarray(sample)
        if array.dtype.kind not in "uif" or array.dtype == object:
            raise ValueError(
                f"Calibration sample {i} must be a numeric array, (height, width, "
                f"channels) of 0-255. Received: {type(sample).__name__} of type "
                f"{array.dtype}"
            )
        batch = array if array.ndim == len(shape) + 1 else array[None]
        if batch.shape[1:] != tuple(shape):
            raise ValueError(
                f"Calibration sample {i} has the shape {array.shape}; the model reads "
                f"{tuple(shape)}. Resize the pictures as for inference."
            )
        top = max(top, _check_range(i, batch, grey_levels))
        found.extend(batch)
        if len(found) >= MAX_SAMPLES:
            break
    if not found:
        raise ValueError(
            "The calibration set is empty: int8 ranges need at least one picture, and "
            "100 are a good number. An iterator that was used up before gives none; "
            "pass a list."
        )
    if grey_levels and top <= 1.0:
        raise ValueError(
            f"The calibration set has no value above {top:g}; the model reads grey "
            "levels of 0-255 and normalises them itself. Do not divide by 255."
        )
    return found[:MAX_SAMPLES]


def _check_range(i: int, batch: np.ndarray, grey_levels: bool) -> float:
    if not np.all(np.isfinite(batch)):
        raise ValueError(f"Calibration sample {i} holds NaN or infinite values.")
    low, high = float(batch.min(initial=0)), float(batch.max(initial=0))
    if grey_levels and (low < 0 or high > 255):
        raise ValueError(
            f"Calibration sample {i} ranges over {low:g} to {high:g}; the model reads "
            "grey levels of 0-255 and normalises them itself."
        )
    return high
