"""One self-contained HTML page of measured results: tables, curves, pictures.

The page needs nothing but itself: styles, charts (SVG) and pictures (base64 JPEG with
boxes drawn as SVG over them) are inside. It follows the reader's light or dark setting
and fits a phone.
"""

import base64
import dataclasses
import html
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets.tools.export.files import write_files

# Chart geometry in SVG units; about one CSS pixel on a phone.
WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
COLOURS = 6

STYLE = """
:root{--page:#fcfcfb;--ink:#1c1d1f;--soft:#63666b;--line:#dcdcd8;--panel:#f3f3f0;
--c0:#1f6fb2;--c1:#c2571a;--c2:#2f7d4f;--c3:#8a4fa3;--c4:#a8364a;--c5:#5d6672}
@media(prefers-color-scheme:dark){:root{--page:#151617;--ink:#e8e8e5;--soft:#a2a5a9;
--line:#37393c;--panel:#1e2022;--c0:#6bb1ee;--c1:#f0955a;--c2:#70c594;--c3:#c795dd;
--c4:#ee8194;--c5:#aab3bd}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p,figcaption{color:var(--soft);margin:.4rem 0}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;
margin:1.2rem 0}
dl div{background:var(--panel);border-radius:.4rem;padding:.7rem .8rem}
dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-size:1.35rem;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;border-bottom:1px solid var(--line);text-align:left;
white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:.85rem}
td.n,th.n{text-align:right}
.charts,.pictures{display:grid;gap:1.2rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr))}
.charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}
figure{margin:0}
figure svg{display:block;width:100%;height:auto}
.pictures svg{--halo:#fff;--c0:#1159a0;--c1:#b4440c;--c2:#17703c;--c3:#7a31a0;
--c4:#a81f3a;--c5:#3f4650}
.pictures svg{border-radius:.3rem;background:var(--panel)}
svg text{fill:var(--soft);font:13px system-ui,sans-serif}
.grid{stroke:var(--line);stroke-width:1}
.legend span{display:inline-block;margin-right:1rem;color:var(--ink)}
.legend i{display:inline-block;width:.9rem;height:.25rem;border-radius:.1rem;
margin-right:.4rem;vertical-align:.25rem}
.box{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
pre{background:var(--panel);padding:.8rem;border-radius:.4rem;overflow-x:auto;
font-size:.85rem}
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; numbers are aligned right and shortened."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over a common x; each series is a list of (x, y), NaN breaks the line."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with boxes.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) x1, y1, x2, y2 in pixels.
        labels: Class number of each box; gives its colour.
        texts: What is written at each box, such as "cat 0.91".
        caption: Text below.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: Sequence[int]
    texts: Sequence[str]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """The page's content, in the order shown.

    Attributes:
        title: Heading.
        lead: One or two sentences below it.
        facts: Headline figures: label to value.
        tables: Tables.
        charts: Line charts.
        pictures: Pictures with boxes.
        commands: Command lines that reproduce the page.
    """

    title: str
    lead: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()
    commands: Sequence[str] = ()


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write the page; an old one stays whole until the new one is complete.

    Args:
        path: Where the .html file goes; the folder is made.
        report: The content, from measured results.

    Returns:
        The path.

    Raises:
        ValueError: If a table's row does not have one cell per column, or a picture
            is not (H, W, 3) uint8.

    Example:
        >>> write_report("report.html", Report("Demo", tables=[table]))
        ... # doctest: +SKIP
    """
    page = render(report)
    return write_files({Path(path): page.encode()})[0]


def render(report: Report) -> str:
    """Return the page as text; see `write_report`."""
    parts = [f"<h1>{_text(report.title)}</h1>"]
    if report.lead:
        parts.append(f"<p>{_text(report.lead)}</p>")
    if report.facts:
        facts = "".join(
            f"<div><dt>{_text(label)}</dt><dd>{_text(_short(value))}</dd></div>"
            for label, value in report.facts.items()
        )
        parts.append(f"<dl>{facts}</dl>")
    parts += [_table(table) for table in report.tables]
    if report.charts:
        charts = "".join(_chart(chart) for chart in report.charts)
        parts.append(f'<h2>Curves</h2><div class="charts">{charts}</div>')
    if report.pictures:
        pictures = "".join(_picture(picture) for picture in report.pictures)
        parts.append(f'<h2>Pictures</h2><div class="pictures">{pictures}</div>')
    if report.commands:
        lines = _text("\n".join(report.commands))
        parts.append(f"<h2>Reproduce</h2><pre>{lines}</pre>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(report.title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """Numbers as people read them, other values as they are."""
    if value is None:
        return "–"
    if not _is_number(value):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.1f}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1 else f"{value:.4g}"


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(
                f"Table {table.title!r} has {len(table.header)} columns; a row has "
                f"{len(row)}: {list(row)!r}."
            )
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    kinds = [
        ' class="n"'
        if column and all(_is_number(c) or c is None for c in column)
        else ""
        for column in columns
    ]
    head = "".join(
        f"<th{kind}>{_text(name)}</th>"
        for name, kind in zip(table.header, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{_text(_short(cell))}</td>"
            for cell, kind in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    note = f"<p>{_text(table.note)}</p>" if table.note else ""
    return (
        f'<h2>{_text(table.title)}</h2><div class="wide"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that span a range."""
    raw = (high - low) / max(count - 1, 1)
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * k for k in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _chart(chart: Chart) -> str:
    points = [
        point
        for line in chart.series.values()
        for point in line
        if all(map(math.isfinite, point))
    ]
    caption = f"<figcaption>{_text(chart.title)}</figcaption>"
    if not points:
        return f"<figure>{caption}<p>nothing measured</p></figure>"
    x_low, x_high = _range([x for x, _ in points])
    rows = _ticks(*_range([y for _, y in points]))
    across = (WIDTH - LEFT - RIGHT) / (x_high - x_low)
    down = (HEIGHT - TOP - BOTTOM) / (rows[-1] - rows[0])

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - x_low) * across, HEIGHT - BOTTOM - (y - rows[0]) * down

    shapes = [_grid_line(place(x_low, y)[1], y) for y in rows]
    for x in [x for x in _ticks(x_low, x_high) if x_low <= x <= x_high]:
        at = place(x, rows[0])[0]
        shapes.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{x:g}</text>"
        )
    shapes.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{_text(chart.x_label)}</text>'
    )
    for number, line in enumerate(chart.series.values()):
        shapes.append(_line([place(x, y) for x, y in line], number % COLOURS))
    legend = "".join(
        f'<span><i style="background:var(--c{k % COLOURS})"></i>{_text(name)}</span>'
        for k, name in enumerate(chart.series)
    )
    words = _text(f"{chart.title}: {chart.y_label} by {chart.x_label}")
    return (
        f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{words}">{"".join(shapes)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def _grid_line(height: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
        f'y2="{height:.1f}"/><text x="{LEFT - 8}" y="{height + 4:.1f}" '
        f'text-anchor="end">{value:.6g}</text>'
    )


def _line(points: Sequence[tuple[float, float]], colour: int) -> str:
    """A path that starts again after a missing value; single points are dots."""
    steps: list[str] = []
    pen = "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    path = "".join(steps)
    if len(steps) == 1:
        across, down = steps[0][1:].split()
        return f'<circle cx="{across}" cy="{down}" r="3.5" fill="var(--c{colour})"/>'
    return (
        f'<path d="{path}" fill="none" stroke="var(--c{colour})" stroke-width="2.2" '
        'stroke-linejoin="round" stroke-linecap="round"/>'
    )


def _picture(picture: Picture) -> str:
    image = picture.image
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            "A report's picture must be (height, width, 3) uint8 RGB, received "
            f"{image.shape} {image.dtype}."
        )
    height, width = image.shape[:2]
    size = max(height, width) / 26
    shapes = []
    parts = zip(picture.boxes, picture.labels, picture.texts, strict=True)
    for (x1, y1, x2, y2), label, text in parts:
        colour = f"var(--c{int(label) % COLOURS})"
        shapes.append(
            f'<rect class="box" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
            f'height="{y2 - y1:.1f}" stroke="{colour}"/>'
            f'<text x="{x1 + 2:.1f}" y="{max(y1 - size / 4, size):.1f}" '
            f'style="font-size:{size:.1f}px;fill:{colour};stroke:var(--halo);'
            f'stroke-width:{size / 4:.1f}px;paint-order:stroke">{_text(text)}</text>'
        )
    caption = f"<figcaption>{_text(picture.caption)}</figcaption>"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{_text(picture.caption)}"><image width="{width}" '
        f'height="{height}" href="{_jpeg(image)}"/>{"".join(shapes)}</svg>'
        f"{caption if picture.caption else ''}</figure>"
    )


def _jpeg(image: np.ndarray) -> str:
    cv2 = importlib.import_module("cv2")
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
