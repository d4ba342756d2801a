"""Latency of networks through LiteRT, measured side by side, against their accuracy.

Every network is converted to float32 and int8 files; their runs take turns, so that
a busy moment of the machine meets all of them. Absolute figures belong to one
machine and one moment; ratios of figures of one run are what counts.
"""

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets._errors import unknown

KINDS = ("float32", "int8")
# Pictures that fix int8 ranges when none are given; ranges do not move latency.
RANDOM_PICTURES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one file at one number of threads.

    Attributes:
        name: Registry name.
        size: Input side, in pixels.
        params: Trainable weights.
        madds: Multiply-adds of one image.
        top1: Published ImageNet top-1 in percent at the published size, or None.
        kind: "float32" or "int8".
        threads: Threads of the interpreter.
        bytes: Size of the file; 0 where there is none.
        latency_ms: Median of the runs, or None where there is no file.
        low_ms: Lower quartile of the runs.
        high_ms: Upper quartile of the runs.
        runs: Number of timed runs.
        problem: Why there is no file, or what about it slows it down.
    """

    name: str
    size: int
    params: int
    madds: int
    top1: float | None
    kind: str
    threads: int
    bytes: int = 0
    latency_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    runs: int = 0
    problem: str = ""


def bench(
    names: Sequence[str],
    *,
    size: int = 0,
    threads: Sequence[int] = (1, 2),
    runs: int = 30,
    kinds: Sequence[str] = KINDS,
    calibration: Iterable[Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Convert networks with random weights and time their files in turns.

    Args:
        names: Registry names, or shell patterns of them.
        size: Input side in pixels; 0 for each network's published one.
        threads: Numbers of threads to measure at.
        runs: Timed runs of every file at every number of threads.
        kinds: Any of KINDS.
        calibration: Pictures (size, size, 3) of 0-255 for the int8 ranges; random
            ones when not given.
        say: Called with a line on what is being done.

    Returns:
        One row per network, kind and number of threads, in this order.

    Raises:
        ValueError: If a name, kind or number is not legal.
        MissingExtraError: If LiteRT or the converter's packages are missing.

    Example:
        >>> rows = bench(["ghostnet_050"], size=96, runs=5)  # doctest: +SKIP
        >>> rows[0].latency_ms  # doctest: +SKIP
        1.9
    """
    _check(threads, runs, kinds)
    tell = say or (lambda text: None)
    pictures = None if calibration is None else list(calibration)
    rows: list[Row] = []
    timed: list[tuple[int, Callable[[], float]]] = []
    for name in expand(names):
        tell(f"convert {name}")
        for row, content in _files(name, size, kinds, pictures):
            for count in threads:
                row = dataclasses.replace(row, threads=count)
                try:
                    if content is not None:
                        timed.append((len(rows), timer(content, count)))
                except RuntimeError as error:
                    row = dataclasses.replace(row, problem=f"LiteRT refuses: {error}")
                rows.append(row)
    tell(f"run {len(timed)} files {runs} times in turns")
    times = in_turns([function for _, function in timed], runs)
    for (place, _), values in zip(timed, times, strict=True):
        rows[place] = _measured(rows[place], values)
    return rows


def expand(names: Sequence[str]) -> list[str]:
    """Return registry names of names and shell patterns, each once, in order.

    Args:
        names: Registry names, function names, or patterns such as "ghost*".

    Returns:
        Registry names.

    Raises:
        ValueError: If there is no such network.

    Example:
        >>> expand(["GhostNet", "ghostnet*"])
        ['ghostnet', 'ghostnet_050', 'ghostnet_130']
    """
    from keras_lightnets import get_spec, list_models

    found: list[str] = []
    for name in names:
        matching = list_models(name) if set(name) & set("*?[") else []
        found += matching or [get_spec(name).name]
    return list(dict.fromkeys(found))


def read_pictures(folder: Path, size: int) -> list[np.ndarray]:
    """Read the first pictures of a folder for the int8 ranges.

    Args:
        folder: Its JPEG and PNG files are taken in the order of their names.
        size: Side to resize them to; pictures of networks of different sizes
            cannot be shared, so it must be given.

    Returns:
        At most 100 arrays (size, size, 3), 0-255.

    Raises:
        ValueError: If there are none, or no size is given.
    """
    from keras_lightnets.tools import runtime

    endings = {".jpg", ".jpeg", ".png"}
    paths = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in endings]
    if not paths or size < 1:
        raise ValueError(
            "Calibration needs a folder with .jpg or .png files, and one size for all "
            f"networks. Received: {folder} with {len(paths)} pictures, size={size}"
        )
    read = (runtime.read_image(path) for path in paths[:100])
    return [runtime.resize_image(picture, (size, size)) for picture in read]


def in_turns(functions: Sequence[Callable[[], float]], runs: int) -> list[list[float]]:
    """Call functions round by round, each round starting with another one.

    Args:
        functions: Each does its work and returns how long it took.
        runs: Number of rounds.

    Returns:
        What each function returned, round by round.
    """
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(runs):
        for step in range(len(functions)):
            place = (turn + step) % len(functions)
            times[place].append(functions[place]())
    return times


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points that no other one beats, the quickest first.

    Args:
        points: (latency, accuracy) of each network.

    Returns:
        Places of those for which no other is at least as quick and at least as
        accurate, and better in one of the two.

    Example:
        >>> pareto([(3.0, 70.0), (1.0, 60.0), (2.0, 75.0)])
        [1, 2]
    """
    best: list[int] = []
    for i, (latency, accuracy) in enumerate(points):
        beaten = any(
            other[0] <= latency
            and other[1] >= accuracy
            and other != (latency, accuracy)
            for other in points
        )
        if not beaten:
            best.append(i)
    return sorted(best, key=lambda i: points[i])


def write(rows: Sequence[Row], folder: Path) -> tuple[Path, ...]:
    """Write bench.csv, and pareto.png where any network has a published top-1.

    Args:
        rows: What `bench` returned.
        folder: Made if missing.

    Returns:
        The files.
    """
    from keras_lightnets.tools.export.files import write_files

    text = io.StringIO(newline="")
    fields = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    contents = {folder / "bench.csv": text.getvalue().encode()}
    if any(row.top1 and row.latency_ms for row in rows):
        contents[folder / "pareto.png"] = _plot(rows)
    return write_files(contents)


def table(rows: Sequence[Row]) -> Any:
    """Return the rows as a `rich.table.Table`, one line per network.

    Args:
        rows: What `bench` returned.

    Returns:
        The table; latencies are medians and half the distance of the quartiles, at
        so many threads ("2T").
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    settings = list(dict.fromkeys((row.kind, row.threads) for row in rows))
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    found.add_column("network", no_wrap=True)
    headers = ["size", "params\nM", "MAdds\nM", "top-1\n%"]
    headers += [f"{kind}\n{count}T, ms" for kind, count in settings]
    for header in headers:
        found.add_column(header, justify="right", no_wrap=True)
    by_place = {(row.name, row.kind, row.threads): row for row in rows}
    for name in dict.fromkeys(row.name for row in rows):
        cells = [by_place[name, *setting] for setting in settings]
        first = cells[0]
        found.add_row(
            name,
            str(first.size),
            f"{first.params / 1e6:.2f}",
            f"{first.madds / 1e6:.0f}",
            f"{first.top1:.1f}" if first.top1 else "",
            *(_cell(cell) for cell in cells),
        )
    problems = [f"{row.name}, {row.kind}: {row.problem}" for row in rows if row.problem]
    found.caption = Text("\n".join(dict.fromkeys(problems))) if problems else None
    return found


def _cell(row: Row) -> str:
    if row.latency_ms is None or row.low_ms is None or row.high_ms is None:
        return "no file"
    half = (row.high_ms - row.low_ms) / 2
    return f"{row.latency_ms:.1f} ±{half:.1f}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _check(threads: Sequence[int], runs: int, kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of file", kind, KINDS)
    numbers = (("threads", min(threads, default=0)), ("runs", runs))
    for what, value in numbers:
        if value < 1:
            raise ValueError(f"{what} must be 1 or more. Received: {value}")


def _files(
    name: str, size: int, kinds: Sequence[str], pictures: list[Any] | None
) -> list[tuple[Row, bytes | None]]:
    """Build a network and convert it; what cannot be converted says why."""
    from keras_lightnets import cost, get_spec
    from keras_lightnets.tools.export import tflite
    from keras_lightnets.tools.quantize.bridge import UnsupportedLayerError

    spec = get_spec(name)
    model, shown = settled(name, size, pictures)
    whole = cost.total(model)
    found: list[tuple[Row, bytes | None]] = []
    for kind in kinds:
        content, problem = None, "" if spec.int8_ok else spec.flags_reason
        try:
            if kind == "float32":
                content, problem = tflite.convert(model), ""
            elif spec.int8_ok:
                content = tflite.convert(model, "int8", "uint8", shown)
                problem = _slow(content)
        except UnsupportedLayerError as error:
            problem = str(error)
        row = Row(
            name=name,
            size=model.input_shape[1],
            params=whole.params,
            madds=whole.madds,
            top1=spec.top1,
            kind=kind,
            threads=0,
            bytes=len(content or b""),
            problem=problem,
        )
        found.append((row, content))
    return found


def settled(
    name: str, size: int = 0, pictures: list[Any] | None = None
) -> tuple[Any, list[Any]]:
    """Build a network with random weights that passes signals of ordinary size.

    Args:
        name: Registry name.
        size: Input side in pixels; 0 for the published one.
        pictures: Pictures (size, size, 3) of 0-255; random ones when not given.

    Returns:
        The model and the pictures.
    """
    from keras_lightnets import create_model, get_spec

    side = size or get_spec(name).default_size
    model = create_model(name, weights=None, input_shape=(side, side, 3))
    shown = random_pictures(side) if pictures is None else pictures
    settle(model, np.stack(shown[:RANDOM_PICTURES]))
    return model, shown


def settle(model: Any, pictures: np.ndarray) -> None:
    """Give every normalisation the statistics of what it normalises.

    As they start, signals may die out or grow from layer to layer until no int8
    range holds them.

    Args:
        model: A Keras model, changed in place.
        pictures: (count, height, width, 3), 0..255.
    """
    import keras

    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(pictures.astype("float32"), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def random_pictures(side: int) -> list[np.ndarray]:
    """Return a few pictures (side, side, 3) of noise, 0-255, always the same."""
    random = np.random.default_rng(0)
    shape = (RANDOM_PICTURES, side, side, 3)
    return list(random.integers(0, 256, shape).astype("float32"))


def _slow(content: bytes) -> str:
    """Say how many ops of an int8 file work on floats, and whether it is split."""
    from keras_lightnets.tools.export.opened import TFLiteFile

    file = TFLiteFile(content)
    found = [f"{len(file.float_ops)} ops work on floats"] if file.float_ops else []
    if file.xnnpack_partitions not in (None, 1):
        found.append(f"XNNPACK runs it in {file.xnnpack_partitions} parts")
    return ", ".join(found)


def timer(content: bytes, threads: int) -> Callable[[], float]:
    """Open a file for timing.

    Args:
        content: The .tflite file, with one input.
        threads: Threads of the interpreter.

    Returns:
        A function that runs it and returns the seconds that took.

    Raises:
        RuntimeError: If LiteRT refuses the file.
    """
    from keras_lightnets.tools.export import tflite

    made = tflite.interpreter(content, threads=threads)
    (detail,) = made.get_input_details()
    random = np.random.default_rng(1)
    picture = random.integers(0, 256, detail["shape"]).astype(detail["dtype"])
    made.set_tensor(detail["index"], picture)

    def seconds() -> float:
        # Its weights were driven out of the caches by the networks before it.
        made.invoke()
        start = time.perf_counter()
        made.invoke()
        return time.perf_counter() - start

    return seconds


def _measured(row: Row, seconds: Sequence[float]) -> Row:
    """Add median and quartiles, in milliseconds."""
    low, middle, high = np.quantile([1000 * v for v in seconds], (0.25, 0.5, 0.75))
    return dataclasses.replace(
        row,
        latency_ms=round(float(middle), 4),
        low_ms=round(float(low), 4),
        high_ms=round(float(high), 4),
        runs=len(seconds),
    )


def _plot(rows: Sequence[Row]) -> bytes:
    """Draw latency against published top-1, one panel per kind and threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row.kind for row in rows))
    counts = list(dict.fromkeys(row.threads for row in rows))
    size = (6.5 * len(counts), 4.5 * len(kinds))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(kinds), len(counts), squeeze=False, sharey=True)
    for line, kind in zip(panels, kinds, strict=True):
        for axis, threads in zip(line, counts, strict=True):
            chosen = [r for r in rows if (r.kind, r.threads) == (kind, threads)]
            _panel(axis, chosen)
            axis.set_title(f"{kind}, {_threads(threads)}")
    target = io.BytesIO()
    figure.savefig(target, dpi=110, format="png")
    return target.getvalue()


def _panel(axis: Any, rows: Sequence[Row]) -> None:
    """Draw the networks of one setting and the line of those that none beats."""
    from matplotlib.ticker import ScalarFormatter

    shown = [
        (row.latency_ms, row.top1, row.name)
        for row in rows
        if row.latency_ms is not None and row.top1 is not None
    ]
    axis.set(xscale="log", xlabel="latency, ms", ylabel="published top-1, %")
    axis.margins(0.12)
    for which in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        which(ScalarFormatter())
    axis.tick_params(axis="x", which="both", labelsize=7)
    axis.grid(alpha=0.3, which="both")
    axis.scatter([s[0] for s in shown], [s[1] for s in shown], s=16)
    best = [shown[i] for i in pareto([s[:2] for s in shown])]
    axis.step([s[0] for s in best], [s[1] for s in best], where="post", alpha=0.6)
    slowest = max((s[0] for s in shown), default=0.0)
    for latency, top1, name in shown:
        side, shift = ("right", -3) if latency == slowest else ("left", 3)
        axis.annotate(
            name,
            (latency, top1),
            (shift, 3),
            textcoords="offset points",
            fontsize=7,
            ha=side,
        )
