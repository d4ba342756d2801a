"""Starts the runner that a model's sidecar asks for: the `__main__` of run.pyz.

`export` writes run.pyz beside every .tflite file: one file that holds `runtime.py` and
`runtime_labels.py`. Copy it with the model and its sidecar to any device and run
`python run.pyz model.tflite image.jpg`, or import it::

    sys.path.insert(0, "run.pyz")
    from runtime_labels import Segmenter
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from keras_lightnets.tools import runtime, runtime_labels
except ImportError:  # copied to a device
    import runtime  # type: ignore[no-redef]
    import runtime_labels  # type: ignore[no-redef]


def main(arguments: Sequence[str] | None = None) -> int:
    """Detect, segment or classify, as the sidecar says; one JSON line per picture.

    Args:
        arguments: The command line; by default the process's.

    Returns:
        The exit status.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--meta")
    known, _ = parser.parse_known_args(given)
    path = Path(known.meta or Path(known.model or "-").with_suffix(".json"))
    try:
        task = json.loads(path.read_text("utf-8")).get("task")
    except (OSError, ValueError, AttributeError):
        task = None  # the runner says what is wrong
    labels = task in runtime_labels.LEGAL["task"]
    return runtime_labels.main(given) if labels else runtime.main(given)


if __name__ == "__main__":
    sys.exit(main())
