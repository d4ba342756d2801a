"""Images per second of `Loader` and of a PyTorch DataLoader, side by side.

Both read the same JPEGs, run the same albumentations (`Augment`) and hand over uint8
batches with their boxes. PyTorch runs in a process and an interpreter of its own, so
it needs not be installed beside this package; that interpreter needs torch,
albumentations, opencv and pillow. The sides take turns; medians are compared.

    python benchmarks/input_pipeline.py --images DIR --annotations FILE.json \
        --torch-python /path/to/python-with-torch

Sides:
    ours            Loader as `train detect` uses it
    torch           DataLoader, every JPEG decoded in full, as is usual
    torch, reduced  DataLoader that reads JPEGs at reduced size with this package's code
    ours, full      Loader with reduced decoding switched off
    ours, cached    Loader from its second epoch on with `cache_bytes`
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = 2**30

Round = Callable[[], float]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--images", required=True, help="folder of 640x480 JPEGs")
    parser.add_argument("--annotations", required=True, help="COCO JSON of boxes")
    parser.add_argument("--torch-python", help="interpreter that has torch")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--fit", default="stretch")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("--serve-torch", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_loader(options: argparse.Namespace, **more: Any) -> Any:
    """Return this package's loader."""
    from keras_lightnets.tasks.data.augment import Augment
    from keras_lightnets.tasks.data.coco import CocoDataset
    from keras_lightnets.tasks.data.loader import Loader, LoaderOptions

    side = (options.size, options.size)
    return Loader(
        CocoDataset(options.images, options.annotations),
        Augment(options.preset, side, options.fit),
        options.batch_size,
        options=LoaderOptions(workers=options.workers, **more),
    )


def timed(batches: Callable[[], Iterator[Any]], epochs: int) -> float:
    """Return images per second over some epochs."""
    count = 0
    start = time.perf_counter()
    for _ in range(epochs):
        for images, _ in batches():
            count += len(images)
    return count / (time.perf_counter() - start)


def own_sides(options: argparse.Namespace) -> dict[str, Round]:
    """Return this package's sides, each run once to warm up."""
    sides: dict[str, Round] = {}
    for name, more in (
        ("ours", {}),
        ("ours, full", {"reduced": False}),
        ("ours, cached", {"cache_bytes": CACHE}),
    ):
        loader = make_loader(options, **more)
        batches = functools.partial(iter, loader)
        sides[name] = functools.partial(timed, batches, options.epochs)
        timed(batches, 1)
    return sides


def torch_side(options: argparse.Namespace, reduced: bool) -> Round:
    """Return a DataLoader's side; runs in the interpreter that has torch."""
    import numpy as np
    import torch

    base = make_loader(options, reduced=reduced)
    target = base.transform.target if reduced else None

    class Samples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(base.dataset)

        def __getitem__(self, index: int) -> Any:
            image, boxes, labels, _ = base.dataset.sample(index, target, options.fit)
            seed = int(torch.randint(2**31, ()).item())
            image, boxes, kept = base.transform(image, boxes, seed)
            return image, boxes / options.size, labels[kept]

    def collate(samples: list[Any]) -> Any:
        images = torch.from_numpy(np.stack([image for image, *_ in samples]))
        most = max(len(boxes) for _, boxes, _ in samples)
        boxes = torch.zeros(len(samples), most, 4)
        labels = torch.full((len(samples), most), -1)
        for row, (_, corners, classes) in enumerate(samples):
            boxes[row, : len(corners)] = torch.from_numpy(corners)
            labels[row, : len(classes)] = torch.from_numpy(classes)
        return images, {"boxes": boxes, "labels": labels}

    loader = torch.utils.data.DataLoader(
        Samples(),
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=2,
    )
    batches = functools.partial(iter, loader)
    timed(batches, 1)
    return functools.partial(timed, batches, options.epochs)


def serve_torch(options: argparse.Namespace) -> None:
    """Answer each side's name on stdin with a round's images per second."""
    sys.path.insert(0, str(ROOT))
    import keras_lightnets

    # The checkout maps its top-level folders into the package on installation.
    keras_lightnets.__path__.append(str(ROOT))
    sides = {
        "torch": torch_side(options, reduced=False),
        "torch, reduced": torch_side(options, reduced=True),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        print(sides[line.strip()](), flush=True)


class TorchProcess:
    """The other interpreter, asked for one round at a time."""

    def __init__(self, python: str) -> None:
        command = [python, __file__, *sys.argv[1:], "--serve-torch"]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        if self._answer() != "ready":
            raise RuntimeError(f"{python} did not start; see its error above")

    def _answer(self) -> str:
        stream = self._child.stdout
        return stream.readline().strip() if stream else ""

    def ask(self, side: str) -> float:
        """Run one round of a side."""
        if self._child.stdin:
            self._child.stdin.write(side + "\n")
            self._child.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        if self._child.stdin:
            self._child.stdin.close()
        self._child.wait(timeout=60)


def compare(sides: dict[str, Round], rounds: int) -> dict[str, Any]:
    """Run all sides in turn and return medians, ranges and ratios to "torch"."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in sides.items():
            found[name].append(measure())
        text = ", ".join(f"{name} {values[-1]:.0f}" for name, values in found.items())
        print(f"round {number + 1}: {text}", file=sys.stderr)
    result: dict[str, Any] = {}
    for name, values in found.items():
        entry = {
            "images_per_s": statistics.median(values),
            "least": min(values),
            "most": max(values),
        }
        if "torch" in found:
            pairs = zip(values, found["torch"], strict=True)
            entry["ratio_to_torch"] = statistics.median(a / b for a, b in pairs)
        result[name] = entry
    return result


def main() -> None:
    """Run the comparison and print a table."""
    options = arguments()
    if options.serve_torch:
        serve_torch(options)
        return
    other = TorchProcess(options.torch_python) if options.torch_python else None
    sides = own_sides(options)
    if other is not None:
        for name in ("torch", "torch, reduced"):
            sides[name] = functools.partial(other.ask, name)
    try:
        result = compare(sides, options.rounds)
    finally:
        if other is not None:
            other.close()
    print(f"{'side':16s} {'images/s':>9s} {'least':>7s} {'most':>7s} {'/ torch':>8s}")
    for name, row in result.items():
        figures = f"{row['images_per_s']:9.0f} {row['least']:7.0f} {row['most']:7.0f}"
        print(f"{name:16s} {figures} {row.get('ratio_to_torch', float('nan')):8.2f}")
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k != "serve_torch"}
        content = json.dumps({"settings": settings, "sides": result}, indent=1)
        pathlib.Path(options.json).write_text(content)
    if other is not None:
        store(options, result)


def store(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the section of docs/benchmarks.md."""
    import page

    rows = [
        {
            "side": name,
            "images/s": f"{row['images_per_s']:.0f}",
            "least - most": f"{row['least']:.0f} - {row['most']:.0f}",
            "ratio to torch": f"{row['ratio_to_torch']:.2f}",
        }
        for name, row in result.items()
    ]
    page.record(
        "input_pipeline",
        "Input pipeline against a PyTorch DataLoader",
        "python benchmarks/input_pipeline.py --images ../shared/data/bccd/train "
        "--annotations ../shared/data/bccd/annotations/instances_train.json "
        "--torch-python PYTHON_WITH_TORCH",
        rows,
        f"640x480 JPEGs, preset `{options.preset}`, {options.fit} to {options.size} "
        f"px, {options.workers} workers, {options.rounds} interleaved rounds; medians, "
        "the ratio taken round by round. `torch` decodes JPEGs in full, as is usual; "
        "`torch, reduced` reads them at reduced size with this package's code.",
    )


if __name__ == "__main__":
    main()
