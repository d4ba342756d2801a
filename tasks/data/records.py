"""What the data sets of all tasks have in common."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from keras_lightnets.tasks.data import checks


class RecordSet:
    """Images listed one by one, with a report of what is wrong with them.

    Attributes:
        records: One per image, with `image_id` and `file_name`.
        names: Class names by label.
    """

    records: tuple[Any, ...]
    names: tuple[str, ...]

    @property
    def source(self) -> str:
        """Where the data set comes from, for messages."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.records)

    def without(self, image_ids: frozenset[Any] | set[Any]) -> Self:
        """Return the data set less some images, as `report.left_out` names them."""
        other = copy.copy(self)
        other.records = tuple(r for r in self.records if r.image_id not in image_ids)
        return other


class FileSet(RecordSet):
    """Images found as files, each with a label of its own.

    Args:
        source: Folder or file that the data set comes from.
        names: Class names by label.
        records: One per image, with `image_id`, `file_name` and `path`.
        problems: What was found wrong while listing.
    """

    def __init__(
        self,
        source: str | Path,
        names: Sequence[str],
        records: Sequence[Any],
        problems: Sequence[checks.Problem] = (),
    ) -> None:
        self._source = str(source)
        self.names = tuple(names)
        self.records = tuple(records)
        self.problems = tuple(problems)

    @property
    def source(self) -> str:
        """Folder or file that the data set comes from."""
        return self._source

    def labels_found(self, decode: bool) -> list[checks.Problem]:
        """Return what is wrong with the labels of readable images."""
        return []

    def check(self, strict: bool = False, decode: bool | None = None) -> checks.Report:
        """List all problems of the images and their labels.

        Args:
            strict: Whether problems that would leave out an image are fatal.
            decode: Whether to decode every file; see `checks.check_files`.

        Returns:
            The report; nothing is raised and nothing changed.
        """
        files = [
            checks.File(r.path, r.file_name, None, r.image_id) for r in self.records
        ]
        found = [*self.problems, *checks.check_files(files, decode)]
        bad = {p.image_id for p in found if p.image_id is not None}
        everything = len(files) <= checks.DECODE_LIMIT if decode is None else decode
        found += self.without(bad).labels_found(everything)
        bad |= {p.image_id for p in found if p.image_id is not None}
        if not self.names and all(p.kind != "no_classes" for p in found):
            text = "no class is named"
            found.append(checks.Problem("no_classes", self.source, text))
        if all(r.image_id in bad for r in self.records):
            text = f"none of {len(self.records)} images is usable"
            found.append(checks.Problem("no_images", self.source, text))
        size = (len(self.records), len(self.records))
        return checks.make_report(found, size, strict, self.source)


def open_checked(
    dataset: FileSet, *, strict: bool = False, decode: bool | None = None
) -> tuple[FileSet, checks.Report]:
    """Check a data set; never raises for bad data.

    Args:
        dataset: The data set.
        strict: Whether every problem is fatal.
        decode: Whether to decode every file; see `checks.check_files`.

    Returns:
        The data set without its bad images, and the report.
    """
    report = dataset.check(strict, decode)
    return dataset.without(report.left_out), report
