"""Model card and terminal table of an export, from its measured JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"


def card(result: Mapping[str, Any]) -> str:
    """Write a model card.

    Args:
        result: Content of a run's export.json.

    Returns:
        Markdown: what the model is and comes from, every file's size, input, output,
        agreement, metric, latency and what its target makes of it. Nothing that is
        not in `result`.

    Example:
        >>> card(json.loads(Path("export.json").read_text()))  # doctest: +SKIP
    """
    about, monitor = result["model"], result["monitor"]
    parts = [
        f"# {about['name']}",
        _summary(about),
        "## Files",
        _grid(_file_header(monitor), [_file_row(*i, monitor) for i in _files(result)]),
        "Metric: "
        f"{monitor} on {about['val_images']:,} validation images, measured by running "
        "each file. Agreement: share of decisions equal to those of the model that the "
        "file was made from.",
        "## Metrics",
        _metrics(result, monitor),
        "## Latency",
        _latency(result),
        "## Input and output",
        _ends(result),
        *_targets(result),
        "## Problems",
        _problems(result),
        "## Where it comes from",
        _provenance(about),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(result: Mapping[str, Any]) -> Any:
    """Return the files of an export as a `rich.table.Table`, one line each.

    Args:
        result: Content of a run's export.json.

    Returns:
        The table; problems stand below it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    monitor = result["monitor"]
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    threads = _threads(result)
    header = ["format", "KiB", "ops", "agreement", monitor]
    header += [f"{count}T, ms" for count in threads]
    for place, name in enumerate(header):
        found.add_column(
            name,
            justify="left" if place == 0 else "right",
            # On a narrow terminal a time breaks in front of its scatter.
            no_wrap=not name.endswith("ms"),
        )
    for kind in ("float", "qat"):
        if result[kind] is not None:
            metric = _number(result[kind][monitor])
            title = {"float": "Keras, float", "qat": "quantisation-aware"}[kind]
            found.add_row(title, "", "", "", metric, *("" for _ in threads))
    for name, file in _files(result):
        found.add_row(
            name,
            f"{file['bytes'] / 1024:,.0f}",
            str(sum(file["ops"].values())),
            _share(file["agreement"]),
            _number(file["metrics"].get(monitor)),
            *(_time(file, count) for count in threads),
        )
    lines = [line for name, file in _files(result) for line in _notes(name, file)]
    found.caption = Text("\n".join(lines)) if lines else None
    return found


def _notes(name: str, file: Mapping[str, Any]) -> list[str]:
    verdicts = [row["text"].splitlines()[0] for row in file["verdicts"].values()]
    return [f"{name}: {text}" for text in (*verdicts, *file["problems"])]


def _files(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(result["files"].items())


def _summary(about: Mapping[str, Any]) -> str:
    height, width = about["input"]
    head = f" with the head `{about['head']}`" if about["head"] else ""
    labels = about["labels"]
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    classes = "1 class" if len(labels) == 1 else f"{len(labels)} classes"
    return (
        f"Task: {about['task']}. Network: `{about['backbone']}`{head}, "
        f"{about['params']:,} parameters, RGB pictures of {height} x {width} pixels, "
        f"{classes}: {shown}."
    )


def _file_header(monitor: str) -> tuple[str, ...]:
    return ("format", "file", "KiB", "operators", "agreement", monitor)


def _file_row(name: str, file: Mapping[str, Any], monitor: str) -> tuple[str, ...]:
    return (
        f"`{name}`",
        f"`{'/'.join(file['path'].replace(chr(92), '/').split('/')[-2:])}`",
        f"{file['bytes'] / 1024:,.0f}",
        str(sum(file["ops"].values())),
        _share(file["agreement"]),
        _number(file["metrics"].get(monitor)),
    )


def _metrics(result: Mapping[str, Any], monitor: str) -> str:
    """The figures that model and files share."""
    columns: dict[str, Mapping[str, Any]] = {"Keras, float": result["float"]}
    if result["qat"] is not None:
        columns["quantisation-aware"] = result["qat"]
    columns |= {f"`{name}`": file["metrics"] for name, file in _files(result)}
    names = [monitor]
    names += [
        key
        for key, value in result["float"].items()
        if key != monitor
        and isinstance(value, float)
        and all(isinstance(row.get(key), int | float) for row in columns.values())
    ]
    rows = [(name, *(_number(r.get(name)) for r in columns.values())) for name in names]
    return _grid(("metric", *columns), rows)


def _threads(result: Mapping[str, Any]) -> list[int]:
    counts = {row["threads"] for _, f in _files(result) for row in f["latency"]}
    return sorted(counts)


def _time(file: Mapping[str, Any], threads: int) -> str:
    for row in file["latency"]:
        if row["threads"] == threads:
            half = (row["high_ms"] - row["low_ms"]) / 2
            return f"{row['median_ms']:.2f} ±{half:.2f}"
    return NONE


def _latency(result: Mapping[str, Any]) -> str:
    threads = _threads(result)
    if not threads:
        return "Not measured."
    names = [f"{n} {'thread' if n == 1 else 'threads'}, ms" for n in threads]
    header = ("format", "runs in", *names)
    rows = [
        (f"`{name}`", file["engine"], *(_time(file, count) for count in threads))
        for name, file in _files(result)
    ]
    machine = result["machine"]
    runs = max(row["runs"] for _, file in _files(result) for row in file["latency"])
    return _grid(header, rows) + (
        f"\n\nMedian of {runs} runs and half the distance of the quartiles, one "
        f"picture, on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}; accelerators were not used."
    )


def _ends(result: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{name}`",
            side[:-1],
            f"`{end['name']}`",
            end["dtype"],
            "x".join(str(n) for n in end["shape"]),
            *_scale(end),
        )
        for name, file in _files(result)
        for side in ("inputs", "outputs")
        for end in file["io"][side]
    ]
    header = ("format", "end", "name", "type", "shape", "scale", "zero point")
    return (
        f"Pictures: {result['model']['range']}; the normalisation is part of "
        "each file. A real value is (stored - zero point) x scale.\n\n"
        + _grid(header, rows)
    )


def _scale(end: Mapping[str, Any]) -> tuple[str, str]:
    """Scale and zero point; real values have none, whatever they were rounded to."""
    if end["scale"] is None or "float" in end["dtype"]:
        return NONE, NONE
    return f"{end['scale']:.6g}", str(end["zero_point"])


def _targets(result: Mapping[str, Any]) -> list[str]:
    blocks = [
        f"`{name}`{'' if name == target else f' on {target}'}:"
        f"\n\n```\n{found['text']}\n```"
        for name, file in _files(result)
        for target, found in file["verdicts"].items()
    ]
    return ["## Devices", *blocks] if blocks else []


def _problems(result: Mapping[str, Any]) -> str:
    lines = [f"- `{n}`: {text}" for n, f in _files(result) for text in f["problems"]]
    return "\n".join(lines) or "None found."


def _provenance(about: Mapping[str, Any]) -> str:
    rows = [
        ("training data", _folder(about["data"])),
        ("validation data", _folder(about["val_data"])),
        ("epochs", about["epochs"]),
        ("paper of the network", about["reference"]),
        ("weights it started from", about["weights"]["source"]),
        ("licence of these weights", about["weights"]["licence"]),
        ("address of these weights", about["weights"]["url"]),
        ("pictures for int8 ranges", about["calibration"]),
        ("made with", ", ".join(f"{k} {v}" for k, v in about["versions"].items())),
    ]
    return _grid(("fact", "value"), [(name, _word(value)) for name, value in rows])


def _folder(path: str | None) -> str:
    """The last two parts, as in "bccd/train": the rest is the machine's."""
    parts = (path or "").replace(chr(92), "/").strip("/").split("/")
    return "/".join(parts[-2:])


def _word(value: Any) -> str:
    return NONE if value in (None, "") else str(value)


def _number(value: Any) -> str:
    return NONE if not isinstance(value, int | float) else f"{value:.4f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.2%}"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"

    ruler = "|" + "---|" * len(header)
    return "\n".join([line(header), ruler, *(line(row) for row in rows)])
