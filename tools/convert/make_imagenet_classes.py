"""Makes keras_lightnets/imagenet_classes.csv from the lists that timm ships.

Run it with timm installed::

    python tools/convert/make_imagenet_classes.py
"""

import importlib.util
import pathlib
import sys

OUT = (
    pathlib.Path(__file__)
    .resolve()
    .parents[2]
    .joinpath("keras_lightnets", "imagenet_classes.csv")
)
HEADER = """\
# The 1000 classes of ImageNet (ILSVRC 2012), in training order.
# WordNet id, first lemma; WordNet 3.0, (c) 2006 Princeton University.
# Made by tools/convert/make_imagenet_classes.py.
"""


def rows(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Read the ids in training order and their first lemmas.

    Args:
        folder: timm's data/_info folder.

    Returns:
        (WordNet id, name) of the 1000 classes.
    """
    lemmas = {}
    text = folder.joinpath("imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        wnid, _, names = line.partition("\t")
        lemmas[wnid] = names.split(",")[0].strip()
    order = folder.joinpath("imagenet_synsets.txt").read_text(encoding="utf-8").split()
    return [(wnid, lemmas[wnid]) for wnid in order]


def main() -> int:
    """Write the file; return the process's exit status."""
    # Found without importing timm, which would load torch.
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        sys.stderr.write("timm is not installed. Run: pip install --no-deps timm\n")
        return 2
    table = rows(pathlib.Path(found.origin).parent / "data" / "_info")
    lines = [f"{wnid},{name}\n" for wnid, name in table]
    OUT.write_text(HEADER + "".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
