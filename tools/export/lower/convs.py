"""Rewrites of single convolutions and what stands directly beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keras_lightnets.tools.export.lower import steps
from keras_lightnets.tools.quantize import _passes
from keras_lightnets.tools.quantize._graph import Graph, Step


def fuse_pads(graph: Graph) -> None:
    """Let a convolution pad by itself where that puts the zeros in the same places.

    Padding with zeros in front of a convolution without any is the convolution's own
    "same" padding if the sides agree; else it stays an operation, which is mapped.
    """
    readers, shared = graph.consumers(), graph.shared_steps()
    for step in list(graph):
        before = graph.steps.get(step.inputs[0])
        if step.kind not in ("conv", "depthwise") or step.name in shared:
            continue
        if before is None or before.kind != "zero_pad":
            continue
        channels_first = before.config.get("data_format") == "channels_first"
        if channels_first or step.config["padding"] != "valid":
            continue
        if len(readers[before.name]) != 1:
            continue
        given = steps.shape(graph, before.inputs[0])
        if _pads(before.config["padding"]) == _same(step, given):
            step.config["padding"] = "same"
            graph.remove(before.name)


def _pads(padding: Any) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in side) for side in padding]


def _same(step: Step, given: tuple[int | None, ...]) -> list[tuple[int, ...]]:
    """Return the zeros that "same" puts before and behind, for rows and columns."""
    found: list[tuple[int, ...]] = []
    sides = zip(
        given[1:3],
        step.config["kernel_size"],
        step.config["strides"],
        step.config["dilation_rate"],
        strict=True,
    )
    for size, kernel, stride, rate in sides:
        reach = (math.ceil(int(size or 0) / stride) - 1) * stride
        total = max(reach + (kernel - 1) * rate + 1 - int(size or 0), 0)
        found.append((total // 2, total - total // 2))
    return found


def name_depthwise(graph: Graph) -> None:
    """Write a convolution with a group per channel and one filter each as depthwise."""
    shared = graph.shared_steps()
    for step in graph:
        if step.kind != "conv" or step.name in shared:
            continue
        groups = step.config["groups"]
        if (
            not 1
            < groups
            == step.config["filters"]
            == steps.channels(graph, step.inputs[0])
        ):
            continue
        if len(set(step.config["strides"])) > 1:  # TensorFlow has no such kernel.
            continue
        step.kind = "depthwise"
        kept = {k: v for k, v in step.config.items() if k not in ("groups", "filters")}
        step.config = {**kept, "depth_multiplier": 1}
        kernel = step.weights["kernel"]
        step.weights["kernel"] = np.ascontiguousarray(kernel.transpose(0, 1, 3, 2))


def merge_affine(graph: Graph) -> None:
    """Fold a normalisation that stands alone into the convolution now before it."""
    readers, shared = graph.consumers(), graph.shared_steps()
    for step in list(graph):
        before = graph.steps.get(step.inputs[0])
        if step.kind != "depthwise" or step.name in shared or before is None:
            continue
        if step.weights["kernel"].shape[:2] != (1, 1) or len(readers[before.name]) > 1:
            continue
        plain = step.config["depth_multiplier"] == 1 and max(step.config["strides"]) < 2
        folds = before.kind in _passes.FOLDABLE and before.name not in shared
        if not plain or not folds:
            continue
        gain = step.weights["kernel"].reshape(-1).astype("float64")
        kernel = before.weights["kernel"].astype("float64")
        kernel = kernel * gain.reshape(_passes.on_outputs(before.kind, kernel.shape))
        bias = before.weights.get("bias", np.zeros(1)) * gain
        bias = bias + step.weights.get("bias", np.zeros(1))
        before.config["use_bias"] = True
        before.weights = {
            "kernel": kernel.astype("float32"),
            "bias": np.broadcast_to(bias, gain.shape).astype("float32"),
        }
        before.range = step.range
        graph.remove(step.name)


def widen_channelwise(graph: Graph) -> None:
    """Write a convolution along the channels as a 1x1 convolution.

    Channels laid along an image's rows, one filter per group and the result's axes
    exchanged: every output is a sum of neighbouring channels of the same place. The
    matrix of a 1x1 convolution has the same weights along its diagonal. It is wanted
    where the exchange of axes moves channels; without one, the convolution stays.
    """
    for step in list(graph):
        if step.kind != "conv" or len(step.weights) != 1:
            continue
        found = _along_channels(graph, step)
        if found is None:
            continue
        root, last = found
        made = int(last.shape[-1] or 0)
        kernel = _banded(graph, step, root, last)
        last.kind, last.inputs = "conv", (root,)
        last.config = {**steps.POINT, "filters": made, "use_bias": False}
        last.weights = {"kernel": kernel[None, None]}
        last.range = step.range
    steps.settle(graph)


def _along_channels(graph: Graph, step: Step) -> tuple[str, Step] | None:
    """Return the map in front of a channel-wise convolution and the last step."""
    readers = graph.consumers()
    first = graph.steps.get(step.inputs[0])
    swap = graph.sole_consumer(step.name, readers)
    last = graph.sole_consumer(swap.name, readers) if swap is not None else None
    if first is None or swap is None or last is None:
        return None
    kinds = (first.kind, swap.kind, last.kind)
    root = steps.shape(graph, first.inputs[0])
    if kinds != ("reshape", "permute", "reshape") or len(root) != 4:
        return None
    area = int(root[1] or 0) * int(root[2] or 0)
    fits = first.shape[1:] == (area, root[3], 1) and last.shape[1:3] == root[1:3]
    flat = step.config["kernel_size"][0] == 1 == step.config["strides"][0]
    ordered = tuple(swap.config["dims"]) == (1, 3, 2)
    whole = len(last.shape) == 4 and step.config["groups"] == 1
    return (first.inputs[0], last) if fits and flat and ordered and whole else None


def _banded(graph: Graph, step: Step, root: str, last: Step) -> np.ndarray:
    """Return the matrix of a channel-wise convolution, channels to channels."""
    size = steps.channels(graph, root)
    taps = step.weights["kernel"][0, :, 0]
    stride = step.config["strides"][1]
    front = 0
    if step.config["padding"] == "same":
        front = _same(step, (None, 1, size, 1))[1][0]
    count = int(last.shape[-1] or 0) // taps.shape[1]
    matrix = np.zeros((size, taps.shape[1], count), "float32")
    for place in range(count):
        for tap in range(taps.shape[0]):
            channel = place * stride + tap - front
            if 0 <= channel < size:
                matrix[channel, :, place] = taps[tap]
    return matrix.reshape(size, -1)
