"""run.pyz: the device runner as one file that any Python opens."""

import functools
import io
import zipfile
from pathlib import Path

from keras_lightnets.tools import runtime

NAME = "run.pyz"
SHEBANG = b"#!/usr/bin/env python3\n"
# Name in the archive to the module's file.
MODULES = {
    "__main__.py": "runtime_main.py",
    "runtime.py": "runtime.py",
    "runtime_labels.py": "runtime_labels.py",
}


@functools.cache
def archive() -> bytes:
    """Return run.pyz: what a device needs beside a model and its sidecar.

    It needs numpy and one of ai-edge-litert, tflite-runtime or pycoral, and OpenCV or
    Pillow to read pictures. The same sources give the same bytes.
    """
    folder = Path(runtime.__file__).parent
    held = io.BytesIO()
    held.write(SHEBANG)
    with zipfile.ZipFile(held, "a", zipfile.ZIP_DEFLATED) as packed:
        for name, source in MODULES.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, (folder / source).read_bytes())
    return held.getvalue()
