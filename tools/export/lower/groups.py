"""Grouped convolutions as plain ones: the version with groups is never mapped."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from keras_lightnets.tools.export.lower import cost, steps
from keras_lightnets.tools.quantize._graph import Graph, Step


def ungroup(graph: Graph, streamed: bool = False) -> None:
    """Cut each grouped convolution into the number of plain ones that costs least.

    See `cost.best_parts`. Each part is a convolution with zeros between its groups,
    behind a slice of the channels; a concatenation joins the parts.

    Args:
        graph: Changed in place.
        streamed: Whether parameters do not fit the cache, see `cost.cycles`.
    """
    shared = graph.shared_steps()
    for step in list(graph):
        if step.kind != "conv" or step.config["groups"] == 1:
            continue
        parts = 1
        if step.name not in shared:
            given = steps.shape(graph, step.inputs[0])
            sizes = (step.config["groups"], int(given[-1] or 0), step.config["filters"])
            area = (cost.places(given), cost.places(step.shape))
            taps = math.prod(step.config["kernel_size"])
            parts = cost.best_parts(sizes, taps, area, streamed)[1]
        if parts == 1:
            steps.make_dense(step)
        else:
            _cut(graph, step, parts)
    steps.settle(graph)


def _cut(graph: Graph, step: Step, parts: int) -> None:
    """Replace a grouped convolution by slices, convolutions and a concatenation.

    A ReLU behind it goes in front of the concatenation, where it is part of the
    convolutions.
    """
    taken = steps.channels(graph, step.inputs[0]) // parts
    after = graph.sole_consumer(step.name, graph.consumers())
    relu = after if after is not None and after.kind == "relu" else None
    filters, groups = step.config["filters"] // parts, step.config["groups"] // parts
    joined = []
    for i in range(parts):
        config = {"begin": [0, 0, i * taken], "size": [-1, -1, taken]}
        given = steps.shape(graph, step.inputs[0])
        cut = steps.add(
            graph,
            Step(f"{step.name}_cut{i}", "slice", step.inputs, config,
                 shape=(*given[:-1], taken)),
        )  # fmt: skip
        weights = {
            role: np.split(array, parts, axis=-1)[i]
            for role, array in step.weights.items()
        }
        part = dataclasses.replace(
            step,
            name=f"{step.name}_part{i}",
            inputs=(cut.name,),
            config={**step.config, "filters": filters, "groups": groups},
            weights=weights,
            source=None,
            roles=(),
            shape=(*step.shape[:-1], filters),
            range=None,
        )
        steps.make_dense(part)
        last = steps.add(graph, part)
        if relu is not None:
            last = steps.add(
                graph,
                dataclasses.replace(
                    relu,
                    name=f"{relu.name}_part{i}",
                    inputs=(last.name,),
                    config=dict(relu.config),
                    shape=last.shape,
                    range=None,
                ),
            )
        joined.append(last.name)
    end = relu or step
    end.kind, end.inputs = "concat", tuple(joined)
    end.config, end.weights = {"axis": len(end.shape) - 1}, {}
    end.source, end.roles = None, ()
