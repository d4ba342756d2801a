"""Equal forms of int8 operations that XNNPACK leaves to plain kernels."""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_lightnets.tools.export.cpu import steps
from keras_lightnets.tools.quantize import rules
from keras_lightnets.tools.quantize._graph import Graph, Step

MOST_JOINED = 5
# Least range of a summand, as a share of the other's; XNNPACK's addition takes scales
# down to 1 / 1024 of the sum's.
LEAST_SUMMAND = 1 / 256


def pools_to_depthwise(graph: Graph) -> None:
    """Make average poolings, and poolings of one value, depthwise convolutions.

    An average over windows that stay on the map is a depthwise convolution with a
    constant kernel; so is the maximum of one value.
    """
    for step in graph:
        if step.kind not in ("avg_pool", "max_pool"):
            continue
        size = steps.pair(step.config["pool_size"])
        strides = steps.pair(step.config["strides"] or size)
        sides = steps.shape(graph, step.inputs[0])[1:3]
        on_map = (
            step.config["padding"] == "valid"
            or steps.same_pads(sides, size, strides) == steps.NO_PADS
        )
        # TensorFlow has no depthwise kernel whose strides differ.
        alike = strides[0] == strides[1]
        if on_map and alike and (step.kind == "avg_pool" or size == (1, 1)):
            steps.keep_range(graph, step)
            channels = int(step.shape[-1] or 0)
            kernel = np.full((*size, channels), 1.0 / (size[0] * size[1]))
            steps.depthwise(step, kernel, strides)


def prelus_to_sums(graph: Graph) -> None:
    """Write a PReLU of slopes up to 1 as x + relu((slope - 1) * x).

    For a negative x the second part is (slope - 1) * x, else 0.
    """
    trained = graph.has_ranges()
    for step in list(graph):
        if step.kind != "prelu":
            continue
        slopes = step.weights["alpha"].reshape(-1)
        if slopes.size not in (1, int(step.shape[-1] or 0)) or np.any(slopes > 1):
            continue
        (source,) = step.inputs
        scaled = Step(
            f"{step.name}_scaled",
            "scale",
            (source,),
            weights={"value": (slopes - 1).astype("float32")},
            shape=step.shape,
        )
        rest = Step(f"{step.name}_rest", "relu", (scaled.name,), shape=step.shape)
        if trained:
            low, high = steps.range_of(graph, source)
            top = float(np.max(1 - slopes)) * -low
            rest.range = (0.0, max(top, LEAST_SUMMAND * (high - low)))
        total = Step(
            step.name, "add", (source, rest.name), shape=step.shape, range=step.range
        )
        steps.replace(graph, step.name, (scaled, rest, total))


def extremes_to_sums(graph: Graph) -> None:
    """Write max(a, b) as b + relu(a - b), and min(a, b) as a - relu(a - b)."""
    trained = graph.has_ranges()
    for step in list(graph):
        if step.kind not in ("maximum", "minimum"):
            continue
        first, second = step.inputs
        apart = Step(
            f"{step.name}_apart", "subtract", (first, second), shape=step.shape
        )
        rest = Step(f"{step.name}_rest", "relu", (apart.name,), shape=step.shape)
        kind, base = ("add", second) if step.kind == "maximum" else ("subtract", first)
        if trained:
            top = steps.range_of(graph, first)[1] - steps.range_of(graph, second)[0]
            low, high = steps.range_of(graph, base)
            rest.range = (0.0, max(top, LEAST_SUMMAND * (high - low)))
        total = Step(
            step.name, kind, (base, rest.name), shape=step.shape, range=step.range
        )
        steps.replace(graph, step.name, (apart, rest, total))


def gathers_to_kernels(graph: Graph) -> None:
    """Let the convolution behind a gather of channels read all of them.

    Its kernel gets zeros for those that it does not take. A gather without such a
    reader becomes a 1x1 convolution with ones and zeros.
    """
    for step in list(graph):
        if step.kind != "gather" or len(step.shape) != 4:
            continue
        index = list(step.config["indices"])
        whole = steps.shape(graph, step.inputs[0])[-1]
        after = graph.sole_consumer(step.name, graph.consumers())
        free = after is not None and after.name not in graph.shared_steps()
        if after is not None and free and after.kind == "conv":
            _read_all(after, index, whole)
            graph.remove(step.name)
            continue
        matrix = np.zeros((1, 1, whole, len(index)), "float32")
        matrix[0, 0, index, np.arange(len(index))] = 1.0
        steps.keep_range(graph, step)
        step.kind, step.weights = "conv", {"kernel": matrix}
        step.config = {
            "filters": len(index),
            "kernel_size": (1, 1),
            "strides": (1, 1),
            "padding": "valid",
            "dilation_rate": (1, 1),
            "groups": 1,
            "use_bias": False,
        }


def _read_all(conv: Step, index: list[int], whole: int) -> None:
    kernel, groups = conv.weights["kernel"], conv.config["groups"]
    depth, filters = kernel.shape[2], kernel.shape[3] // groups
    made = np.zeros((*kernel.shape[:2], whole, kernel.shape[3]), "float32")
    for group in range(groups):
        outs = slice(group * filters, (group + 1) * filters)
        for i, channel in enumerate(index[group * depth : (group + 1) * depth]):
            # A channel may be taken twice.
            made[:, :, channel, outs] += kernel[:, :, i, outs]
    conv.weights = {**conv.weights, "kernel": made}
    conv.config = {**conv.config, "groups": 1}


def concats_of_few(graph: Graph) -> None:
    """Join more than five tensors in several steps; XNNPACK takes up to five."""
    for step in list(graph):
        if step.kind != "concat" or len(step.inputs) <= MOST_JOINED:
            continue
        axis = step.config["axis"] % len(step.shape)
        inputs, added = list(step.inputs), list[Step]()
        while len(inputs) > MOST_JOINED:
            few, inputs = inputs[:MOST_JOINED], inputs[MOST_JOINED:]
            size = sum(steps.shape(graph, name)[axis] for name in few)
            joined = (*step.shape[:axis], size, *step.shape[axis + 1 :])
            name = f"{step.name}_few{len(added)}"
            config, shared = dict(step.config), step.range
            added.append(
                Step(name, "concat", tuple(few), config, shape=joined, range=shared)
            )
            graph.steps[name] = added[-1]
            inputs.insert(0, name)
        for part in added:
            del graph.steps[part.name]
        step.inputs = tuple(inputs)
        steps.replace(graph, step.name, (*added, step))


def nearest_to_concats(graph: Graph) -> None:
    """Write nearest upsampling by whole factors as concatenations with itself.

    (h, w, c) joined to itself along the channels is (h, w, f * c), the same bytes as
    (h, f * w, c); joined along the columns it is (h, f * f * w, c), the same bytes as
    (f * h, f * w, c).
    """
    for step in list(graph):
        if step.kind != "resize" or step.config["method"] != "nearest":
            continue
        _, height, width, channels = steps.shape(graph, step.inputs[0])
        rows, columns = (int(side) for side in step.config["size"])
        if not height * width or rows % height or columns % width:
            continue
        down, across = rows // height, columns // width
        steps.keep_range(graph, step)
        parts = [*_repeat(step, step.inputs[0], (height, width), across, "columns")]
        before = parts[-1].name if parts else step.inputs[0]
        parts += _repeat(step, before, (height, columns), down, "rows")
        if not parts:
            continue
        parts[-1] = dataclasses.replace(parts[-1], name=step.name)
        steps.replace(graph, step.name, parts)


def _repeat(
    step: Step, source: str, sides: tuple[int, int], times: int, what: str
) -> list[Step]:
    """Repeat the columns or the rows of a map of (height, width)."""
    (height, width), channels = sides, int(step.shape[-1] or 0)
    if times == 1:
        return []
    wide = (height, times * width, channels)
    joined, target, axis = (height, width, times * channels), wide, 3
    if what == "rows":
        joined, target, axis = wide, (times * height, width, channels), 2
    name = f"{step.name}_{what}"
    concat = Step(
        name, "concat", (source,) * times, {"axis": axis},
        shape=(None, *joined), range=step.range,
    )  # fmt: skip
    return [concat, steps.reshape(f"{name}_apart", name, target)]


def pads_to_concats(graph: Graph) -> None:
    """Pad in front of a pooling by joining constant rows and columns of zeros.

    XNNPACK's padding moves a few bytes at a time; the one in front of a convolution
    becomes part of it and stays. Rows and columns that no window reaches are left out.
    """
    for step in list(graph):
        after = graph.sole_consumer(step.name, graph.consumers())
        if step.kind != "zero_pad" or after is None or after.kind != "max_pool":
            continue
        pads = steps.pads_of(step)
        if pads is None or after.config["padding"] != "valid":
            continue
        size = steps.pair(after.config["pool_size"])
        strides = steps.pair(after.config["strides"] or size)
        sides = steps.shape(graph, step.inputs[0])[1:3]
        outs = steps.shape(graph, after.name)[1:3]
        if not all(sides):
            continue
        steps.keep_range(graph, step)
        made, source, grown = [], step.inputs[0], list(sides)
        for axis in (0, 1):
            reach = (outs[axis] - 1) * strides[axis] + size[axis]
            first = pads[axis][0]
            last = max(min(pads[axis][1], reach - sides[axis] - first), 0)
            if not first + last:
                continue
            grown[axis] += first + last
            config = {"axis": axis + 1, "first": first, "last": last}
            joined = Step(
                f"{step.name}_axis{axis}", "join_zeros", (source,), config,
                shape=(None, *grown, step.shape[-1]), range=step.range,
            )  # fmt: skip
            made.append(joined)
            source = joined.name
        if made:
            made[-1].name = step.name
            steps.replace(graph, step.name, made)


def relus_to_depthwise(graph: Graph) -> None:
    """Give a ReLU that no operation can take a depthwise convolution that does.

    XNNPACK runs a clamp only on a tensor whose scale it keeps; a file's ReLU has a
    scale of its own.
    """
    for step in list(graph):
        if step.kind != "relu" or len(step.shape) != 4:
            continue
        plain = not step.config.get("negative_slope")
        if not plain or step.config.get("max_value") not in (None, 6.0):
            continue
        before = graph.steps.get(step.inputs[0])
        alone = before is None or len(graph.consumers()[before.name]) > 1
        fuses = (*rules.FUSES_RELU, "multiply", "scale")
        if not alone and before is not None and before.kind in fuses:
            continue
        held = Step(f"{step.name}_held", "", step.inputs, shape=step.shape)
        channels = int(step.shape[-1] or 0)
        steps.depthwise(held, np.ones((1, 1, channels)), (1, 1))
        step.inputs = (held.name,)
        steps.replace(graph, step.name, (held, step))
