"""What a file in our own names says about padding, epsilon and normalisation."""

import dataclasses
import json
from typing import Any

import numpy as np

from keras_lightnets._checkpoints.convert import some
from keras_lightnets._checkpoints.readers import Checkpoint
from keras_lightnets._errors import WeightsError
from keras_lightnets._spec import ModelSpec, Preprocessing, Weights

_NOTES = "keras_lightnets"
_COMPARED = ("activation", "epsilon", "max_value", "negative_slope")


def notes(config: dict[str, Any]) -> dict[str, str]:
    """Return what to write beside tensors in our own names.

    Args:
        config: `model.get_config()`.

    Returns:
        Metadata of the safetensors file.
    """
    return {_NOTES: json.dumps(_facts(config), sort_keys=True)}


def of_own_file(
    spec: ModelSpec, checkpoint: Checkpoint, entries: list[Weights | None]
) -> tuple[dict[str, Any], Preprocessing]:
    """Return the numerics with which a file in our own names was trained.

    A .keras file and our safetensors say them. A .weights.h5 shows the padding in
    its layers' names; the epsilon is then that of the published set with this
    padding. A file that says nothing gets the spec's.

    Args:
        spec: The network.
        checkpoint: The file.
        entries: Published sets whose variant has the file's layers; None stands
            for the spec itself.

    Returns:
        (changes of the spec, normalisation).
    """
    if checkpoint.config is not None:
        facts = _facts(checkpoint.config)
    elif _NOTES in checkpoint.metadata:
        facts = _parsed(checkpoint.metadata[_NOTES])
    elif checkpoint.layers:
        facts = {"padding": _padding(checkpoint.layers)}
    else:
        facts = {}
    changes, rule = _nearest(spec, facts, entries)
    for field in ("padding", "bn_epsilon", "bn_momentum"):
        if field in facts:
            changes[field] = facts[field]
    if "mean" in facts and "std" in facts:
        rule = dataclasses.replace(
            rule, mean=tuple(facts["mean"]), std=tuple(facts["std"])
        )
    return changes, rule


def check_config(model: Any, config: dict[str, Any] | None, where: str) -> None:
    """Raise if a model computes otherwise than the one in a .keras file.

    Args:
        model: The model to load into.
        config: The file's model config, or None.
        where: The file, for the message.

    Raises:
        WeightsError: If layers of one name differ in class or numerics.
    """
    if config is None:
        return
    saved = {name: (kind, args) for name, kind, args in _layers(config)}
    different = []
    for layer in model.layers:
        if layer.name not in saved or not layer.weights:
            continue
        kind, args = saved[layer.name]
        own = layer.get_config()
        if kind != type(layer).__name__:
            different.append(f"{layer.name} ({kind}, not {type(layer).__name__})")
        for key in _COMPARED:
            if key in own and key in args and own[key] != args[key]:
                different.append(f"{layer.name} {key} ({args[key]}, not {own[key]})")
    if different:
        raise WeightsError(
            f"{where} was saved from a network that computes otherwise: "
            f"{some(different)}. Build that variant, or use "
            "keras.saving.load_model(path)."
        )


def _nearest(
    spec: ModelSpec, facts: dict[str, Any], entries: list[Weights | None]
) -> tuple[dict[str, Any], Preprocessing]:
    """Return the numerics of the first entry that agrees with the facts."""
    ways = [
        (dict(e.changes), e.preprocessing) if e else ({}, spec.preprocessing)
        for e in entries
    ]
    for changes, rule in ways:
        own = spec.replace(**changes)
        padding = facts.get("padding", own.padding)
        epsilon = facts.get("bn_epsilon", own.bn_epsilon)
        if own.padding == padding and np.isclose(own.bn_epsilon, epsilon):
            return dict(changes), rule
    return dict(ways[0][0]), ways[0][1]


def _parsed(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _layers(config: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (name, class, arguments) of a functional model's layers."""
    inner = config.get("config", config)
    found = []
    for layer in inner.get("layers", ()):
        args = layer.get("config", {})
        name = layer.get("name") or args.get("name", "")
        found.append((str(name), str(layer.get("class_name", "")), args))
    return found


def _padding(names: Any) -> str:
    return "symmetric" if any(name.endswith("_pad") for name in names) else "same"


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    """Return padding, epsilon, momentum, mean and deviation of a model config."""
    layers = _layers(config)
    facts: dict[str, Any] = {"padding": _padding([name for name, _, _ in layers])}
    for name, kind, args in layers:
        if kind == "BatchNormalization" and "bn_epsilon" not in facts:
            facts["bn_epsilon"] = args.get("epsilon", 1e-3)
            facts["bn_momentum"] = args.get("momentum", 0.99)
        if kind == "Rescaling" and name == "normalise":
            scale = np.broadcast_to(np.asarray(args["scale"], "float64"), 3)
            offset = np.broadcast_to(np.asarray(args["offset"], "float64"), 3)
            facts["mean"] = [float(v) for v in np.round(-offset / scale, 6)]
            facts["std"] = [float(v) for v in np.round(1 / scale, 6)]
    return facts
