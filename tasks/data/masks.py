"""Data sets of images with a class per pixel: folders, VOC, Cityscapes, panoptic.

| layout | images | masks | classes |
|---|---|---|---|
| folders | SPLIT/ | SPLIT_labels/NAME.png | classes.txt |
| voc | JPEGImages/ | SegmentationClass/NAME.png | classes.txt, else VOC's 21 |
| cityscapes | leftImg8bit/SPLIT/CITY/ | gtFine/SPLIT/CITY/, label ids | 19 |
| panoptic | SPLIT/ | annotations/panoptic_SPLIT/, with the JSON beside | the JSON's |

A mask is a PNG of one channel, or with a palette: its numbers are the classes. 255 and
the number of classes stand for "no class", unless told otherwise.
"""

import functools
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets._errors import unknown
from keras_lightnets.heads._labels import CITYSCAPES, CITYSCAPES_IDS, VOC_LABELS
from keras_lightnets.tasks.data import images
from keras_lightnets.tasks.data.checks import Problem
from keras_lightnets.tasks.data.records import FileSet

IGNORE = 255
# Labels 0 to 254 fit beside IGNORE.
MOST_CLASSES = 255


class MaskError(ValueError):
    """A mask cannot be used.

    Attributes:
        kind: A key of `checks.KINDS`.
        detail: What is wrong, without the file's name.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Record:
    """One image and its mask.

    Attributes:
        file_name: The image's name, relative to the data set.
        path: The image.
        mask: The mask.
        segments: Panoptic masks: id -> label; None for masks of class numbers.
    """

    file_name: str
    path: Path
    mask: Path
    segments: Mapping[int, int] | None = None

    @property
    def image_id(self) -> str:
        """The image's name."""
        return self.file_name


class MaskDataset(FileSet):
    """Images with a class per pixel, read lazily.

    Args:
        source: Folder that the data set comes from.
        names: Class names by label.
        records: Images and masks.
        problems: What was found wrong while listing.
        lookup: Number in a mask -> label, or IGNORE; None: `void` and nothing else.
        void: Numbers that stand for "no class"; None: 255 and the number of
            classes.

    Example:
        >>> data = list_masks("camvid", "val")  # doctest: +SKIP
        >>> image, mask = data.sample(0)  # doctest: +SKIP
    """

    def __init__(
        self,
        source: str | Path,
        names: Sequence[str],
        records: Sequence[Record],
        problems: Sequence[Problem] = (),
        lookup: Mapping[int, int] | None = None,
        void: Sequence[int] | None = None,
    ) -> None:
        super().__init__(source, names, records, problems)
        if len(names) > MOST_CLASSES:
            raise ValueError(
                f"Masks tell at most {MOST_CLASSES} classes. Received: {len(names)}"
            )
        self.void = (IGNORE, len(names)) if void is None else tuple(void)
        self.lookup = lookup

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read one image with its mask.

        Args:
            index: 0 to `len(self) - 1`.

        Returns:
            Image, uint8 (H, W, 3), RGB; mask, uint8 (H, W): labels and IGNORE.

        Raises:
            ImageError: If image or mask cannot be used.
        """
        record = self.records[index]
        image = images.read_image(record.path)
        try:
            mask = self.read_mask(record)
            _check_size(mask, image.shape[:2])
        except MaskError as error:
            text = f"{record.mask.name}: {error.detail}"
            raise images.ImageError(error.kind, record.mask, text) from error
        return image, mask

    def read_mask(self, record: Record) -> np.ndarray:
        """Read a mask.

        Args:
            record: Of this data set.

        Returns:
            Labels and IGNORE, uint8 (H, W).

        Raises:
            MaskError: If it is missing, broken, or holds other numbers.
        """
        if record.segments is not None:
            numbers = _read_ids(record.mask)
            known: Mapping[int, int] = {0: IGNORE, **record.segments}
            return _mapped(numbers, known, "panoptic segment ids")
        numbers = read_numbers(record.mask)
        if self.lookup is not None:
            return _mapped(numbers, self.lookup, "label ids")
        table = {**{i: i for i in range(len(self.names))}}
        table |= dict.fromkeys(self.void, IGNORE)
        none = " and ".join(map(str, sorted(self.void))) or "nothing"
        legal = f"0 to {len(self.names) - 1}, and {none} for no class"
        return _mapped(numbers, table, legal)

    def labels_found(self, decode: bool) -> list[Problem]:
        """Return what is wrong with the masks of readable images."""
        with ThreadPoolExecutor(4, thread_name_prefix="check") as pool:
            check = functools.partial(self._check_mask, decode=decode)
            return [p for p in pool.map(check, self.records) if p is not None]

    def _check_mask(self, record: Record, decode: bool) -> Problem | None:
        try:
            if not record.mask.is_file():
                raise MaskError("missing_mask", f"no mask at {record.mask}")
            if decode:
                header = images.read_header(images.read_bytes(record.path))
                size = (header.height, header.width)
                _check_size(self.read_mask(record), size)
        except MaskError as error:
            name = record.file_name
            return Problem(error.kind, name, error.detail, image_id=name)
        return None


def read_numbers(path: Path) -> np.ndarray:
    """Read the numbers of a mask: of one channel, or indices into a palette.

    Args:
        path: A PNG file.

    Returns:
        Integers, (H, W).

    Raises:
        MaskError: If the file is missing, broken or holds colours.
    """
    from PIL import Image

    picture = _open(path)
    if isinstance(picture, Image.Image) and picture.mode in ("RGB", "RGBA", "LA"):
        bands = np.asarray(picture)[..., : 3 if picture.mode != "LA" else 1]
        grey = bool((bands == bands[..., :1]).all())
        what = (
            "its channels are equal: save one of them"
            if grey
            else "colours do not say which class they mean: save the class numbers"
        )
        raise MaskError(
            "colour_mask",
            f"{path.name} is {picture.mode}, not one channel of class numbers; {what} "
            "as an 8-bit grey or palette PNG",
        )
    return np.asarray(picture).astype(np.int64)


def _open(path: Path) -> Any:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(path.read_bytes()))
        picture.load()
    except FileNotFoundError as error:
        raise MaskError("missing_mask", f"no mask at {path}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MaskError("unreadable_mask", f"{path.name}: {error}") from error
    return picture


def _read_ids(path: Path) -> np.ndarray:
    """Panoptic ids: red + 256 green + 65536 blue."""
    parts = np.asarray(_open(path).convert("RGB")).astype(np.int64)
    return parts @ np.array([1, 256, 65536])


def _mapped(numbers: np.ndarray, table: Mapping[int, int], legal: str) -> np.ndarray:
    found, places = _distinct(numbers)
    lost = [int(n) for n in found if int(n) not in table]
    if lost:
        shown = ", ".join(map(str, lost[:8])) + (" ..." if len(lost) > 8 else "")
        share = float(np.isin(numbers, lost).mean())
        raise MaskError(
            "mask_label",
            f"holds {shown} on {share:.1%} of its pixels; legal: {legal}",
        )
    labels = np.array([table[int(n)] for n in found], np.uint8)
    return labels[places].reshape(numbers.shape)


def _distinct(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `np.unique` with the inverse; small numbers need no sorting."""
    if numbers.size == 0 or numbers.min() < 0 or numbers.max() > 0xFFFF:
        return np.unique(numbers, return_inverse=True)
    found = np.flatnonzero(np.bincount(numbers.ravel()))
    places = np.zeros(found[-1] + 1, np.intp)
    places[found] = np.arange(len(found))
    return found, places[numbers]


def _check_size(mask: np.ndarray, size: tuple[int, ...]) -> None:
    if mask.shape != tuple(size):
        raise MaskError(
            "mask_size",
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, the image "
            f"{size[1]}x{size[0]}",
        )


def _read_names(root: Path, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the lines of classes.txt."""
    file = root / "classes.txt"
    if not file.is_file():
        return default
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in images.EXTENSIONS)


def _folders(root: Path, split: str) -> MaskDataset:
    folder, masks = root / split, root / f"{split}_labels"
    records = []
    for path in _pictures(folder):
        inside = path.relative_to(folder)
        mask = (masks / inside).with_suffix(".png")
        records.append(Record(str(Path(split) / inside), path, mask))
    names, problems = _read_names(root), _absent(root, folder, masks)
    if not names:
        text = "it must name the classes, one per line, in the order of their numbers"
        problems.append(Problem("no_classes", str(root / "classes.txt"), text))
    return MaskDataset(folder, names, records, problems)


# What only one layout has.
SIGNS = {"JPEGImages": "voc", "leftImg8bit": "cityscapes", "annotations": "panoptic"}


def _absent(root: Path, *folders: Path) -> list[Problem]:
    """Say which folders of a layout are missing."""
    lost = [f.relative_to(root) for f in folders if not f.exists()]
    inside = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    shown = ", ".join(inside[:12]) or "nothing"
    guesses = [f"; try --layout {SIGNS[name]}" for name in inside if name in SIGNS]
    hint = guesses[0] if len(guesses) == 1 else ""
    return [
        Problem("no_images", str(root), f"{path} is missing; there is {shown}{hint}")
        for path in lost
    ]


def _voc(root: Path, split: str) -> MaskDataset:
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    stems = listed.read_text("utf-8").split() if listed.is_file() else []
    records = [
        Record(
            f"JPEGImages/{stem}.jpg",
            root / "JPEGImages" / f"{stem}.jpg",
            root / "SegmentationClass" / f"{stem}.png",
        )
        for stem in stems
    ]
    names = _read_names(root, VOC_LABELS)
    return MaskDataset(listed, names, records, _absent(root, listed), void=(IGNORE,))


def _cityscapes(root: Path, split: str) -> MaskDataset:
    folder, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    records = []
    for path in _pictures(folder):
        stem = path.stem.removesuffix("_leftImg8bit")
        mask = masks / path.parent.name / f"{stem}_gtFine_labelIds.png"
        records.append(Record(str(path.relative_to(root)), path, mask))
    lookup = dict.fromkeys([*range(256), -1], IGNORE)
    lookup |= {number: label for label, number in enumerate(CITYSCAPES_IDS)}
    found = _absent(root, folder, masks)
    return MaskDataset(folder, CITYSCAPES, records, found, lookup)


def _panoptic(root: Path, split: str) -> MaskDataset:
    file = root / "annotations" / f"panoptic_{split}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda item: item["id"])
        labels = {item["id"]: i for i, item in enumerate(categories)}
        pictures = {item["id"]: item["file_name"] for item in content["images"]}
        records = [
            Record(
                f"{split}/{pictures[item['image_id']]}",
                root / split / pictures[item["image_id"]],
                file.with_suffix("") / item["file_name"],
                {s["id"]: labels[s["category_id"]] for s in item["segments_info"]},
            )
            for item in content["annotations"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"is no COCO panoptic file: {type(error).__name__} {error}"
        return MaskDataset(file, (), (), [Problem("broken_json", str(file), text)])
    return MaskDataset(file, [str(item["name"]) for item in categories], records)


LAYOUTS: Mapping[str, Callable[[Path, str], MaskDataset]] = {
    "folders": _folders,
    "voc": _voc,
    "cityscapes": _cityscapes,
    "panoptic": _panoptic,
}


FIXED_NUMBERS = ("cityscapes", "panoptic")


def list_masks(
    root: str | Path,
    split: str,
    layout: str = "folders",
    void: Iterable[int] | None = None,
) -> MaskDataset:
    """List a split of a data set.

    Args:
        root: Its folder.
        split: Name of the part, such as "train".
        layout: A key of LAYOUTS.
        void: Numbers of the masks that stand for "no class"; None: the layout's.

    Returns:
        The data set, unchecked.

    Raises:
        ValueError: If the layout is unknown, or its numbers are no choice.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    data = LAYOUTS[layout](Path(root), split)
    if void is not None:
        if layout in FIXED_NUMBERS:
            raise ValueError(
                f"The numbers in masks of layout {layout!r} are fixed, those without a "
                f"class too. Received: void={tuple(void)}. Leave it out."
            )
        data.void = tuple(void)
    return data


def count_pixels(dataset: MaskDataset) -> np.ndarray:
    """Return the pixels of each class, int64 (classes,); unreadable masks none."""
    total = np.zeros(IGNORE + 1, np.int64)
    for record in dataset.records:
        try:
            mask = dataset.read_mask(record)
        except MaskError:
            continue
        total += np.bincount(mask.ravel(), minlength=IGNORE + 1)
    return total[: len(dataset.names)]
