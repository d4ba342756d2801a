"""Counts the paths between channels of a chain of convolutions."""

import keras
import numpy as np


def count_paths(model, first, last):
    """Count, for a chain of linear layers, the ways from input to output channels.

    All kernels become ones, so that what one unit in the middle of a channel adds
    to an output channel there is the number of ways, times how often a spatial
    kernel covers it (once).

    Args:
        model: The network.
        first: Layer whose output is the chain's input.
        last: Last layer of the chain.

    Returns:
        Integers, (input channels, output channels).
    """
    start = model.get_layer(first).output
    chain = keras.Model(start, model.get_layer(last).output)
    for layer in chain.layers:
        if layer.name.endswith("_conv"):
            layer.set_weights([np.ones_like(w) for w in layer.get_weights()])
        elif layer.weights:
            raise ValueError(f"{layer.name} is not a convolution")
    _, height, width, channels = start.shape
    units = np.zeros((channels, height, width, channels), "float32")
    units[np.arange(channels), height // 2, width // 2, np.arange(channels)] = 1
    found = np.asarray(chain(units, training=False))
    ways = found[:, height // 2, width // 2]
    np.testing.assert_array_equal(ways, ways.round())
    return ways.astype(int)
