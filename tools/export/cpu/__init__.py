"""Forms of operations that LiteRT's fast CPU kernels (XNNPACK) run, exact in float.

An int8 operation that XNNPACK does not take splits the file into parts: it runs on
plain kernels, often for longer than the rest of the network. `INT8` replaces all of
them that have an equal form; the rest of its passes, and all of `FLOAT`, only save
time.
"""

from collections.abc import Callable

from keras_lightnets.tools.export.cpu import (
    forms,
    groups,
    linear,
    picture,
    scales,
)
from keras_lightnets.tools.quantize import _passes
from keras_lightnets.tools.quantize._graph import Graph

INT8: tuple[Callable[[Graph], None], ...] = (
    _passes.expand_hard_swish,
    forms.prelus_to_sums,
    forms.extremes_to_sums,
    linear.multiply_out,
    forms.gathers_to_kernels,
    groups.fill_groups,
    forms.pools_to_depthwise,
    forms.nearest_to_concats,
    forms.concats_of_few,
    forms.pads_to_concats,
    picture.normalise_rows,
    scales.fold_scales,
    picture.pair_columns,
    forms.relus_to_depthwise,
)
FLOAT: tuple[Callable[[Graph], None], ...] = (
    linear.multiply_out,
    forms.gathers_to_kernels,
    groups.fill_groups,
    forms.pads_to_concats,
    picture.normalise_rows,
    scales.fold_scales,
)
