"""Published networks of a backbone and a head, joined by one row of a table."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

import keras_lightnets
from keras_lightnets import _inputs, _registry, _weights
from keras_lightnets._layout import Layout
from keras_lightnets._spec import ModelSpec, Weights
from keras_lightnets.heads._table import find, pick_endpoints


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A backbone, a head and weights that hold both.

    Attributes:
        backbone: Registry name.
        changes: Fields of the backbone's spec that differ.
        head: Name in HEADS.
        config: The head's config.
        weights: Published weights of backbone and head.
        rename: Publisher's prefix of a backbone's layer -> its prefix in the joined
            network's file, or "" for a layer that the joined network lacks.
        output_stride: The backbone's.
        taps: Endpoint -> layer whose output the head reads in its place.
    """

    backbone: str
    changes: tuple[tuple[str, Any], ...] = ()
    head: str
    config: Any
    weights: tuple[Weights, ...]
    rename: Callable[[str], str]
    output_stride: int = 32
    taps: tuple[tuple[str, str], ...] = ()


def spec_of(name: str, row: Joined) -> ModelSpec:
    """Return the backbone's spec with the joined network's name and weights."""
    spec = _registry.get_spec(row.backbone)
    changes = dict(row.changes)
    return spec.replace(name=name, function=name, weights=row.weights, **changes)


def layout_of(row: Joined, kind: str | None = None) -> Layout:
    """Return a publisher's names of backbone and head.

    Args:
        row: The network.
        kind: Name of the layout; None: that of the first weights.

    Returns:
        One layout of both.
    """
    family = _registry.family_module(_registry.family_of(row.backbone))
    kind = kind or row.weights[0].layout
    backbone: Layout = family.LAYOUTS[kind]
    head = find(row.head).layouts[kind]
    unused = [row.rename(pattern) for pattern in backbone.unused]

    def names(spec: ModelSpec) -> dict[str, str]:
        theirs = {
            ours: row.rename(prefix)
            for ours, prefix in backbone.names(spec).items()
            if ours not in backbone.top and row.rename(prefix)
        }
        return theirs | head.names(row.config)

    return Layout(
        names=names,
        top=(),
        unused=(*filter(None, unused), *head.unused),
        pieces=backbone.pieces + head.pieces,
        reorder=backbone.reorder + head.reorder,
        image=backbone.image + head.image,
    )


def create(
    name: str,
    row: Joined,
    weights: str | os.PathLike[str] | None,
    input_shape: Callable[[Any], tuple[int | None, int | None, int]],
) -> tuple[keras.Model, Any]:
    """Build a joined network and load its weights.

    Args:
        name: Name in the row's table.
        row: The row.
        weights: None (random), a published tag, or the path of a file.
        input_shape: Config of the head -> (height, width, 3).

    Returns:
        The model, from RGB images of 0-255, to the head's raw outputs; and the
        head's config with the numerics of the weights.

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
    """
    spec = spec_of(name, row)
    kinds = dict.fromkeys(entry.layout for entry in row.weights)
    layouts = {kind: layout_of(row, kind) for kind in kinds}
    source = _weights.resolve(spec, layouts, weights)
    numerics = {} if source is None else source.changes
    fields = {field.name for field in dataclasses.fields(row.config)}
    shared = {key: value for key, value in numerics.items() if key in fields}
    config = dataclasses.replace(row.config, **shared)
    inputs = keras.Input(input_shape(config), name="image")
    rule = (source or spec).preprocessing
    backbone = keras_lightnets.create_model(
        row.backbone,
        include_top=False,
        include_preprocessing=False,
        weights=None,
        input_tensor=_inputs.normalise(inputs, rule),
        endpoints=pick_endpoints(row.head, [level.name for level in spec.levels]),
        output_stride=row.output_stride,
        **{**dict(row.changes), **numerics},
    )
    maps: Mapping[str, Any] = backbone.output
    taps = {key: backbone.get_layer(layer).output for key, layer in row.taps}
    outputs = find(row.head).build({**maps, **taps}, config)
    model = keras.Model(inputs, outputs, name=name)
    if source is not None:
        _weights.load(model, source)
    return model, config
