"""The same video under two labels, or in training and validation at once: a quick look when a source is opened."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

from vitdistill.data.folders import some
from vitdistill.data.samples import Samples
from vitdistill.data.source import DataSource

logger = logging.getLogger(__name__)

COMPARED = 2000  # files that are looked at, at most; those with names of their own are not
ENDS = 65536  # bytes at the start and at the end of two files of one size by which they are told to be the same


def warn_of_repeated(source: DataSource) -> None:
    """One warning that names some videos which are there twice, where there are any.

    Videos are the same when they have one path or are links to one file, and when files of the same name have the same
    size and the same first and last bytes. `vitdistill check` decodes all videos and compares their pictures.

    Args:
        source: of videos.
    """
    places: dict[str, list[tuple[str, str, int | None]]] = defaultdict(list)  # by name: path, split, label
    for split, samples in (("train", source.train), ("val", source.val)):
        for path, label in _paths(samples):
            places[os.path.basename(path)].append((path, split, label))
    crossing, relabelled, compared = [], [], 0
    for group in places.values():
        if len({(split, label) for _, split, label in group}) < 2:
            continue
        compared += len(group)
        if compared > COMPARED:
            break
        same = defaultdict(list)
        for path, split, label in group:
            same[_identity(path)].append((path, split, label))
        for found in same.values():
            if len({label for _, _, label in found}) > 1:
                relabelled.append(found[0][0])
            if len({split for _, split, _ in found}) > 1:
                crossing.append(found[0][0])
    kinds = ((crossing, "in training and validation at once"), (relabelled, "under two labels"))
    if parts := [f"{len(names)} {where}: {some(names)}" for names, where in kinds if names]:
        _warn(f"Videos of {source.name} are there twice, {'; '.join(parts)}. Scores mean little until they are removed")


def _paths(samples: Samples) -> Iterator[tuple[str, int | None]]:
    labels = samples.labels
    for index in range(len(samples)):
        yield os.path.normpath(samples.path(index)), None if labels is None else labels[index]


def _identity(path: str) -> tuple[object, ...]:
    """Equal for the same video, as far as a quick look tells."""
    try:
        status = os.stat(path)
        if os.path.isdir(path) or not status.st_size:
            return status.st_dev, status.st_ino
        with open(path, "rb") as file:
            first = file.read(ENDS)
            file.seek(max(0, status.st_size - ENDS))
            return status.st_size, first, file.read(ENDS)
    except OSError:  # said when it is read
        return (path,)


@lru_cache(maxsize=64)
def _warn(text: str) -> None:
    logger.warning(text)
