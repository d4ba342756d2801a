"""Small drawn data sets: scenes with masks, pictures with a class."""

import cv2
import numpy as np

NAMES = ("ground", "blue", "red")
VOID = len(NAMES)
HEIGHT, WIDTH = 64, 96


def draw_scene(seed):
    """A dark ground with a blue and a red box; the border has no class."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, colour in ((1, (40, 60, 230)), (2, (230, 60, 40))):
        y, x = int(rng.integers(4, 30)), int(rng.integers(4, 56))
        picture[y : y + 28, x : x + 32] = colour
        mask[y : y + 28, x : x + 32] = label
    mask[:2] = VOID
    return picture, mask


def write_split(folder, split, count, seed):
    (folder / split).mkdir(parents=True)
    (folder / f"{split}_labels").mkdir()
    for index in range(count):
        picture, mask = draw_scene(seed + index)
        cv2.imwrite(str(folder / split / f"{index}.png"), picture[:, :, ::-1])
        cv2.imwrite(str(folder / f"{split}_labels" / f"{index}.png"), mask)
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")


COLOURS = {"blue": (40, 60, 230), "green": (40, 220, 60), "red": (230, 60, 40)}
SIDE = 64


def write_pictures(root, count, seed):
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture = rng.integers(0, 90, (SIDE, SIDE + 16, 3), dtype=np.uint8)
            y, x = (int(v) for v in rng.integers(8, 24, 2))
            picture[y : y + 32, x : x + 32] = colour
            cv2.imwrite(str(root / name / f"{index}.png"), picture[:, :, ::-1])
