"""Regenerate the tables of README.md from the registry.

Run with: python tools/convert/make_readme.py
"""

import json
import pathlib

from keras_lightnets import get_spec, list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


def models_table() -> str:
    """Return one row per network: cost from the goldens, the rest from the spec."""
    lines = [
        "| name | function | size | params (M) | MAdds (M) | top-1 | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in list_models():
        spec = get_spec(name)
        golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
        weights = ", ".join(f"`{w.tag}` ({w.licence})" for w in spec.weights)
        top1 = next((w.top1 for w in spec.weights if w.top1), spec.top1)
        lines.append(
            f"| `{name}` | `{spec.function}` | {spec.default_size} "
            f"| {golden['params'] / 1e6:.2f} | {golden['madds'] / 1e6:.0f} "
            f"| {f'{top1:.1f}' if top1 else ''} | {weights or 'none published'} |"
        )
    return "\n".join(lines)


TABLES = {"models": models_table}


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
