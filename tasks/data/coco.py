"""Data sets in COCO format: a folder of images and a JSON file of boxes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from keras_lightnets.tasks.data import checks, images
from keras_lightnets.tasks.data.checks import DatasetError, Problem, Report
from keras_lightnets.tasks.data.records import RecordSet

# Boxes that leave the image by no more than this many pixels are rounding of the
# annotation tool: clipped without being reported.
ROUNDING = 1.0


@dataclass(frozen=True)
class Record:
    """One image and its boxes, as the JSON has them after clipping.

    Attributes:
        image_id: The JSON's id.
        file_name: The JSON's path, relative to the images folder.
        size: (height, width) in pixels.
        boxes: float32 (M, 4), x1, y1, x2, y2 in pixels.
        labels: int32 (M,), 0-based index into the class names.
        crowd: bool (M,), COCO's `iscrowd`.
        areas: float32 (M,), COCO's `area`: of the object's outline where given.
    """

    image_id: Any
    file_name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


class CocoDataset(RecordSet):
    """A COCO data set, read lazily.

    Args:
        images_dir: Folder that the JSON's file names are relative to.
        annotations: The JSON file.

    Raises:
        DatasetError: If the annotations have a fatal problem; its report lists all
            problems, those of the image files included.

    Example:
        >>> data = CocoDataset("images", "instances_train.json")  # doctest: +SKIP
        >>> report = data.check()  # doctest: +SKIP
        >>> report.raise_if_fatal()  # doctest: +SKIP
        >>> data = data.without(report.left_out)  # doctest: +SKIP
        >>> image, boxes, labels, meta = data.sample(0)  # doctest: +SKIP
    """

    def __init__(self, images_dir: str | Path, annotations: str | Path) -> None:
        self.images_dir = Path(images_dir)
        self.annotations = Path(annotations)
        parsed = _Parser(self.images_dir, self.annotations)
        self.names: tuple[str, ...] = tuple(parsed.names)
        self.category_ids: tuple[int, ...] = tuple(parsed.category_ids)
        self.records: tuple[Record, ...] = tuple(parsed.records)
        self._problems = tuple(parsed.problems)
        self._listed = parsed.listed
        if any(checks.KINDS[p.kind].action is None for p in self._problems):
            raise DatasetError(self.check())

    @property
    def source(self) -> str:
        """The annotation file."""
        return str(self.annotations)

    def check(self, strict: bool = False, decode: bool | None = None) -> Report:
        """List all problems of the annotations and of the image files.

        Args:
            strict: Whether problems that would leave out an image or a box, or clip
                a box, are fatal.
            decode: Whether to decode every image; see `checks.check_files`.

        Returns:
            The report; nothing is raised and nothing changed.
        """
        files = [
            checks.File(self.path(i), r.file_name, r.size, r.image_id)
            for i, r in enumerate(self.records)
        ]
        found = [*self._problems, *checks.check_files(files, decode)]
        bad = {p.image_id for p in found if p.image_id is not None}
        if self.records and all(r.image_id in bad for r in self.records):
            text = f"none of {len(self.records)} images in {self.images_dir} is usable"
            found.append(Problem("no_images", str(self.annotations), text))
        source = str(self.annotations)
        return checks.make_report(found, self._listed, strict, source)

    def path(self, index: int) -> Path:
        """Return the path of an image file."""
        return self.images_dir / self.records[index].file_name

    def sample(
        self, index: int, target: tuple[int, int] | None = None, fit: str = "stretch"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Read one image with its boxes.

        Args:
            index: 0 to `len(self) - 1`.
            target: (height, width) the image will be resized to: a JPEG may then
                come at a half, quarter or eighth of its size. None for full size.
            fit: How it will be resized, "stretch" or "letterbox".

        Returns:
            Image, uint8 (H, W, 3), RGB, upright; boxes, float32 (M, 4), x1, y1, x2,
            y2 in pixels of that image; labels, int32 (M,), 0-based; and a dict:
            `image_id`, `file_name`, `height` and `width` of the file, `reduce` (the
            file's size over the image's), `iscrowd` (bool (M,)): boxes around many
            objects at once, which are no training targets.

        Raises:
            ImageError: If the file cannot be used.
        """
        record = self.records[index]
        reduce = images.reduction(record.size, target, fit)
        image = images.read_image(self.path(index), reduce)
        height, width = image.shape[:2]
        if reduce > 1 and abs(height * reduce - record.size[0]) >= reduce:
            reduce = 1  # not a JPEG: read at full size
        boxes = images.scale_boxes(record.boxes, reduce, (height, width))
        meta = {
            "image_id": record.image_id,
            "file_name": record.file_name,
            "height": record.size[0],
            "width": record.size[1],
            "reduce": reduce,
            "iscrowd": record.crowd,
        }
        return image, boxes, record.labels, meta

    def coco_dict(self) -> dict[str, Any]:
        """Return the clean annotations as `pycocotools.coco.COCO().dataset`.

        Returns:
            Images, categories and annotations in COCO's form: only the images of
            this data set, boxes clipped, annotations numbered from 1, category ids
            as in the file.
        """
        listed: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            height, width = record.size
            entry = {"id": record.image_id, "file_name": record.file_name}
            listed.append({**entry, "height": height, "width": width})
            for k, (x1, y1, x2, y2) in enumerate(record.boxes.astype(float).tolist()):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "category_id": self.category_ids[record.labels[k]],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(record.areas[k]),
                        "iscrowd": int(record.crowd[k]),
                    }
                )
        pairs = zip(self.category_ids, self.names, strict=True)
        return {
            "info": {},
            "images": listed,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in pairs],
        }


def open_coco(
    images_dir: str | Path,
    annotations: str | Path,
    *,
    strict: bool = False,
    decode: bool | None = None,
) -> tuple[CocoDataset | None, Report]:
    """Open a data set together with its report; never raises for bad data.

    Several data sets can so be reported at once: `checks.merge([a, b])`.

    Args:
        images_dir: Folder of the images.
        annotations: The JSON file.
        strict: Whether every problem is fatal.
        decode: Whether to decode every image; see `checks.check_files`.

    Returns:
        The data set without its bad images, or None if the annotations have a fatal
        problem; and the report.

    Example:
        >>> data, report = open_coco("images", "train.json")  # doctest: +SKIP
        >>> report.raise_if_fatal()  # doctest: +SKIP
    """
    try:
        dataset = CocoDataset(images_dir, annotations)
    except DatasetError as error:
        first = error.report
        size = (first.images, first.annotations)
        return None, checks.make_report(first.problems, size, strict, first.source)
    report = dataset.check(strict, decode)
    return dataset.without(report.left_out), report


class _Parser:
    """Reads the JSON once and notes each problem on the way."""

    def __init__(self, images_dir: Path, annotations: Path) -> None:
        self.images_dir = images_dir
        self.file = str(annotations)
        self.problems: list[Problem] = []
        self.names: list[str] = []
        self.category_ids: list[int] = []
        self.records: list[Record] = []
        self.listed = (0, 0)
        content = self._load(annotations)
        if content is not None:
            self._parse(content)

    def note(self, kind: str, where: str, detail: str, image_id: Any = None) -> None:
        self.problems.append(Problem(kind, where, detail, image_id=image_id))

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            self.note("broken_json", f"{path}, {place}", error.msg)
            return None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.note("broken_json", str(path), reason)
            return None
        except RecursionError:
            self.note("broken_json", str(path), "nested too deeply")
            return None
        keys = ("images", "annotations", "categories")
        if not isinstance(content, dict):
            text = f"must be an object with {', '.join(keys)}; it is a list or value"
            self.note("broken_json", str(path), text)
            return None
        return {key: self._entries(content, key) for key in keys}

    def _entries(self, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
        value = content.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.note("malformed_entry", self.file, f"{key!r} is not a list")
            return []
        good = []
        for i, entry in enumerate(value):
            if isinstance(entry, dict):
                good.append(entry)
            else:
                self.note("malformed_entry", f"{key}[{i}]", "is not an object")
        return good

    def _parse(self, content: dict[str, Any]) -> None:
        counts = (len(content["images"]), len(content["annotations"]))
        self.listed = counts
        for count, kind in zip(counts, ("images", "annotations"), strict=True):
            if not count:
                text = f"{kind!r} is missing or empty"
                self.note(f"no_{kind}", self.file, text)
        if not content["categories"]:
            self.note("no_categories", self.file, "'categories' is missing or empty")
        labels = self._categories(content["categories"])
        entries = self._images(content["images"])
        boxes = self._annotations(content["annotations"], entries, labels)
        if counts[1] and not any(boxes.values()):
            text = f"none of {counts[1]} annotations is usable"
            self.note("no_annotations", self.file, text)
        for key, entry in entries.items():
            self.records.append(_record(entry, boxes[key]))

    def _categories(self, entries: list[dict[str, Any]]) -> dict[Any, int]:
        labels: dict[Any, int] = {}
        for i, entry in enumerate(entries):
            number, name = _key(entry.get("id")), entry.get("name")
            if not isinstance(number, int) or not isinstance(name, str):
                text = f"needs a whole 'id' and a 'name'; received {number!r}, {name!r}"
                self.note("malformed_entry", f"categories[{i}]", text)
            elif number in labels:
                text = f"{name!r} has the id of {self.names[labels[number]]!r}"
                self.note("duplicate_category", f"category {number}", text)
            elif name in self.names:
                text = f"{name!r} is also the name of another category"
                self.note("duplicate_category", f"category {number}", text)
            else:
                labels[number] = len(self.names)
                self.names.append(name)
                self.category_ids.append(number)
        return labels

    def _images(self, entries: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
        good: dict[Any, dict[str, Any]] = {}
        for i, entry in enumerate(entries):
            number, name = _key(entry.get("id")), entry.get("file_name")
            where = f"images[{i}]"
            if entry.get("id") is None or not isinstance(name, str):
                text = f"needs 'id' and 'file_name'; received {number}, {name!r}"
                self.note("malformed_entry", where, text)
            elif number in good:
                text = f"{name} has the id of {good[number]['file_name']}"
                self.note("duplicate_image_id", f"image {number}", text)
            elif _leaves(name):
                text = f"{name!r} is not a path below {self.images_dir}"
                self.note("path_outside", f"image {number}", text)
            elif not _is_size(entry.get("width")) or not _is_size(entry.get("height")):
                size = f"{entry.get('width')!r} x {entry.get('height')!r}"
                text = f"'width' x 'height' must be pixels; received {size}"
                self.note("malformed_entry", name, text)
            else:
                good[number] = {**entry, "id": number}
        return good

    def _annotations(
        self,
        entries: list[dict[str, Any]],
        listed: dict[Any, dict[str, Any]],
        labels: dict[Any, int],
    ) -> dict[Any, list["_Box"]]:
        boxes: dict[Any, list[_Box]] = {key: [] for key in listed}
        seen: set[Any] = set()
        for i, entry in enumerate(entries):
            number = entry.get("id", f"number {i}")
            where = f"annotation {number}"
            if _key(number) in seen:
                self.note("duplicate_annotation_id", where, "an id must be unique")
            seen.add(_key(number))
            image = listed.get(_key(entry.get("image_id")))
            label = labels.get(_key(entry.get("category_id")))
            if label is None:
                legal = ", ".join(str(c) for c in self.category_ids[:12]) or "none"
                text = f"category {entry.get('category_id')!r}; known: {legal}"
                self.note("unknown_category", where, text)
            elif image is None:
                text = f"image {entry.get('image_id')!r} is not in 'images'"
                self.note("unknown_image", where, text)
            else:
                box = self._box(entry, image, f"{where} ({image['file_name']})")
                if box is not None:
                    area = _number(
                        entry.get("area"), (box[2] - box[0]) * (box[3] - box[1])
                    )
                    crowd = bool(entry.get("iscrowd", 0))
                    boxes[image["id"]].append(_Box(box, label, crowd, area))
        return boxes

    def _box(
        self, entry: dict[str, Any], image: dict[str, Any], where: str
    ) -> tuple[float, float, float, float] | None:
        raw = entry.get("bbox")
        shown = f"bbox {raw!r}"
        if not isinstance(raw, list) or len(raw) != 4 or not all(map(_is_real, raw)):
            self.note(
                "malformed_box", where, f"{shown}; expected [x, y, width, height]"
            )
            return None
        x, y, w, h = (float(v) for v in raw)
        if not all(map(math.isfinite, (x, y, w, h))):
            self.note("nan_box", where, shown)
            return None
        if w <= 0 or h <= 0:
            self.note("zero_area_box", where, shown)
            return None
        width, height = image["width"], image["height"]
        x1, y1 = max(x, 0.0), max(y, 0.0)
        x2, y2 = min(x + w, float(width)), min(y + h, float(height))
        shown = f"{shown} in {width}x{height}"
        if x2 <= x1 or y2 <= y1:
            self.note("outside_box", where, shown)
            return None
        if max(-x, -y, x + w - width, y + h - height) > ROUNDING:
            self.note("clipped_box", where, shown)
        return x1, y1, x2, y2


@dataclass(frozen=True)
class _Box:
    corners: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float


def _record(entry: dict[str, Any], boxes: list[_Box]) -> Record:
    return Record(
        image_id=entry["id"],
        file_name=entry["file_name"],
        size=(int(entry["height"]), int(entry["width"])),
        boxes=np.array([b.corners for b in boxes], np.float32).reshape(-1, 4),
        labels=np.array([b.label for b in boxes], np.int32),
        crowd=np.array([b.crowd for b in boxes], bool),
        areas=np.array([b.area for b in boxes], np.float32),
    )


def _leaves(name: str) -> bool:
    """Whether a file name is empty, absolute or climbs out of its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or path.parts[0].endswith(":"):
        return True
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return "\0" in name


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_real(value) and 1 <= value < 1e9 and value == int(value)


def _number(value: Any, default: float) -> float:
    good = _is_real(value) and math.isfinite(value) and value > 0
    return float(value) if good else float(default)


def _key(value: Any) -> Any:
    """Return an id that can be looked up; 1.0, as pandas writes it, is 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else repr(value)
