"""Problems of a data set: their kinds, the report that lists all, the error."""

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_lightnets._errors import unknown
from keras_lightnets.tasks.data import images

EXAMPLES = 5

# Up to this many images are decoded by a check (seconds); of larger sets only the
# headers and the ends of the files are read.
DECODE_LIMIT = 10_000


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        title: What is wrong, in the plural.
        action: What happens without `strict`; None if training cannot start.
    """

    title: str
    action: str | None = None


_IMAGE_OUT = "left out of the data set"
_BOX_OUT = "boxes dropped"

KINDS: dict[str, Kind] = {
    "broken_json": Kind("annotation file that cannot be read"),
    "no_images": Kind("no usable image"),
    "no_annotations": Kind("no usable annotation"),
    "no_categories": Kind("no category"),
    "no_classes": Kind("no class names"),
    "broken_csv": Kind("table that cannot be read"),
    "path_outside": Kind("image paths that leave the images folder"),
    "duplicate_image_id": Kind("image ids used twice"),
    "duplicate_category": Kind("category ids or names used twice"),
    "unknown_category": Kind("annotations with an unknown category"),
    "malformed_entry": Kind("entries without the keys COCO asks for"),
    "missing_image": Kind("missing images", _IMAGE_OUT),
    "empty_image": Kind("empty images", _IMAGE_OUT),
    "unreadable_image": Kind("unreadable images", _IMAGE_OUT),
    "truncated_image": Kind("truncated images", _IMAGE_OUT),
    "size_mismatch": Kind("sizes that contradict the JSON", _IMAGE_OUT),
    "missing_mask": Kind("images without a mask", _IMAGE_OUT),
    "unreadable_mask": Kind("unreadable masks", _IMAGE_OUT),
    "colour_mask": Kind("masks with colours in place of class indices", _IMAGE_OUT),
    "mask_size": Kind("masks of another size than their image", _IMAGE_OUT),
    "mask_label": Kind("masks with labels outside the classes", _IMAGE_OUT),
    "unknown_label": Kind("images with an unknown class", _IMAGE_OUT),
    "malformed_row": Kind("table rows that cannot be used", "ignored"),
    "unknown_image": Kind("annotations of an image not listed", "ignored"),
    "duplicate_annotation_id": Kind("annotation ids used twice", "renumbered"),
    "malformed_box": Kind("boxes that are not four numbers", _BOX_OUT),
    "nan_box": Kind("boxes with NaN or infinity", _BOX_OUT),
    "zero_area_box": Kind("boxes without area", _BOX_OUT),
    "outside_box": Kind("boxes outside the image", _BOX_OUT),
    "clipped_box": Kind("boxes partly outside the image", "clipped to the image"),
}


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Attributes:
        kind: A key of `KINDS`.
        where: The file, image or annotation, as the user can find it.
        detail: What is wrong with it.
        fatal: Whether training must not start.
        image_id: The image to leave out; None where the problem is not an image.
    """

    kind: str
    where: str
    detail: str
    fatal: bool = False
    image_id: Any = None


class DatasetError(ValueError):
    """A data set cannot be used; the text is its whole report.

    Attributes:
        report: The `Report`.
    """

    def __init__(self, report: "Report") -> None:
        super().__init__(report.text())
        self.report = report


@dataclass(frozen=True)
class Report:
    """All problems of one or several data sets.

    Attributes:
        problems: In the order of `KINDS`.
        images: Images listed.
        annotations: Annotations listed.
        source: The annotation file; several are joined by commas.
    """

    problems: tuple[Problem, ...]
    images: int
    annotations: int
    source: str = ""

    @property
    def fatal(self) -> tuple[Problem, ...]:
        """The problems with which training must not start."""
        return tuple(p for p in self.problems if p.fatal)

    @property
    def left_out(self) -> frozenset[Any]:
        """Ids of the images that a data set leaves out."""
        ids = [p.image_id for p in self.problems if p.image_id is not None]
        return frozenset(ids)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind."""
        counts: dict[str, int] = {}
        for problem in self.problems:
            counts[problem.kind] = counts.get(problem.kind, 0) + 1
        return counts

    def raise_if_fatal(self) -> None:
        """Raise DatasetError with the whole report if a problem is fatal."""
        if self.fatal:
            raise DatasetError(self)

    def text(self, examples: int = EXAMPLES) -> str:
        """Return the report for people.

        Args:
            examples: How many problems of a kind to spell out.

        Returns:
            Lines: a summary, then each kind with its count, action and examples.
        """
        size = f"images: {self.images}, annotations: {self.annotations}"
        size += f" ({self.source})" if self.source else ""
        if not self.problems:
            return f"No problem found. {size}"
        lines = [f"Problems: {len(self.problems)}, fatal: {len(self.fatal)}. {size}"]
        for name in self.counts:
            group = [p for p in self.problems if p.kind == name]
            kind = KINDS[name]
            stops = "fatal" if group[0].fatal else kind.action
            lines.append(f"{kind.title} [{name}]: {len(group)}, {stops}")
            lines += [f"    {p.where}: {p.detail}" for p in group[:examples]]
            if len(group) > examples:
                lines.append(f"    ... and {len(group) - examples} more")
        if self.fatal:
            lines.append("Correct the fatal problems, then start again.")
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready dict with every problem in full."""
        problems = [
            {"kind": p.kind, "where": p.where, "detail": p.detail, "fatal": p.fatal}
            for p in self.problems
        ]
        return {
            "source": self.source,
            "images": self.images,
            "annotations": self.annotations,
            "fatal": len(self.fatal),
            "counts": self.counts,
            "problems": problems,
        }


def make_report(
    found: Iterable[Problem],
    size: tuple[int, int],
    strict: bool = False,
    source: str = "",
) -> Report:
    """Sort problems into a report.

    Args:
        found: Problems in any order; their `fatal` is set here.
        size: Number of images and of annotations listed.
        strict: Whether every problem is fatal.
        source: The annotation file.

    Returns:
        The report.
    """
    problems = []
    for problem in found:
        if problem.kind not in KINDS:
            raise unknown("kind of problem", problem.kind, KINDS)
        fatal = strict or KINDS[problem.kind].action is None
        problems.append(dataclasses.replace(problem, fatal=fatal))
    return Report(_sorted(problems), *size, source)


def merge(reports: Sequence[Report]) -> Report:
    """Join the reports of several data sets, such as train and val, into one.

    Args:
        reports: One report per data set.

    Returns:
        A report whose problems name their annotation file. Its `left_out` holds
        pairs of that file and an image id.
    """
    problems = []
    for report in reports:
        for problem in report.problems:
            named = problem.where.startswith(report.source)
            where = problem.where if named else f"{report.source}: {problem.where}"
            number = problem.image_id
            pair = None if number is None else (report.source, number)
            problems.append(dataclasses.replace(problem, where=where, image_id=pair))
    return Report(
        _sorted(problems),
        sum(report.images for report in reports),
        sum(report.annotations for report in reports),
        ", ".join(report.source for report in reports),
    )


def _sorted(problems: list[Problem]) -> tuple[Problem, ...]:
    order = list(KINDS)
    return tuple(sorted(problems, key=lambda problem: order.index(problem.kind)))


@dataclass(frozen=True)
class File:
    """An image file to check.

    Attributes:
        path: Where it is.
        name: How the JSON calls it.
        size: (height, width) that the JSON states; None if it states none.
        image_id: Its id.
    """

    path: Path
    name: str
    size: tuple[int, int] | None
    image_id: Any


def check_files(
    files: Sequence[File], decode: bool | None = None, workers: int = 4
) -> list[Problem]:
    """Check that images exist, are whole and have the stated size.

    The header is always read, and the last bytes: a file that does not end as its
    format asks is decoded. This finds cut files at about 20,000 images per second
    and core; damage in the middle needs `decode=True`.

    Args:
        files: What to check.
        decode: Whether to decode every image; None decodes up to `DECODE_LIMIT`.
        workers: Threads.

    Returns:
        The problems, in the order of `files`.
    """
    everything = len(files) <= DECODE_LIMIT if decode is None else decode
    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        found = pool.map(lambda file: _check_file(file, everything), files)
        return [problem for problem in found if problem is not None]


def _check_file(file: File, decode: bool) -> Problem | None:
    try:
        data = images.read_bytes(file.path)
        header = images.read_header(data, file.path)
        if decode or not header.complete:
            images.read_image(data, reduce=8)
    except images.ImageError as error:
        return Problem(error.kind, file.name, error.detail, image_id=file.image_id)
    if file.size in (None, (header.height, header.width)):
        return None
    height, width = file.size or (0, 0)
    detail = f"is {header.width}x{header.height}, the JSON says {width}x{height}"
    if header.turned and (width, height) == (header.height, header.width):
        detail += "; the JSON ignores the file's EXIF rotation"
    return Problem("size_mismatch", file.name, detail, image_id=file.image_id)
