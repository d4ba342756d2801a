"""Reads and writes tests/golden/NAME.json: facts of networks and what was measured."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"


def read(name: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a golden file's content.

    Args:
        name: Registry name of a network, or of a measurement such as "int8".
        missing: What to return where there is no file yet.

    Raises:
        FileNotFoundError: If there is none and `missing` is not given.
    """
    path = GOLDEN / f"{name}.json"
    if missing is not None and not path.exists():
        return missing
    return json.loads(path.read_text("utf-8"))


def write(name: str, facts: Mapping[str, Any]) -> pathlib.Path:
    """Write a golden file.

    Args:
        name: As for `read`.
        facts: Its content, in its order.

    Returns:
        The file's path.
    """
    path = GOLDEN / f"{name}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    return path
