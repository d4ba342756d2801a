"""Fuses a saved model and measures what that changed."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets._errors import MissingExtraError
from keras_lightnets.tools.fuse import Plan, fuse, plan

ROUNDS = 20


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a model costs.

    Attributes:
        layers: Number of layers.
        params: Trainable values.
        madds: Multiply-adds of one picture; None where the size is unknown.
        latency_ms: Median time of its float32 TFLite file in LiteRT, one thread;
            None where it was not run.
    """

    layers: int
    params: int
    madds: int | None
    latency_ms: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model before and after fusing.

    Attributes:
        before: Figures of the model.
        after: Figures of the fused one.
        difference: Largest difference of an output, relative to its largest value,
            on pictures of noise.
        plan: What was fused, and what stays and why.
        note: Why there is no latency; empty where there is.
    """

    before: Figures
    after: Figures
    difference: float | None
    plan: Plan
    note: str = ""

    def json(self) -> dict[str, Any]:
        """Return everything as plain values for `json.dumps`."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Return the plan and a table."""
        rows = [("", "before", "after")]
        for field in dataclasses.fields(Figures):
            a, b = (_shown(getattr(f, field.name)) for f in (self.before, self.after))
            rows.append((field.name.replace("_", " "), a, b))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        table = [
            f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}"
            for a, b, c in rows
        ]
        lines = [self.plan.text(), *table]
        if self.difference is not None:
            lines.append(f"largest relative difference {self.difference:.1e}")
        return "\n".join([*lines, self.note]).strip()


def fuse_file(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    norms: bool = True,
    residuals: bool = False,
    rounds: int = ROUNDS,
) -> Comparison:
    """Fuse a saved model, save the result, and compare both.

    Args:
        file: A .keras file of a functional model.
        out: Where the fused model goes, another .keras file.
        norms: As given to `fuse`.
        residuals: Whether residual connections are merged too, by
            `reserve.merge_residuals`; normalisations are folded then.
        rounds: Timed runs of either model, in turns; 0 for none.

    Returns:
        The comparison.

    Raises:
        ValueError: If a name or `rounds` is not legal, the model is not functional,
            or both `residuals` and not `norms` are asked for.
        OSError: If a file cannot be read or written.
    """
    from keras_lightnets import load_model
    from keras_lightnets.tools.fuse import reserve

    file, out = Path(file), Path(out)
    _check_rounds(rounds)
    if out.suffix != ".keras" or out.resolve() == file.resolve():
        raise ValueError(
            f"The fused model needs another .keras file. Received: {out} for {file}. "
            "Pass such as -o fused.keras."
        )
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}. Pass a saved .keras model.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent}. Make it first.")
    if residuals and not norms:
        raise ValueError(
            "Residual connections are merged once normalisations are folded. "
            "Received: residuals=True, norms=False. Leave one of them out."
        )
    model = load_model(file)
    if residuals:
        fused, planned = reserve.merge_residuals(model), reserve.plan(model)
    else:
        fused, planned = fuse(model, norms=norms), plan(model, norms=norms)
    found = compare(model, fused, planned, rounds)
    fused.save(out)
    return found


def compare(model: Any, fused: Any, planned: Plan, rounds: int = 0) -> Comparison:
    """Measure a model and its fused form.

    Args:
        model: The model.
        fused: What `fuse` or `reserve.merge_residuals` made of it.
        planned: What their `plan` says of it.
        rounds: Timed runs of either model, in turns; 0 for none.

    Returns:
        The comparison.

    Raises:
        ValueError: If `rounds` is negative.
    """
    _check_rounds(rounds)
    times: Sequence[float | None] = (None, None)
    note = ""
    known = all(None not in tensor.shape[1:] for tensor in model.inputs)
    if not known:
        note = "The input size is not known, so neither are multiply-adds and latency."
    elif rounds:
        times, note = _latencies([model, fused], rounds)
    before, after = (
        _figures(m, ms, known) for m, ms in zip((model, fused), times, strict=True)
    )
    return Comparison(
        before,
        after,
        _difference(model, fused) if known else None,
        planned,
        note,
    )


def _check_rounds(rounds: int) -> None:
    if rounds < 0:
        raise ValueError(
            f"rounds counts timed runs, 0 for none. Received: {rounds}. "
            f"{ROUNDS} is usual."
        )


def _shown(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _figures(model: Any, latency_ms: float | None, known: bool) -> Figures:
    from keras_lightnets import cost

    params = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    madds = cost.total(model).madds if known else None
    return Figures(len(model.layers), params, madds, latency_ms)


def _noise(model: Any) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [(1, *tensor.shape[1:]) for tensor in model.inputs]
    return [random.uniform(0, 255, shape).astype("float32") for shape in shapes]


def _difference(model: Any, fused: Any) -> float:
    import keras

    values = _noise(model)
    inputs = values[0] if len(values) == 1 else values
    pairs = zip(
        *(keras.tree.flatten(m(inputs, training=False)) for m in (model, fused)),
        strict=True,
    )
    apart = []
    for a, b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        apart.append(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
    return float(max(apart))


def _latencies(
    models: Sequence[Any], rounds: int
) -> tuple[Sequence[float | None], str]:
    """Return the median time of each model, run in turns; or why there is none."""
    from keras_lightnets.tools.export import tflite
    from keras_lightnets.tools.quantize.bridge import UnsupportedLayerError

    try:
        made = [tflite.interpreter(tflite.convert(model)) for model in models]
    except (MissingExtraError, UnsupportedLayerError) as error:
        return [None] * len(models), f"No latency: {error}"
    for interpreter in made:
        interpreter.invoke()
    times: list[list[float]] = [[] for _ in made]
    for _ in range(rounds):
        for interpreter, row in zip(made, times, strict=True):
            start = time.perf_counter()
            interpreter.invoke()
            row.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(row) for row in times], ""
