"""The run folder: files that are complete or absent, whatever happens."""

import contextlib
import csv
import importlib.metadata
import io
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_lightnets._version import __version__
from keras_lightnets.tasks.config import Options, read_json_object

# Member of a .keras archive that holds labels, input size, anchors and options.
META_MEMBER = "keras_lightnets.json"
PACKAGES = (
    "keras",
    "tensorflow",
    "numpy",
    "albumentations",
    "opencv-python-headless",
    "pycocotools",
    "hotcoco",
)


class RunError(ValueError):
    """The run folder does not allow what was asked; the text says what does."""


class TrainingError(RuntimeError):
    """Training cannot go on; the text says why and what to change."""


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path that replaces `path` once it is written and on disk.

    Whatever goes wrong before (full disk, killed process), `path` keeps its
    previous content.

    Args:
        path: The file to write.

    Yields:
        A path in the same folder, with the same suffix, to write to.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file that is complete or unchanged."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file that is complete or unchanged."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_history(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write one CSV line per epoch; a value that an epoch lacks stays empty."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"keras_lightnets": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {**found, "platform": platform.platform()}


def open_folder(
    folder: Path, config: Options, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Create the folder of a run, or check that the run may continue in it.

    Args:
        folder: The run's folder.
        config: The run's options; written to config.json.
        resume: Continue the run that is there.
        overwrite: Delete the run that is there.

    Raises:
        RunError: If the folder exists and neither is given, holds something else
            than a run, or the run has other options.
    """
    check_free(folder, resume=resume, overwrite=overwrite)
    if resume and (folder / "config.json").is_file():
        _check_same(folder, config)
        return
    if (folder / "config.json").is_file():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "versions.json", versions())
    write_text(folder / "config.json", config.to_json())


def check_free(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise RunError unless a run may start or continue in the folder.

    Args:
        folder: The run's folder.
        resume: Continue the run that is there.
        overwrite: Delete the run that is there.

    Raises:
        RunError: If the folder exists and neither is given, or is no run's.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other; give one.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "config.json").is_file():
        raise RunError(
            f"{folder} exists and is not a run folder (it has no config.json), so it "
            "is left alone. Choose another --name."
        )
    if not resume and not overwrite:
        raise RunError(
            f"The run {folder} exists. Continue it with --resume, replace it with "
            "--overwrite, or choose another --name."
        )


# Options that change the speed of a run, not its result.
_FREE = ("name", "runs", "workers")


def _check_same(folder: Path, config: Options) -> None:
    before, now = read_json_object(folder / "config.json"), config.to_dict()
    changed = [
        f"{key}: {before.get(key)!r} -> {value!r}"
        for key, value in now.items()
        if key not in _FREE and before.get(key) != value
    ]
    if changed:
        raise RunError(
            f"The run {folder} was started with other options, so it cannot be resumed "
            f"with these: {'; '.join(changed)}. Leave them out or choose a new --name."
        )


def save_model(model: Any, path: Path, meta: Mapping[str, Any]) -> None:
    """Write a .keras file that carries its own description.

    Args:
        model: The Keras model.
        path: The file, ending in .keras.
        meta: JSON values: labels, input, anchors, options; read back by
            `read_meta`.
    """
    with atomic_file(path) as part:
        model.save(part)
        with zipfile.ZipFile(part, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(META_MEMBER, json.dumps(meta))


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the description of a trained model.

    Args:
        path: A .keras file of this package, or a .tflite file with NAME.json beside.

    Returns:
        Its labels, input, anchors and options.

    Raises:
        RunError: If the file is missing or carries no description.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"No model at {path}.")
    if path.suffix == ".tflite":
        sidecar = path.with_suffix(".json")
        if not sidecar.is_file():
            raise RunError(
                f"{path} needs {sidecar.name} beside it (labels, anchors, input size). "
                "It is written at export; copy both files."
            )
        return read_json_object(sidecar)
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(META_MEMBER))
    except (zipfile.BadZipFile, KeyError) as error:
        raise RunError(
            f"{path} carries no labels and anchors: it was not written by a training "
            "run of this package. Use a run's best.keras or a .tflite exported from it."
        ) from error


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the model file of a run folder, or the file itself.

    Args:
        path: A run's folder, a .keras or a .tflite file.

    Returns:
        The file.

    Raises:
        RunError: If there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("best.keras", "last.keras"):
            if (path / name).is_file():
                return path / name
        raise RunError(f"{path} holds no trained model (best.keras or last.keras).")
    if not path.is_file():
        raise RunError(
            f"No model at {path}. Give a run's folder, a .keras or a .tflite."
        )
    if path.suffix not in (".keras", ".tflite"):
        raise RunError(f"A model is a .keras or .tflite file. Received: {path}")
    return path


def _sync_folder(folder: Path) -> None:
    """Put a rename on disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
