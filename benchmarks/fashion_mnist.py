"""Fashion-MNIST as class folders of PNG files, for the studies that train on a part of it.

    apt-get install dataset-fashion-mnist         # real pictures of garments in ten classes, 28x28 pixels
    python benchmarks/fashion_mnist.py            # writes runs/fashion_mnist/{6000,30000}, 20 seconds

The folders are named by how many pictures there are to train on, the first of the set; 2,000 pictures are for tests,
the first of its own test pictures.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package has it
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot")
TRAIN, VAL = (6_000, 30_000), 2_000


def write(source: Path, split: str, count: int, folder: Path) -> None:
    """Write the first pictures of a split into a folder per class."""
    with gzip.open(source / f"{split}-images-idx3-ubyte.gz") as file:
        pictures = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:count]
    with gzip.open(source / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)[:count]
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        Image.fromarray(picture).save(folder / CLASSES[label] / f"{number:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder with the four .gz files")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_mnist"))
    options = parser.parse_args()
    if not options.source.is_dir():
        raise SystemExit(f"{options.source} is not there: apt-get install dataset-fashion-mnist, or give --source")
    for count in TRAIN:
        write(options.source, "train", count, options.out / str(count) / "train")
        write(options.source, "t10k", VAL, options.out / str(count) / "val")
        print(f"wrote {options.out / str(count)}")


if __name__ == "__main__":
    main()
