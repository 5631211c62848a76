"""Seconds until a folder of ImageNet's shape is opened: 1000 class folders, here with a tenth of its files, empty.

    python benchmarks/folder_scan.py            # two minutes; writes benchmarks/results/folder_scan_<machine>.{json,md}
    python benchmarks/folder_scan.py --smoke    # 1000 files, writes nothing

What is timed is `image_folder`: listing, sorting, labels, counting what is left out. No file is opened. The tree was
just written, so the system has its folders in memory; a first look at a cold or a network disk takes what that takes.
torchvision's `ImageFolder` finds the same files in the same order and takes turns with ours.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torchvision.datasets import ImageFolder

from common import machine_name, met, parser_of, write
from vitdistill.costing.measure import hardware
from vitdistill.data import folders
from vitdistill.data.images.folder import image_folder

CLASSES, FILES, IMAGENET = 1000, 128_000, 1_281_167
LIMIT = 60.0  # seconds for the whole of ImageNet, beyond which a cache would pay


def main() -> None:
    parser = parser_of(__doc__, smoke="a thousand files", device=False)
    options = parser.parse_args()
    files, rounds = (1000, 1) if options.smoke else (FILES, 5)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        plant(root / "train", files)
        plant(root / "val", CLASSES)
        result = {
            "machine": options.machine or machine_name(torch.device("cpu")),
            "hardware": hardware(),
            "files": files,
            "classes": CLASSES,
            "rounds": rounds,
            "seconds": measure(root, rounds, files),
        }
    print(table(result))
    if not options.smoke:
        write(options.out, "folder_scan", result, table(result))


def plant(split: Path, files: int) -> None:
    """Empty files, the same number in every class."""
    for number in range(CLASSES):
        folder = split / f"n{number:08d}"
        folder.mkdir(parents=True)
        for file in range(files // CLASSES):
            (folder / f"n{number:08d}_{file}.JPEG").touch()


def measure(root: Path, rounds: int, files: int) -> dict[str, float]:
    """Medians; the ways take turns."""
    found = image_folder(root).train
    theirs = [path for path, _ in ImageFolder(str(root / "train")).samples]
    assert len(found) == files and [found.path(index) for index in range(files)] == theirs

    def with_threads(count: int) -> Callable[[], Any]:
        def scan() -> Any:
            folders.THREADS = count
            return image_folder(root)

        return scan

    chosen = folders.THREADS
    ways = {
        f"`image_folder`, {chosen} threads (as it is)": with_threads(chosen),
        "`image_folder`, 1 thread": with_threads(1),
        "torchvision's `ImageFolder` (train alone)": lambda: ImageFolder(str(root / "train")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, scan in ways.items():
            start = time.perf_counter()
            scan()
            seconds[name].append(time.perf_counter() - start)
    folders.THREADS = chosen
    return {name: median(values) for name, values in seconds.items()}


def table(result: dict[str, Any]) -> str:
    """What was measured, and what it comes to for ImageNet."""
    facts, factor = result["hardware"], IMAGENET / result["files"]
    rows = [f"| {name} | {took:.2f} | {took * factor:.0f} |" for name, took in result["seconds"].items()]
    ours = next(iter(result["seconds"].values())) * factor
    return "\n".join(
        [
            "# Opening a folder of class folders",
            "",
            f"{result['files']} empty files in {result['classes']} class folders, medians of {result['rounds']} rounds "
            f"in turn, on {facts['cpu']} ({facts['cpu_cores']} cores, shared). Written by `benchmarks/folder_scan.py`.",
            "",
            f"| way | s | s for {IMAGENET} files, extrapolated |",
            "|---|---|---|",
            *rows,
            "",
            f"All of ImageNet in less than {LIMIT:.0f} s, so without a cache: {met(ours < LIMIT)}, {ours:.0f} s.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
