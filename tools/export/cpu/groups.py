"""Small groups of convolutions, joined until they fill the kernels' blocks.

XNNPACK's int8 kernels multiply blocks of eight channels with eight filters; a group of
two channels and two filters takes as long as one of eight and eight. So several groups
become one, with zeros where a filter does not read a channel.
"""

from __future__ import annotations

import numpy as np

from keras_lightnets.tools.export.cpu import linear, steps
from keras_lightnets.tools.quantize._graph import Graph, Step


def fill_groups(graph: Graph) -> None:
    """Join groups of each convolution where that is cheaper; see `linear.best_join`.

    Groups of one channel are a depthwise convolution, which has kernels of its own.
    """
    trained = graph.has_ranges()
    for step in graph:
        if step.kind != "conv" or step.config["groups"] == 1:
            continue
        if step.name in graph.shared_steps():
            continue
        high, wide, depth, filters = step.weights["kernel"].shape
        groups = step.config["groups"]
        # A trained depthwise kernel has one scale for all filters of a channel.
        single = depth == 1 and (filters == groups or not trained)
        if single and _made_depthwise(step):
            continue
        sizes = (depth * groups, filters, groups)
        joined, _ = linear.best_join(*sizes, taps=high * wide)
        if joined > 1:
            step.weights["kernel"] = join(step.weights["kernel"], groups, joined)
            step.config["groups"] = groups // joined


def _made_depthwise(step: Step) -> bool:
    """Write a convolution of one channel per group as depthwise; say if it can be."""
    config, kernel = step.config, step.weights["kernel"]
    rows, columns = steps.pair(config["strides"])
    dilated = steps.pair(config["dilation_rate"]) != (1, 1)
    if rows != columns or (dilated and rows > 1):
        return False
    step.kind, multiplier = "depthwise", kernel.shape[3] // config["groups"]
    kept = ("kernel_size", "strides", "padding", "dilation_rate", "use_bias")
    step.config = {key: config[key] for key in kept} | {"depth_multiplier": multiplier}
    shape = (*kernel.shape[:2], config["groups"], multiplier)
    step.weights["kernel"] = kernel.reshape(shape)
    return True


def join(kernel: np.ndarray, groups: int, joined: int) -> np.ndarray:
    """Return a grouped kernel with so many of its groups as one, zeros between them.

    Args:
        kernel: (height, width, channels / groups, filters).
        groups: Number of groups.
        joined: How many become one; divides `groups`.

    Returns:
        (height, width, joined * channels / groups, filters).
    """
    high, wide, depth, filters = kernel.shape
    parts = np.split(kernel, groups // joined, axis=3)
    made = [linear.dense(part, joined) for part in parts]
    shape = (high, wide, joined * depth, filters)
    return np.concatenate(made, axis=3).reshape(shape).astype("float32")
