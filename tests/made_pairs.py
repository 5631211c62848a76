"""Folders of images and masks, written for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = """\
Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1\t1\t1\t1\twall
2\t0.1\t1\t1\t1\tbuilding, edifice
3\t0.1\t1\t1\t0\tsky
"""


def ade20k(root: Path, *, sizes: tuple[tuple[int, int], ...] = ((40, 30), (30, 40), (33, 61), (50, 50))) -> Path:
    """ADE20K's layout in miniature: three classes from 1 on, and 0 for none; each class has its own colour."""
    folder = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number, size in enumerate(sizes, start=1):
            mask = pattern(size, number)
            name = f"ADE_{short}_{number:08d}"
            Image.fromarray(mask * 80).convert("RGB").save(folder / "images" / split / f"{name}.jpg")
            Image.fromarray(mask).save(folder / "annotations" / split / f"{name}.png")
    (folder / "objectInfo150.txt").write_text(NAMES)
    return folder


def pattern(size: tuple[int, int], number: int) -> np.ndarray:
    """Stripes of 0 to 3."""
    rows = (np.arange(size[0]) * 4 // size[0] + number) % 4
    return np.repeat(rows[:, None], size[1], axis=1).astype(np.uint8)
