"""Makes tests/golden/int8.json: what each network's int8 file consists of.

Run it from a checkout where the package is installed with the extra `qat`::

    python tools/convert/make_int8.py [NAME ...]

Without names it takes all that are not in the file yet. Each is converted to int8, its
parallel branches merged as in `export`, after calibration on noise at a small size:
which operators a file has, and where they run, depends neither on the weights nor, but
for the largest maps, on the size. Networks whose classifier reads a fixed number of
cells (AlexNet, VGG) are taken at their own size, where that needs no resampling.
"""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lightnets.tools.convert import golden_files

LOG = logging.getLogger(__name__)
SIZE = 96


def facts(name: str) -> dict[str, Any]:
    """Convert a network and look at the file.

    Args:
        name: Registry name.

    Returns:
        Number of ops, the ops that work on floats, the number of ops that the Edge
        TPU runs, and the others: operator -> {"count", "reason"}.
    """
    import keras

    import keras_lightnets
    from keras_lightnets.tools.export import _flatbuffer, edgetpu, opened, tflite
    from keras_lightnets.tools.fuse import merge_branches

    keras.utils.set_random_seed(0)
    spec = keras_lightnets.get_spec(name)
    side = spec.default_size if hasattr(spec, "cells") else min(SIZE, spec.default_size)
    model = keras_lightnets.create_model(
        name, weights=None, input_shape=(side, side, 3)
    )
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (4, side, side, 3)).astype("float32")
    model = merge_branches(model)
    content = tflite.convert(model, "int8", "uint8", list(pictures), "edgetpu")
    found = edgetpu.verdict(content, compiler=False)
    left = [row for row in found.ops if not row.mapped]
    counts = Counter(row.op for row in left)
    reasons = {row.op: row.reason for row in reversed(left)}
    return {
        "size": side,
        "ops": len(found.ops),
        "float_ops": list(opened.float_ops(_flatbuffer.read(content))),
        "edgetpu_ops": found.mapped,
        "cpu_ops": {
            op: {"count": count, "reason": reasons[op]} for op, count in counts.items()
        },
    }


def main(names: Sequence[str]) -> int:
    """Write the facts of the named networks, or of all that lack.

    Args:
        names: Registry names.

    Returns:
        The process's exit status.
    """
    import keras

    import keras_lightnets

    known = golden_files.read("int8", missing={})
    lacking = [name for name in keras_lightnets.list_models() if name not in known]
    for name in names or lacking:
        try:
            known[name] = facts(name)
        except ValueError as error:
            known[name] = {"error": str(error)}
        LOG.info("%s %s", name, {**known[name], "cpu_ops": "..."})
        keras.backend.clear_session()
        golden_files.write("int8", dict(sorted(known.items())))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
