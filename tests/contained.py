"""The same few pictures in every kind of container: six to train on, four to validate on, cats and dogs in turn."""

import gzip
import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vitdistill.data import DataSource, open_source

COUNTS = {"train": 6, "val": 4}
CLASSES = ["cat", "dog"]
BROKEN = b"no picture"


def png(number: int) -> bytes:
    """A picture by which its number is known: red."""
    content = io.BytesIO()
    Image.new("RGB", (20 + number, 24), (10 * number, 0, 0)).save(content, "png")
    return content.getvalue()


def pictures(split: str, broken: Sequence[int] = ()) -> list[bytes]:
    """The pictures of a split; the broken ones are none."""
    first = 0 if split == "train" else COUNTS["train"]
    return [BROKEN if number in broken else png(first + number) for number in range(COUNTS[split])]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shards(folder: Path, broken: Sequence[int] = (), labelled: bool = True) -> DataSource:
    """Two shards to train on, one to validate on."""
    for split in COUNTS:
        members = [
            [(f"{number:04d}.png", content), *([(f"{number:04d}.cls", CLASSES[number % 2].encode())] * labelled)]
            for number, content in enumerate(pictures(split, broken))
        ]
        for shard, part in enumerate([members[:4], members[4:]] if split == "train" else [members]):
            write_tar(folder / f"animals-{split}-{shard}.tar", [one for sample in part for one in sample])
    return open_source(f"shards:{folder}/animals-train-{{0..1}}.tar,{folder}/animals-val-0.tar", labels=labelled)


def hub_split(split: str, broken: Sequence[int] = (), labelled: bool = True) -> Any:
    import datasets

    columns: dict[str, Any] = {"image": [{"bytes": content, "path": None} for content in pictures(split, broken)]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if labelled:
        columns["label"] = [number % 2 for number in range(COUNTS[split])]
        features["label"] = datasets.ClassLabel(names=CLASSES)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def saved(folder: Path, broken: Sequence[int] = (), labelled: bool = True) -> DataSource:
    """A folder of `save_to_disk`."""
    import datasets

    parts = {name: hub_split(split, broken, labelled) for split, name in (("train", "train"), ("val", "validation"))}
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return open_source(folder / "saved", labels=labelled)


def parquet(folder: Path, broken: Sequence[int] = (), labelled: bool = True) -> DataSource:
    """Parquet files of bytes and texts, which know nothing of the `datasets` library."""
    import pyarrow
    from pyarrow.parquet import write_table

    for split in COUNTS:
        columns: dict[str, Any] = {"picture": pictures(split, broken)}
        if labelled:
            columns["label"] = [CLASSES[number % 2] for number in range(COUNTS[split])]
        write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return open_source(folder, labels=labelled)


def csv(folder: Path, broken: Sequence[int] = (), labelled: bool = True) -> DataSource:
    """One csv with a header and a column of splits."""
    lines = ["file,breed,split" if labelled else "file,split"]
    for split in COUNTS:
        for number, content in enumerate(pictures(split, broken)):
            (folder / f"{split} {number}.png").write_bytes(content)
            lines.append(f"{split} {number}.png," + f"{CLASSES[number % 2]}," * labelled + split)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return open_source(folder / "labels.csv", labels=labelled)


def write_mnist(root: Path, name: str = "FashionMNIST") -> None:
    """Files of MNIST's format, packed, with pictures of 28x28 pixels of ten classes."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        packed = gzip.compress(struct.pack(">iiii", 2051, count, 28, 28) + images)
        (raw / f"{prefix}-images-idx3-ubyte.gz").write_bytes(packed)
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">ii", 2049, count) + labels))


def torchvision(folder: Path) -> DataSource:
    write_mnist(folder)
    return open_source(f"torchvision:FashionMNIST?root={folder}")


class Pairs(Dataset[Any]):
    """One's own data set; keeps no labels in a list, and reads each picture when it is asked for."""

    classes = CLASSES

    def __init__(self, split: str, broken: Sequence[int] = (), labelled: bool = True) -> None:
        self.contents, self.labelled = pictures(split, broken), labelled

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            raise IndexError(index)
        image = Image.open(io.BytesIO(self.contents[index])).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return (pixels, index % 2) if self.labelled else (pixels,)


class Listed(Pairs):
    """The same with its labels in a list."""

    @property
    def targets(self) -> list[int]:
        return [number % 2 for number in range(len(self))]


def torch_data(_: Path, broken: Sequence[int] = (), labelled: bool = True) -> DataSource:
    kind = Listed if labelled else Pairs
    return open_source((kind("train", broken, labelled), kind("val", broken, labelled)), labels=labelled)
