"""Tar shards as webdataset writes them, with every sample reachable by its number: `shards:train-{000..146}.tar`."""

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from vitdistill.data.containers.address import Address
from vitdistill.data.containers.labels import Part, source_of
from vitdistill.data.containers.rows import EncodedImages
from vitdistill.data.containers.splits import split_files
from vitdistill.data.containers.tar_index import TarIndex, cache_file, cache_folder, index_of, read_index, write_index
from vitdistill.data.source import DataSource

logger = logging.getLogger(__name__)

OPEN_FILES = 64  # shards that a process keeps open
LABEL = "A class is a member such as 0001.cls beside 0001.jpg, a field of a json member, or ?label=folder"


class ShardImages(EncodedImages):
    """Images in tars. Each process opens the tars that it reads from, and reads at given places only."""

    def __init__(self, tars: list[str], indices: list[TarIndex], rows: np.ndarray, labels: np.ndarray | None) -> None:
        """
        Args:
            tars: paths of the shards.
            indices: what lies in each.
            rows: as for `RowImages`; they count the samples of all tars together.
            labels: as for `RowImages`.
        """
        super().__init__(rows, labels)
        self._tars = tars
        self._starts = np.cumsum([0, *(len(index.names) for index in indices)])
        # One array of each over all tars: workers share their pages after a fork.
        self._names = np.concatenate([index.names for index in indices])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self._open: OrderedDict[int, Any] = OrderedDict()

    def content(self, row: int) -> bytes:
        file = self._file(self._tar_of(row))
        size = int(self._sizes[row])
        # Reading at a place does not move one, so processes that inherited an open file do not disturb each other.
        content = os.pread(file.fileno(), size, int(self._offsets[row]))
        if len(content) < size:
            raise OSError(f"the shard ends {size - len(content)} bytes early")
        return content

    def row_name(self, row: int) -> str:
        return f"{self._tars[self._tar_of(row)]}:{self._member(row)}"

    def keys(self) -> bytes:
        tars = np.searchsorted(self._starts, self.rows, side="right") - 1
        names = [os.fsencode(os.path.basename(tar)) for tar in self._tars]
        return b"\0".join([*names, tars.astype("<i8").tobytes(), *self._names[self.rows].tolist()])

    def _member(self, row: int) -> str:
        return os.fsdecode(bytes(self._names[row]))

    def _tar_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _file(self, tar: int) -> Any:
        if tar in self._open:
            self._open.move_to_end(tar)
            return self._open[tar]
        if len(self._open) >= OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[tar] = open(self._tars[tar], "rb", buffering=0)  # noqa: SIM115  # stays open
        return self._open[tar]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def open_shards(address: Address, *, labels: bool) -> DataSource:
    """Open tar shards.

    Options: `train` and `val` (patterns of paths; or for `val` the share to hold out), `image`, `label`, `cache`.

    Raises:
        UserError: when shards are missing, compressed or damaged, or labels are needed and not there.
    """
    train_tars, val_tars, left_out = split_files(address, ".tar")
    if left_out:
        logger.warning("Neither trained nor validated on: %d shards, such as %s", len(left_out), left_out[0])
    image, label = address.options.get("image"), address.options.get("label")
    found = _indices([*train_tars, *val_tars], image, label, cache_folder(address.options.get("cache")))
    if other := sum(index.other for index in found):
        logger.warning("In the shards of %s, %d members belong to no image and are left out", address.name, other)
    train = _part(train_tars, found[: len(train_tars)])
    val = _part(val_tars, found[len(train_tars) :]) if val_tars else None
    name = Path(train_tars[0]).stem.rstrip("0123456789").rstrip("-_.") or Path(train_tars[0]).stem
    return source_of(name, train, val, names=None, labels=labels, share=address.share, remedy=LABEL)


def _indices(tars: list[str], image: str | None, label: str | None, folder: Path) -> list[TarIndex]:
    """The index of every tar, from the cache where it is there."""
    files = [cache_file(tar, image, label, folder) for tar in tars]
    found = [read_index(file) for file in files]
    new = [number for number, index in enumerate(found) if index is None]
    console = Console(stderr=True)
    quiet = not console.is_terminal
    for number in track(new, "Indexing shards", console=console, disable=quiet, transient=True):
        index = found[number] = index_of(tars[number], image, label)
        write_index(files[number], index)
    return [index for index in found if index is not None]


def _part(tars: list[str], indices: list[TarIndex]) -> Part:
    where = tars[0] if len(tars) == 1 else f"{tars[0]} and {len(tars) - 1} more shards"
    unlabelled = next(
        (tar for tar, one in zip(tars, indices, strict=True) if one.classes is None and len(one.names)), None
    )
    values = None
    if unlabelled is None:
        values = np.concatenate([np.array([], dtype=str), *(one.classes for one in indices if one.classes is not None)])
        values = _as_numbers(values)
    count = sum(len(index.names) for index in indices)
    return Part(where, count, values, lambda rows, labels: ShardImages(tars, indices, rows, labels))


def _as_numbers(values: np.ndarray) -> np.ndarray:
    """Class numbers that are written as text."""
    try:
        return values.astype(np.int64)
    except ValueError:
        return values.astype(object)
