"""Error texts that name the legal values and the next step."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

# A longer list of legal values is cut to those closest to what was received.
_MOST_SHOWN = 40


class WeightsError(ValueError):
    """Published or given weights could not be loaded; the text says what to do."""


class MissingExtraError(ImportError):
    """An optional package is needed; the text holds the line that installs it."""


def close_match(value: Any, legal: Iterable[Any]) -> str | None:
    """Return the legal value closest to a mistyped one, or None."""
    names = [str(item) for item in legal]
    found = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(what: str, value: Any, legal: Iterable[Any], hint: str = "") -> ValueError:
    """Build the error for a value outside a closed set.

    Args:
        what: What the value names, in the user's words ("endpoint").
        value: What was received.
        legal: All legal values, in the order to show them.
        hint: A closing sentence with the next step.

    Returns:
        The error to raise: "Unknown endpoint 'c6'. Did you mean 'c5'? Legal: ...".

    Example:
        >>> str(unknown("pooling", "agv", ["avg", "max"]))
        "Unknown pooling 'agv'. Did you mean 'avg'? Legal: avg, max."
    """
    names = [str(item) for item in legal]
    close = close_match(value, names)
    guess = f" Did you mean {close!r}?" if close else ""
    shown = names
    if len(names) > _MOST_SHOWN:
        shown = difflib.get_close_matches(str(value), names, n=12, cutoff=0.0)
        shown.append(f"and {len(names) - len(shown)} more")
    text = f"Unknown {what} {value!r}.{guess} Legal: {', '.join(shown) or 'none'}."
    return ValueError(f"{text} {hint}".rstrip())


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra installs it.

    Args:
        module: Dotted name of the module.
        extra: The extra of this package that brings it.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtraError(
            f"This needs the optional package {module!r}, which is not installed. "
            f"Install it with: pip install 'keras-lightnets[{extra}]'"
        ) from error
