"""Choice of the feature maps that a head reads."""

from collections.abc import Iterable


def choose(
    head: str, wanted: Iterable[tuple[str, ...]], available: Iterable[str]
) -> tuple[str, ...]:
    """Choose one endpoint per feature map that a head reads.

    Args:
        head: Name of the head, for the error.
        wanted: Per feature map, the names to take it from, best first.
        available: Names of the feature maps that a backbone has.

    Returns:
        One name per feature map.

    Raises:
        ValueError: If none of the names of a map is available.

    Example:
        >>> choose("ssdlite", [("c4_expand", "c4"), ("c5",)], ["c3", "c4", "c5"])
        ('c4', 'c5')
    """
    names = list(available)
    chosen = []
    for options in wanted:
        found = next((name for name in options if name in names), None)
        if found is None:
            raise ValueError(
                f"The head {head!r} reads the feature map "
                f"{' or '.join(map(repr, options))}, which the backbone does not give. "
                f"Received: {', '.join(map(repr, names)) or 'none'}. Build the "
                "backbone with endpoints=(...) that hold one of them."
            )
        chosen.append(found)
    return tuple(chosen)
