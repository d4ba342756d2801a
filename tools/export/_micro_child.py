"""The process in which TFLite Micro runs: its kernels abort on some values.

`python -m ..._micro_child FOLDER COUNT FIRST` opens FOLDER/0.tflite ... from number
FIRST on, runs each with the inputs of FOLDER/inputs.npz if there are any, and writes
what happened to FOLDER/N.json, outputs to FOLDER/N.npz and the interpreter's own words
to FOLDER/N.log.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# More than any microcontroller has; the interpreter only reserves it.
ARENA = 256 * 1024 * 1024
ALIGNMENT = 16
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


def smallest_arena(content: bytes, recorded: int) -> int:
    """Return the smallest tensor arena in bytes with which a file opens.

    Planning needs room for a moment that the recorded sum does not count; nothing
    below that sum is tried.

    Args:
        content: A .tflite file that opens with `ARENA` bytes.
        recorded: What `print_allocations` gave as the total.
    """
    if _opens(content, recorded):
        return recorded
    low, high = 0, 1
    while not _opens(content, recorded + high * ALIGNMENT):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _opens(content, recorded + middle * ALIGNMENT):
            high = middle
        else:
            low = middle
    return recorded + high * ALIGNMENT


def _opens(content: bytes, arena: int) -> bool:
    """Try an arena in a fork: some kernels crash in place of failing."""
    process = os.fork()
    if process == 0:
        try:
            _interpreter(content, arena)
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0


def _interpreter(content: bytes, arena: int) -> Any:
    from tflite_micro.python.tflite_micro import runtime

    return runtime.Interpreter.from_bytes(content, arena_size=arena)


def _run(folder: Path, number: int) -> None:
    content = (folder / f"{number}.tflite").read_bytes()
    interpreter = _interpreter(content, ARENA)
    given = folder / "inputs.npz"
    if not given.is_file():
        return
    made: dict[str, Any] = {}
    with np.load(given) as inputs:
        outputs = int(inputs["outputs"])
        for name in inputs.files:
            if name == "outputs":
                continue
            interpreter.set_input(inputs[name], 0)
            interpreter.invoke()
            for place in range(outputs):
                made[f"{name}_{place}"] = np.array(interpreter.get_output(place))
    interpreter.print_allocations()
    np.savez(folder / f"{number}.npz", **made)


def main(arguments: Sequence[str]) -> int:
    """Run the files of a folder; see the module's text.

    Args:
        arguments: Folder, number of files, number of the first.

    Returns:
        The process's exit status; 0 also where a file does not run.
    """
    folder = Path(arguments[0])
    for number in range(int(arguments[2]), int(arguments[1])):
        log = os.open(folder / f"{number}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 2)
        found: dict[str, Any] = {"error": ""}
        try:
            _run(folder, number)
            if (folder / f"{number}.npz").is_file():
                said = (folder / f"{number}.log").read_text("utf-8", "replace")
                content = (folder / f"{number}.tflite").read_bytes()
                recorded = int(_TOTAL.findall(said)[-1])
                found["arena"] = smallest_arena(content, recorded)
        except (RuntimeError, ValueError) as error:
            found["error"] = str(error)
        (folder / f"{number}.json").write_text(json.dumps(found), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
