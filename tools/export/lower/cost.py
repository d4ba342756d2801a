"""What a graph costs on the Edge TPU: an estimate to choose between equal forms.

The chip has 4x4 tiles of 64 cells (libedgetpu, beagle_chip_structures.h). Four
products per cell and cycle give the 4 TOPS it is sold for at 500 MHz, and four is the
multiple to which the compiled files pad the input channels of a kernel; filters are
padded as `_edgetpu_memory` says. How fast activations move and what an
operation costs to start is published nowhere: the two constants below are guesses,
about right for the 2.6 ms that MobileNetV2 is said to take. They only weigh moving
against multiplying, so that no handful of channels is cut out for more than it saves.
"""

from __future__ import annotations

import functools
import itertools
import math

from keras_lightnets.tools.export._edgetpu_memory import (
    ceil_to,
    kernel_bytes,
    outputs_padded,
)
from keras_lightnets.tools.export.lower import steps
from keras_lightnets.tools.quantize._graph import Graph, Step

PRODUCTS = 4 * 4 * 64 * 4
MOVED_BYTES = 16
START_CYCLES = 2000.0
# A parameter that does not fit the cache comes over USB 3, about 320 MB/s.
STREAMED_CYCLES = 500 / 320

# What costs nothing of its own: it is part of the operation before, or no operation.
FREE = ("relu", "identity", "reshape", "zero_pad", "dropout")


def conv_cycles(taken: int, made: int, taps: int, places: int, streamed: bool) -> float:
    """Return the cycles of a plain convolution.

    Args:
        taken: Input channels.
        made: Filters.
        taps: Height times width of the kernel.
        places: Height times width of the output.
        streamed: Whether its parameters come over USB.
    """
    products = places * taps * ceil_to(taken, 4) * outputs_padded(made)
    each = STREAMED_CYCLES if streamed else 1 / MOVED_BYTES
    fetched = kernel_bytes(taken, made, taps) * each
    return products / PRODUCTS + fetched + START_CYCLES


@functools.cache
def best_parts(
    sizes: tuple[int, int, int], taps: int, places: tuple[int, int], streamed: bool
) -> tuple[float, int]:
    """Choose into how many plain convolutions a grouped one is cut.

    Between one convolution per group and a single one with zeros between the groups
    every divisor is possible. Filters are padded to 16, and to 64 above 64: joining
    narrow groups costs no time, cutting wide ones saves some.

    Args:
        sizes: Groups, input channels and filters.
        taps: Height times width of the kernel.
        places: Height times width of the input and of the output.
        streamed: Whether parameters do not fit the cache.

    Returns:
        The cycles and the number of parts.
    """
    groups, taken, made = sizes
    found = []
    for parts in range(1, groups + 1):
        if groups % parts:
            continue
        each = conv_cycles(taken // parts, made // parts, taps, places[1], streamed)
        total = parts * each
        if parts > 1:
            moved = 2 * (taken * places[0] + made * places[1])
            total += moved / MOVED_BYTES + START_CYCLES * (parts + 1)
        found.append((total, parts))
    return min(found)


def places(shape: tuple[int | None, ...]) -> int:
    """Return height times width of a shape with batch and channels."""
    return math.prod(int(size or 1) for size in shape[1:-1])


def step_cycles(graph: Graph, step: Step, streamed: bool) -> float:
    """Return the cycles of one step."""
    given = steps.shape(graph, step.inputs[0])
    taken, made = int(given[-1] or 0), int(step.shape[-1] or 0)
    taps = math.prod(step.config.get("kernel_size", (1,)))
    if step.kind == "conv":
        sizes = (step.config["groups"], taken, made)
        area = (places(given), places(step.shape))
        return best_parts(sizes, taps, area, streamed)[0]
    if step.kind in ("dense", "conv_transpose"):
        return conv_cycles(taken, made, taps, places(step.shape), streamed)
    if step.kind == "gather":
        return gather_cycles(step.config["indices"], taken, places(given), streamed)
    if step.kind in FREE:
        return 0.0
    moved = places(given) * taken + places(step.shape) * made
    if step.kind == "depthwise":
        # Each cell works on a channel of its own: a quarter of the products.
        work = 4 * places(step.shape) * taps * ceil_to(made, 64) / PRODUCTS
        return work + START_CYCLES
    return moved / MOVED_BYTES + START_CYCLES


def gather_cycles(index: list[int], taken: int, area: int, streamed: bool) -> float:
    """Return the cycles of the cheapest form of a gather."""
    by_ones = conv_cycles(taken, len(index), 1, area, streamed)
    return min(slice_cycles(index, area), by_ones)


def slice_cycles(index: list[int], area: int) -> float:
    """Return the cycles of a gather as slices, one per run of neighbours."""
    runs = 1 + sum(after != before + 1 for before, after in itertools.pairwise(index))
    moved = 2 * len(index) * area / MOVED_BYTES
    if runs == 1:
        return moved + START_CYCLES
    return 2 * moved + (runs + 1) * START_CYCLES


def cycles(graph: Graph, streamed: bool) -> float:
    """Return the cycles of a whole graph.

    Args:
        graph: The steps.
        streamed: Whether parameters do not fit the cache, so that each comes over USB.
    """
    return sum(step_cycles(graph, step, streamed) for step in graph)


def parameter_bytes(graph: Graph) -> int:
    """Return the bytes of a graph's plain kernels on the chip."""
    total = 0
    for step in graph:
        if step.kind in steps.AXES and not step.shared:
            taken = steps.channels(graph, step.inputs[0])
            taps = math.prod(step.config.get("kernel_size", (1,)))
            total += kernel_bytes(taken, int(step.shape[-1] or 0), taps)
    return total
