"""A lock between processes that the system releases when its holder dies."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

from keras_lightnets._errors import WeightsError

_POLL_S = 0.1


@contextlib.contextmanager
def exclusive(path: pathlib.Path, timeout_s: float = 1800.0) -> Iterator[None]:
    """Hold a lock file; wait while another process or thread holds it.

    The lock belongs to the open file, not to the file's existence: it ends with
    its holder however that ends, so a file left behind never blocks anybody.

    Args:
        path: The lock file; created, and left in place.
        timeout_s: Seconds to wait.

    Raises:
        WeightsError: If the time is over.
    """
    with path.open("a+b") as file:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise WeightsError(
                    f"Another process has held {path} for {timeout_s:.0f} s. End it, "
                    "or set KERAS_LIGHTNETS_HOME to another folder."
                )
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            _unlock(file)


def _try_lock(file: IO[Any]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(file: IO[Any]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
