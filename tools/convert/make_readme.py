"""Regenerate the tables of README.md from the registry.

Run with: python tools/convert/make_readme.py
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_lightnets import get_spec, list_models
from keras_lightnets._registry import FAMILIES, family_module
from keras_lightnets.tools.convert import golden_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
NPUS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")


def markdown(header: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table.

    Args:
        header: The columns' titles, separated by " | ".
        rows: The cells of each row.
    """
    count = len(header.split(" | "))
    lines = [f"| {header} |", "|" + count * "---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def families_table() -> str:
    """Return one row per family: how many networks of which cost, and what it is."""
    rows = []
    for family in FAMILIES:
        module = family_module(family)
        facts = [golden_files.read(spec.name) for spec in module.SPECS]
        spans = [
            span([fact[key] / 1e6 for fact in facts], digits)
            for key, digits in (("params", 1), ("madds", 0))
        ]
        text = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
        what = text.partition(": ")[2] or text
        rows.append([f"`{family}`", str(len(facts)), *spans, what])
    header = "family | networks | params (M) | MAdds (M) | what it is"
    return markdown(header, rows)


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
    int8 = golden_files.read("int8")
    rows = []
    for name in list_models():
        spec, facts = get_spec(name), golden_files.read(name)
        weights = ", ".join(f"`{w.tag}` ({w.licence})" for w in spec.weights)
        top1 = next((w.top1 for w in spec.weights if w.top1), spec.top1)
        rows.append(
            [
                f"`{name}`",
                f"`{spec.function}`",
                str(spec.default_size),
                f"{facts['params'] / 1e6:.2f}",
                f"{facts['madds'] / 1e6:.0f}",
                f"{top1:.1f}" if top1 else "",
                *deployed(int8.get(name)),
                weights or "none published",
            ]
        )
    header = "name | function | size | params (M) | MAdds (M) | top-1 | int8 | Edge TPU"
    return markdown(f"{header} | weights", rows)


def deployed(facts: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the cells int8 and Edge TPU of a network.

    Args:
        facts: What make_int8.py found, None where it has not looked.

    Returns:
        "yes" or "no", and the share of ops that the Edge TPU runs.
    """
    if facts is None:
        return "not tried", "not tried"
    if "error" in facts or facts["float_ops"]:
        return "no", "no"
    whole = facts["edgetpu_ops"] == facts["ops"]
    return "yes", f"{'all' if whole else facts['edgetpu_ops']} of {facts['ops']}"


def quantised_table() -> str:
    """Return a row per measured family: how the files of its forms follow."""
    stored = golden_files.read("quantised")
    rows = []
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
        rows.append([f"`{family}`", ", ".join(names), *cells])
    return markdown("family | network | classifier | SSDLite | LR-ASPP", rows)


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
    int8 = golden_files.read("int8")
    rows = [
        [
            f"`{name}`",
            str(row["size"]),
            f"{row['bytes'] / 1024:.0f}",
            timed(row.get("latency_ms"), row["xnnpack_partitions"]),
            deployed(int8.get(name))[1],
            *(estimated(row["npu"].get(target)) for target in NPUS),
            on_micro(row["micro"]),
        ]
        for name, row in golden_files.read("devices")["networks"].items()
    ]
    header = "name | size | KiB | LiteRT | Edge TPU | U55-128 | U65-256 | U85-256"
    return markdown(f"{header} | TFLite Micro", rows)


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
    if "problem" in facts:
        return "Vela fails"
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
