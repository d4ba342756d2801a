"""Deploys learned group convolutions: index, then an ordinary grouped convolution.

A model that was trained with `layers.LearnedGroupConv2D` and `layers.Condensation`
computes with full kernels of which masks leave a part. `condense` returns the model
that reads only that part.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_lightnets import layers
from keras_lightnets.tools._functional import functional, nodes

# Layers that treat each channel alone, so that channels may be taken before them.
_CHANNELWISE = ("BatchNormalization", "ReLU", "Activation", "Dropout")


@dataclasses.dataclass(frozen=True)
class _Learned:
    """A learned convolution, the channelwise layers in front of it, its indices."""

    layer: Any
    before: tuple[Any, ...]
    index: np.ndarray


def condense(model: Any, classifier: str | None = None, kept: float = 0.5) -> Any:
    """Return the deployed form of a condensed model.

    Each learned group convolution becomes an index layer, a grouped convolution
    and a channel shuffle, which compute the same; batch normalisation and ReLU in
    front of it move behind the index. Layers keep their names.

    Args:
        model: A functional Keras model whose learned group convolutions have passed
            all their stages; it is not changed.
        classifier: Name of a dense layer that shall read only its strongest inputs,
            such as "top_classifier"; this changes what it computes. None keeps all
            dense layers.
        kept: Share of the classifier's inputs that stay, those with the largest
            sums of absolute weights.

    Returns:
        A functional `keras.Model` with the outputs of `model`.

    Raises:
        ValueError: If the model holds no learned group convolution or one that is
            not condensed to the end.

    Example:
        >>> net = keras_lightnets.CondenseNetCifar50  # doctest: +SKIP
        >>> trained = net(weights=None, learned=True)  # doctest: +SKIP
        >>> small = condense(trained, "top_classifier")  # doctest: +SKIP

    Reference:
        Huang et al. 2018, https://arxiv.org/abs/1711.09224, section 3.1.
    """
    import keras

    model = functional(model)
    found = _learned(model)
    replaced = {id(item.layer): item for item in found}
    moved = {id(layer) for item in found for layer in item.before}
    old = {layer.name: layer for layer in model.layers}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        source = old.get(layer.name)
        if id(source) in moved:
            return args[0]
        if id(source) in replaced:
            return _grouped(replaced[id(source)], args[0])
        if source is not None and layer.name == classifier:
            return _narrow(source, args[0], kept)
        return layer(*args, **kwargs)

    result = keras.models.clone_model(model, call_function=call)
    done = {id(la) for la in old.values() if id(la) in moved or id(la) in replaced}
    for layer in result.layers:
        source = old.get(layer.name)
        if source is not None and id(source) not in done and layer.name != classifier:
            layer.set_weights(source.get_weights())
    return result


def _learned(model: Any) -> list[_Learned]:
    """Find the learned convolutions."""
    calls = nodes(model)
    made = {id(tensor): node for node in calls for tensor in node.outputs}
    reads: dict[int, int] = {}
    for node in calls:
        for tensor in node.input_tensors:
            reads[id(tensor)] = reads.get(id(tensor), 0) + 1
    outputs = {id(tensor) for tensor in model.outputs}
    found = []
    for node in calls:
        if not isinstance(node.operation, layers.LearnedGroupConv2D):
            continue
        before: list[Any] = []
        (tensor,) = node.input_tensors
        while (
            id(tensor) in made
            and type(made[id(tensor)].operation).__name__ in _CHANNELWISE
            and reads[id(tensor)] == 1
            and id(tensor) not in outputs
        ):
            before.insert(0, made[id(tensor)].operation)
            (tensor,) = made[id(tensor)].input_tensors
        layer = node.operation
        found.append(_Learned(layer, tuple(before), _index(layer)))
    if not found:
        raise ValueError(
            f"The model {model.name!r} has no learned group convolution "
            "(layers.LearnedGroupConv2D), so there is nothing to condense. Build the "
            "form for training, such as CondenseNetCifar50(weights=None, learned=True)."
        )
    return found


def _index(layer: Any) -> np.ndarray:
    """Return the input channels that each group kept, group after group."""
    mask = np.asarray(layer.mask)
    stage, last = int(np.asarray(layer.stage)), layer.condense - 1
    if stage < last:
        raise ValueError(
            f"{layer.name!r} has passed {stage} of {last} condensation stages. Train "
            "through the first half of the epochs with layers.Condensation, or call "
            f"its advance({last})."
        )
    return np.concatenate([np.flatnonzero(column) for column in mask.T])


def _grouped(item: _Learned, x: Any) -> Any:
    """Build index, channelwise layers, grouped convolution and shuffle."""
    layer, index = item.layer, item.index
    stem = layer.name.removesuffix("_conv")
    select = layers.SelectChannels(count=len(index), name=f"{stem}_select")
    x = select(x)
    select.index.assign(index)
    for source in item.before:
        copy = type(source).from_config(source.get_config())
        x = copy(x)
        copy.set_weights([value[index] for value in source.get_weights()])
    groups = layer.learned_groups
    convolution = layers.Conv2D(
        layer.filters, 1, groups=groups, use_bias=False, name=layer.name
    )
    x = convolution(x)
    convolution.set_weights([_grouped_kernel(layer, index)])
    return layers.channel_shuffle(x, groups, stem)


def _grouped_kernel(layer: Any, index: np.ndarray) -> np.ndarray:
    """Return (1, 1, kept inputs of a group, filters), groups one after the other."""
    kernel, groups = np.asarray(layer.kernel)[0, 0], layer.learned_groups
    parts = [
        kernel[kept, group::groups]
        for group, kept in enumerate(np.split(index, groups))
    ]
    return np.concatenate(parts, axis=1)[None, None]


def _narrow(dense: Any, x: Any, kept: float) -> Any:
    """Build a dense layer that reads its strongest inputs only."""
    kernel, *bias = dense.get_weights()
    count = int(kernel.shape[0] * kept)
    strength = np.abs(kernel).sum(axis=1)
    index = np.argsort(strength, kind="stable")[kernel.shape[0] - count :]
    stem = dense.name.removesuffix("_classifier")
    select = layers.SelectChannels(count=count, name=f"{stem}_select")
    copy = type(dense).from_config(dense.get_config())
    x = copy(select(x))
    select.index.assign(index)
    copy.set_weights([kernel[index], *bias])
    return x
