"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


def write_files(contents: Mapping[Path, bytes]) -> tuple[Path, ...]:
    """Write files so that each appears whole; nothing half-written stays behind.

    Args:
        contents: Path to content. All are written beside their places first and
            only then renamed.

    Returns:
        The paths, in the order given.

    Raises:
        OSError: If a folder cannot be written to.
    """
    with _temporary(contents) as waiting:
        for path, held in waiting.items():
            os.replace(held, path)
    return tuple(contents)


@contextlib.contextmanager
def _temporary(contents: Mapping[Path, bytes]) -> Iterator[dict[Path, str]]:
    waiting: dict[Path, str] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, waiting[path] = tempfile.mkstemp(
                prefix=f".{path.name}.", dir=path.parent
            )
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(waiting[path], 0o644)
        yield waiting
    finally:
        for held in waiting.values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(held)
