"""Keeps docs/benchmarks.json and renders docs/benchmarks.md from it."""

import json
import os
import pathlib
import platform
from importlib import metadata
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
ORDER = (
    *("bccd", "bccd_heads", "coco128", "camvid", "espnet", "seg_heads"),
    *("input_pipeline", "train_step", "families", "startup"),
)
# Instructions that decide how fast int8 is against float.
VECTORS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "asimddp", "i8mm")
PACKAGES = ("tensorflow", "keras", "numpy", "albumentations", "ai-edge-litert")

INTRO = """# Benchmarks

Every figure on this page was written by the script named above its table; run the
command to measure it again. Times depend on the machine, so claims are ratios of
things measured side by side in one run.
"""


def record(name: str, title: str, command: str, rows: list[dict[str, Any]], note: str):
    """Store one section's rows and render the page anew.

    Args:
        name: Key of the section, one of ORDER.
        title: Heading.
        command: What reproduces it, from the checkout's top.
        rows: Table rows with equal keys.
        note: One paragraph on how it was measured.
    """
    path = DOCS / "benchmarks.json"
    DOCS.mkdir(exist_ok=True)
    sections = json.loads(path.read_text("utf-8")) if path.exists() else {}
    sections[name] = {
        "title": title,
        "command": command,
        "rows": rows,
        "note": note,
        "machine": machine(),
    }
    path.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (DOCS / "benchmarks.md").write_text(render(sections), "utf-8")


def machine() -> str:
    """Describe processor, cores and package versions in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text("utf-8").splitlines()
        names = [ln.split(":", 1)[1].strip() for ln in lines if "model name" in ln]
        model = names[0] if names else model
        flags = next((ln.split() for ln in lines if ln.startswith("flags")), [])
        vectors = [name for name in VECTORS if name in flags]
        model += f" ({', '.join(vectors) or 'no vectors'})"
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in PACKAGES)
    python = platform.python_version()
    return f"{os.cpu_count()} cores of {model}; Python {python}, {versions}"


def render(sections: dict[str, Any]) -> str:
    """Return the page as Markdown.

    Args:
        sections: Name -> stored section.

    Returns:
        The text of docs/benchmarks.md.
    """
    parts = [INTRO]
    for name in [*ORDER, *sorted(set(sections) - set(ORDER))]:
        if name not in sections:
            continue
        section = sections[name]
        keys = list(section["rows"][0])
        lines = [
            f"## {section['title']}",
            "",
            f"`{section['command']}`",
            "",
            "| " + " | ".join(keys) + " |",
            "|" + "---|" * len(keys),
            *(
                "| " + " | ".join(str(r[k]) for k in keys) + " |"
                for r in section["rows"]
            ),
            "",
            section["note"],
            "",
            f"Measured on {section['machine']}.",
            "",
        ]
        parts.append("\n".join(lines))
    return "\n".join(parts)


if __name__ == "__main__":
    stored = json.loads((DOCS / "benchmarks.json").read_text("utf-8"))
    (DOCS / "benchmarks.md").write_text(render(stored), "utf-8")
