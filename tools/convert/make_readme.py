"""Regenerate the tables of README.md from the registry.

Run with: python tools/convert/make_readme.py
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_lightnets import get_spec, list_models
from keras_lightnets._registry import FAMILIES, family_module

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
NPUS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")


def golden(name: str) -> dict[str, Any]:
    """Return what is recorded of a network's structure."""
    return json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))


def families_table() -> str:
    """Return one row per family: how many networks of which cost, and what it is."""
    lines = [
        "| family | networks | params (M) | MAdds (M) | what it is |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        module = family_module(family)
        facts = [golden(spec.name) for spec in module.SPECS]
        spans = [
            span([fact[key] / 1e6 for fact in facts], digits)
            for key, digits in (("params", 1), ("madds", 0))
        ]
        text = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
        lines.append(
            f"| `{family}` | {len(facts)} | {spans[0]} | {spans[1]} "
            f"| {text.partition(': ')[2] or text} |"
        )
    return "\n".join(lines)


def span(values: Sequence[float], digits: int) -> str:
    """Return the smallest and largest of some values as text.

    Args:
        values: The values.
        digits: Digits behind the point.
    """
    ends = [f"{value:.{digits}f}" for value in (min(values), max(values))]
    return "-".join(dict.fromkeys(ends))


def models_table() -> str:
    """Return one row per network: cost from the goldens, the rest from the spec."""
    int8 = json.loads((GOLDEN / "int8.json").read_text("utf-8"))
    lines = [
        "| name | function | size | params (M) | MAdds (M) | top-1 | int8 | Edge TPU "
        "| weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in list_models():
        spec = get_spec(name)
        facts = golden(name)
        weights = ", ".join(f"`{w.tag}` ({w.licence})" for w in spec.weights)
        top1 = next((w.top1 for w in spec.weights if w.top1), spec.top1)
        lines.append(
            f"| `{name}` | `{spec.function}` | {spec.default_size} "
            f"| {facts['params'] / 1e6:.2f} | {facts['madds'] / 1e6:.0f} "
            f"| {f'{top1:.1f}' if top1 else ''} | {deployed(int8.get(name))} "
            f"| {weights or 'none published'} |"
        )
    return "\n".join(lines)


def deployed(facts: Mapping[str, Any] | None) -> str:
    """Return the cells int8 and Edge TPU of a network.

    Args:
        facts: What make_int8.py found, None where it has not looked.

    Returns:
        "yes" or "no", and the share of ops that the Edge TPU runs.
    """
    if facts is None:
        return "not tried | not tried"
    if "error" in facts or facts["float_ops"]:
        return "no | no"
    whole = facts["edgetpu_ops"] == facts["ops"]
    return f"yes | {'all' if whole else facts['edgetpu_ops']} of {facts['ops']}"


def quantised_table() -> str:
    """Return a row per measured family: how the files of its forms follow."""
    stored = json.loads((GOLDEN / "quantised.json").read_text("utf-8"))
    lines = [
        "| family | network | classifier | SSDLite | LR-ASPP |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        forms = stored.get(family, {})
        whole = len([form for form in forms.values() if "reason" in form]) == 3
        if not whole and not any("name" in form for form in forms.values()):
            continue
        cells = [
            followed(forms.get(form))
            for form in ("classification", "detection", "segmentation")
        ]
        names = dict.fromkeys(
            f"`{row['name']}`" for row in forms.values() if "name" in row
        )
        lines.append(f"| `{family}` | {', '.join(names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def followed(found: Mapping[str, Any] | None) -> str:
    """Return a cell: mean error in steps after training, and when trained for int8.

    Args:
        found: What make_quantised.py found, None where it has not looked.
    """
    if found is None:
        return "not tried"
    if "reason" in found:
        return "no"
    cells = []
    for way in ("ptq", "qat"):
        rows = found[way]["outputs"].values()
        error = max(row["mean_error_steps"] for row in rows)
        shares = [row["clear_agreement"] for row in rows if row["clear_agreement"]]
        cells.append(f"{error:.1f} / {100 * min(shares, default=1.0):.4g} %")
    return ", ".join(cells)


def devices_table() -> str:
    """Return one row per family's smallest network: what runs where, measured."""
    facts = json.loads((GOLDEN / "devices.json").read_text("utf-8"))["networks"]
    int8 = json.loads((GOLDEN / "int8.json").read_text("utf-8"))
    lines = [
        "| name | size | KiB | LiteRT | Edge TPU | U55-128 | U65-256 | U85-256 "
        "| TFLite Micro |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in facts.items():
        parts = row["xnnpack_partitions"]
        _, _, mapped = deployed(int8.get(name)).partition(" | ")
        cells = [
            f"`{name}`",
            str(row["size"]),
            f"{row['bytes'] / 1024:.0f}",
            timed(row.get("latency_ms"), parts),
            mapped,
            *(estimated(row["npu"].get(target)) for target in NPUS),
            on_micro(row["micro"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def timed(latency: Mapping[str, float] | None, parts: int) -> str:
    """Return the cell of LiteRT: time with one thread, parts of the file if several.

    Args:
        latency: Threads to milliseconds, None where it was not timed.
        parts: Parts that XNNPACK splits the file into.
    """
    words = [f"{latency['1']:.2f} ms"] if latency else []
    if parts != 1 or not words:
        words.append(f"{parts} part{'' if parts == 1 else 's'}")
    return ", ".join(words)


def estimated(facts: Mapping[str, Any] | None) -> str:
    """Return the cell of an Ethos-U: inferences per second, and ops left over.

    Args:
        facts: What make_devices.py found, None where it has not looked.
    """
    if facts is None:
        return "not tried"
    rate = facts["inferences_per_second"]
    left = sum(op["count"] for op in facts["cpu_ops"].values())
    speed = "none" if rate is None else f"{rate:.0f}/s"
    return f"{speed}, {left} on CPU" if left else speed


def on_micro(facts: Mapping[str, Any]) -> str:
    """Return the cell of TFLite Micro: its tensor arena, or what it lacks.

    Args:
        facts: What make_devices.py found.
    """
    if facts["problem"]:
        return f"no: {', '.join(facts['missing']) or facts['problem']}"
    return f"{facts['arena_bytes'] / 1024:.0f} KiB"


TABLES = {
    "families": families_table,
    "models": models_table,
    "quantised": quantised_table,
    "devices": devices_table,
}


def render(text: str) -> str:
    """Return README's text with every marked table made anew.

    Args:
        text: The README, with `<!-- table:NAME -->` ... `<!-- /table -->` marks.

    Returns:
        The text with the tables replaced.
    """
    for name, table in TABLES.items():
        opening, closing = f"<!-- table:{name} -->\n", "<!-- /table -->"
        before, _, rest = text.partition(opening)
        _, _, after = rest.partition(closing)
        text = f"{before}{opening}{table()}\n{closing}{after}"
    return text


def main() -> None:
    """Rewrite README.md in place."""
    path = ROOT / "README.md"
    path.write_text(render(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
