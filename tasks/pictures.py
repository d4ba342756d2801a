"""Pictures one after the other: listed, read ahead, answered, written as results."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_lightnets.tasks import run
from keras_lightnets.tasks.data import images

# Pictures of any size -> what a model says about each.
Answerer = Callable[[Sequence[np.ndarray]], Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says about one image of a list.

    Attributes:
        index: Place in the list.
        image: (H, W, 3) uint8 RGB.
        result: The task's own: boxes, a mask, probabilities.
    """

    index: int
    image: np.ndarray
    result: Any


def answer_all(
    count: int,
    read: Callable[[int], np.ndarray],
    answer: Answerer,
    *,
    batch_size: int = 16,
    workers: int = 2,
) -> Iterator[Answer | images.ImageError]:
    """Put a list of images to a model; reads the next batch meanwhile.

    Args:
        count: Number of images.
        read: Place in the list -> image.
        answer: The model.
        batch_size: Images per call of it.
        workers: Threads that read.

    Yields:
        Per image, in order, the answer, or why it could not be read.
    """

    def load(index: int) -> Any:
        try:
            return index, read(index)
        except images.ImageError as error:
            return error

    def submit(pool: ThreadPoolExecutor, indices: Sequence[int]) -> list[Any]:
        return [pool.submit(load, index) for index in indices]

    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="read") as pool:
        starts = range(0, count, batch_size)
        groups = (range(i, min(i + batch_size, count)) for i in starts)
        ahead = [submit(pool, group) for group in itertools.islice(groups, 2)]
        while ahead:
            loaded = [job.result() for job in ahead.pop(0)]
            ahead += [submit(pool, group) for group in itertools.islice(groups, 1)]
            yield from _answered(loaded, answer)


def _answered(
    loaded: Sequence[Any], answer: Answerer
) -> Iterator[Answer | images.ImageError]:
    good = [item for item in loaded if not isinstance(item, images.ImageError)]
    results = iter(answer([image for _, image in good]) if good else [])
    for item in loaded:
        if isinstance(item, images.ImageError):
            yield item
        else:
            index, image = item
            yield Answer(index=index, image=image, result=next(results))


def predict(
    options: Any,
    path: Path,
    answer: Answerer,
    describe: Callable[[Answer], dict[str, Any]],
    draw: Callable[[Path, Answer], None] | None,
) -> dict[str, Any]:
    """Answer the pictures that a user names, and write JSON and drawings.

    Args:
        options: `inputs`, `output`, `batch_size`, `workers` of the command line.
        path: The model, for the result.
        answer: The model.
        describe: Returns an answer as JSON values.
        draw: Writes a picture of an answer to a path; None writes none.

    Returns:
        "model", "output" and "images": per picture "file" and what `describe`
        returned, or "error"; also written to output/predictions.json.

    Raises:
        ValueError: If a path holds no picture.
    """
    files = list_pictures(options.inputs)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)

    def read(index: int) -> np.ndarray:
        return images.read_image(files[index])

    stream = answer_all(
        len(files),
        read,
        answer,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    rows: list[dict[str, Any]] = []
    names = picture_names(files)
    for index, item in enumerate(stream):
        row: dict[str, Any] = {"file": str(files[index])}
        if isinstance(item, Answer):
            row |= describe(item)
            if draw is not None:
                draw(output / names[index], item)
                row["picture"] = str(output / names[index])
        else:
            row["error"] = item.detail
        rows.append(row)
    result = {"model": str(path), "output": str(output), "images": rows}
    run.write_json(output / "predictions.json", result)
    return result


def picture_names(files: Sequence[Path]) -> list[str]:
    """Name the drawn pictures; equal file names get a number."""
    names: list[str] = []
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in names:
            number += 1
            name = f"{file.stem}_{number}.jpg"
        names.append(name)
    return names


def list_pictures(paths: Sequence[str]) -> list[Path]:
    """Return image files; a folder stands for all pictures in and below it.

    Args:
        paths: Files and folders.

    Returns:
        Sorted within each folder.

    Raises:
        ValueError: If a path does not exist or a folder holds no picture.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in images.EXTENSIONS
            )
            if not inside:
                legal = ", ".join(images.EXTENSIONS)
                raise ValueError(f"The folder {path} holds no picture ({legal}).")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"No picture or folder at {path}.")
    return files
