"""Run an exported file and compare it with the model it came from.

Every figure is measured on real samples with the kernels that users run (XNNPACK).
"q" is one step of an output's quantisation. Two sets of int8 kernels disagree with each
other by about 2 q where a network hesitates between two classes, so decisions are asked
for only where the two best differ by more than 4 q; there all must agree.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets.tools.export.opened import OpenedFile, TFLiteFile

CLEAR_MARGIN_STEPS = 4.0
MEAN_ERROR_STEPS = 2.0
# Largest error of float files, in shares of the largest output.
FLOAT_LIMITS = {"float32": 1e-4, "float16": 2e-2}
# Ops named in one problem.
MOST_NAMED = 12
# Encodings, not decisions between columns.
NO_DECISION = ("boxes",)

Reference = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class OutputCheck:
    """How one output of the file compares with the model's.

    Attributes:
        name: Output's name.
        step: Size of one quantisation step, 0 for float outputs.
        mean_error: Mean absolute difference.
        max_error: Largest absolute difference.
        largest: Largest absolute value of the model.
        agreement: Share of equal decisions (largest column), None without.
        clear_agreement: The same where the margin exceeds 4 steps.
        clear_share: Share of such clear decisions.
    """

    name: str
    step: float
    mean_error: float
    max_error: float
    largest: float
    agreement: float | None = None
    clear_agreement: float | None = None
    clear_share: float | None = None

    @property
    def mean_error_steps(self) -> float:
        """Mean error in quantisation steps; 0 for float outputs."""
        return self.mean_error / self.step if self.step else 0.0


@dataclasses.dataclass(frozen=True)
class Verification:
    """What running the file has shown.

    Attributes:
        kind: "float32", "float16" or "int8".
        samples: Pictures compared.
        ops: Operator name to count.
        float_ops: Ops of an int8 file that work on floats, named.
        outputs: One comparison per output.
        xnnpack_partitions: Parts of the graph that XNNPACK runs, None if unknown.
        problems: What misses the limits, in words; empty when all is well.
    """

    kind: str
    samples: int
    ops: Mapping[str, int]
    float_ops: tuple[str, ...]
    outputs: tuple[OutputCheck, ...]
    xnnpack_partitions: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything is within the limits."""
        return not self.problems

    @property
    def max_error(self) -> float:
        """Largest difference of any output."""
        return max(row.max_error for row in self.outputs)

    @property
    def agreement(self) -> float | None:
        """Smallest share of equal decisions among the outputs, None without."""
        shares = [row.agreement for row in self.outputs if row.agreement is not None]
        return min(shares, default=None)

    def json(self) -> dict[str, Any]:
        """Return everything as plain values for `json.dumps`."""
        rows = [
            {**dataclasses.asdict(row), "mean_error_steps": row.mean_error_steps}
            for row in self.outputs
        ]
        return {**dataclasses.asdict(self), "outputs": rows, "passed": self.passed}


def verify(
    source: str | os.PathLike[str] | bytes,
    reference: Reference,
    samples: Iterable[np.ndarray],
    kind: str,
    opener: Callable[[bytes], OpenedFile] = TFLiteFile,
) -> Verification:
    """Run a file on samples and compare it with a model.

    Args:
        source: Path or content of the file with the model's own outputs.
        reference: The Keras model (or any callable) from a float32 batch
            (1, height, width, channels), 0..255, to an array or a dict of arrays.
        samples: Pictures (height, width, channels) or (1, ...), 0..255.
        kind: "float32", "float16" or "int8": which limits hold.
        opener: Opens the content for running.

    Returns:
        The measured comparison; `problems` lists what misses the limits.

    Raises:
        ValueError: If there are no samples, or the outputs do not correspond.

    Example:
        >>> verify("model.tflite", model, pictures, "int8").problems  # doctest: +SKIP
        ()
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    batches = [_batch(sample) for sample in samples]
    if not batches:
        raise ValueError("Verifying needs at least one real sample; received none.")
    file = opener(content)
    expected, found = _run_both(file, reference, batches)
    checks = tuple(
        _check(name, expected[name], found[name], file.steps[name]) for name in expected
    )
    loose = file.float_ops if kind == "int8" else ()
    problems = [
        *(f"works on floats: {name}" for name in loose),
        *(f"{name} has an open dimension" for name in file.open_dimensions),
        *(_split(file) if kind == "int8" else ()),
    ]
    for check in checks:
        problems += _complaints(check, kind)
    return Verification(
        kind=kind,
        samples=len(batches),
        ops=file.ops,
        float_ops=loose,
        outputs=checks,
        xnnpack_partitions=file.xnnpack_partitions,
        problems=tuple(problems),
    )


def _split(file: OpenedFile) -> tuple[str, ...]:
    """Say where XNNPACK runs a file in several parts.

    Ops before the only part and behind it, such as an int8 softmax, are no problem.
    """
    if file.xnnpack_partitions in (None, 1):
        return ()
    shown = file.xnnpack_outside[:MOST_NAMED]
    more = len(file.xnnpack_outside) - len(shown)
    rest = f" and {more} more" if more else ""
    return (
        f"XNNPACK runs it in {file.xnnpack_partitions} parts, not in one; outside: "
        f"{'; '.join(shown)}{rest}",
    )


def _batch(sample: np.ndarray) -> np.ndarray:
    array = np.asarray(sample, np.float32)
    return array if array.ndim == 4 else array[None]


def _run_both(
    file: OpenedFile, reference: Reference, batches: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs by name of the model and of the file, samples joined."""
    names = file.outputs
    expected: dict[str, list[np.ndarray]] = {}
    found: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        made = _by_name(reference(batch), names)
        for name, value in made.items():
            expected.setdefault(name, []).append(value)
        for name, value in zip(names, file.run(batch), strict=True):
            found.setdefault(name, []).append(value)
    joined = {name: np.concatenate(values) for name, values in expected.items()}
    taken = {name: np.concatenate(values) for name, values in found.items()}
    for name, value in joined.items():
        if value.shape != taken[name].shape:
            raise ValueError(
                f"Output {name!r} is {value.shape} in the model and "
                f"{taken[name].shape} in the file."
            )
    return joined, taken


def _by_name(outputs: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not isinstance(outputs, Mapping):
        rows = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        outputs = dict(zip(names, rows, strict=len(rows) == len(names)))
    if set(outputs) != set(names):
        raise ValueError(
            f"The model's outputs are {sorted(outputs)}, the file's {sorted(names)}: "
            "they are not the same network."
        )
    return {name: _array(outputs[name]) for name in names}


def _array(value: Any) -> np.ndarray:
    """A backend's tensor as float32."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    return np.asarray(value, np.float32)


def _check(
    name: str, expected: np.ndarray, found: np.ndarray, step: float
) -> OutputCheck:
    error = np.abs(expected - found)
    row = OutputCheck(
        name=name,
        step=step,
        mean_error=float(error.mean()),
        max_error=float(error.max()),
        largest=float(np.abs(expected).max()),
    )
    if name in NO_DECISION or expected.shape[-1] < 2:
        return row
    same = expected.argmax(-1) == found.argmax(-1)
    best = np.partition(expected, -2, axis=-1)
    clear = best[..., -1] - best[..., -2] > CLEAR_MARGIN_STEPS * step
    return dataclasses.replace(
        row,
        agreement=float(same.mean()),
        clear_agreement=float(same[clear].mean()) if clear.any() else None,
        clear_share=float(clear.mean()),
    )


def _complaints(check: OutputCheck, kind: str) -> list[str]:
    """What an output misses, in words."""
    if not np.isfinite(check.max_error):
        return [f"{check.name}: not all values are finite"]
    if kind in FLOAT_LIMITS:
        share = check.max_error / max(check.largest, 1e-12)
        if share <= FLOAT_LIMITS[kind]:
            return []
        return [
            f"{check.name}: differs by {share:.2g} of its largest value, limit "
            f"{FLOAT_LIMITS[kind]:g}"
        ]
    texts = []
    if check.mean_error_steps >= MEAN_ERROR_STEPS:
        texts.append(
            f"{check.name}: mean error {check.mean_error_steps:.2f} steps, limit "
            f"{MEAN_ERROR_STEPS:g}"
        )
    if check.clear_agreement is not None and check.clear_agreement < 1:
        texts.append(
            f"{check.name}: {check.clear_agreement:.4%} of the decisions with a margin "
            f"above {CLEAR_MARGIN_STEPS:g} steps agree, all should"
        )
    return texts
