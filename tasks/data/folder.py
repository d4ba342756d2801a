"""Data sets of images with one class each: a folder per class, or a CSV table."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_lightnets.tasks.data import images
from keras_lightnets.tasks.data.checks import Problem
from keras_lightnets.tasks.data.records import FileSet

FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
LABEL_COLUMNS = ("class_index", "class", "label", "name")


@dataclass(frozen=True)
class Record:
    """One image and its class.

    Attributes:
        file_name: Its name, relative to the data set.
        path: The image.
        label: Its class, from 0.
    """

    file_name: str
    path: Path
    label: int

    @property
    def image_id(self) -> str:
        """The image's name."""
        return self.file_name

    @property
    def labels(self) -> np.ndarray:
        """The class as the balance of the loader reads it, int32 (1,)."""
        return np.array([self.label], np.int32)


class ClassDataset(FileSet):
    """Images with one class each, read lazily."""

    def sample(self, index: int) -> tuple[np.ndarray, int]:
        """Read one image.

        Args:
            index: 0 to `len(self) - 1`.

        Returns:
            Image, uint8 (H, W, 3), RGB, and its class.

        Raises:
            ImageError: If the image cannot be used.
        """
        record = self.records[index]
        return images.read_image(record.path), record.label


def list_folders(root: str | Path) -> ClassDataset:
    """List a folder that holds one folder per class.

    Args:
        root: The folder; the names of its folders, sorted, are the classes.

    Returns:
        The data set, unchecked.
    """
    root = Path(root)
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    records = [
        Record(str(path.relative_to(root)), path, label)
        for label, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in images.EXTENSIONS
    ]
    problems = []
    if not folders:
        text = "holds no folder per class; give a CSV table with --annotations if any"
        text = text if root.is_dir() else "there is no such folder"
        problems.append(Problem("no_images", str(root), text))
    names = [folder.name for folder in folders]
    return ClassDataset(root, names, records, problems)


def list_table(
    images_dir: str | Path, table: str | Path, names: tuple[str, ...] = ()
) -> ClassDataset:
    """List a CSV table of file names and classes.

    Args:
        images_dir: Folder that the table's file names are relative to.
        table: A file with a header: one of FILE_COLUMNS and one of LABEL_COLUMNS;
            the latter holds class numbers, or names.
        names: Class names by number; empty: those of the table, sorted, or its
            numbers.

    Returns:
        The data set, unchecked.
    """
    table, images_dir = Path(table), Path(images_dir)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return ClassDataset(
            table, names, (), [Problem("broken_csv", str(table), str(error))]
        )
    place = next((c for c in FILE_COLUMNS if c in columns), None)
    label = next((c for c in LABEL_COLUMNS if c in columns), None)
    if place is None or label is None:
        text = (
            f"needs a column out of {', '.join(FILE_COLUMNS)} and one out of "
            f"{', '.join(LABEL_COLUMNS)}; it has {', '.join(columns) or 'none'}"
        )
        if any(mark in "".join(columns) for mark in ";\t"):
            text += "; commas must stand between columns"
        return ClassDataset(table, names, (), [Problem("broken_csv", str(table), text)])
    pairs = [((row[place] or "").strip(), (row[label] or "").strip()) for row in rows]
    names = names or _names_of(pairs)
    return _from_pairs(images_dir, table, pairs, names)


def _names_of(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return a table's classes: its names, sorted, or all numbers up to the last."""
    values = {value for _, value in pairs if value}
    if values and all(value.isdigit() for value in values):
        return tuple(str(i) for i in range(max(map(int, values)) + 1))
    return tuple(sorted(values))


def _from_pairs(
    folder: Path, table: Path, pairs: list[tuple[str, str]], names: tuple[str, ...]
) -> ClassDataset:
    index = {name: i for i, name in enumerate(names)}
    records, problems = [], []
    for line, (name, value) in enumerate(pairs, start=2):
        number = index.get(value)
        if number is None and value.isdigit() and int(value) < len(names):
            number = int(value)
        where = f"{table}, line {line}"
        if not name or not value:
            text = "file name or class is empty"
            problems.append(Problem("malformed_row", where, text))
        elif number is None:
            text = f"{name}: class {value!r}; known: {', '.join(names[:12])}"
            problems.append(Problem("unknown_label", where, text))
        else:
            records.append(Record(name, folder / name, number))
    return ClassDataset(table, names, records, problems)
