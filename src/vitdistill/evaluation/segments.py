"""Masks for files of users, at the size of each, by a network that labels pixels."""

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitdistill.data.given import given_files
from vitdistill.data.loader import CorruptLog
from vitdistill.data.samples import UNREADABLE, reason_of
from vitdistill.data.segments.files import SegmentTest
from vitdistill.data.segments.palette import as_picture, overlay
from vitdistill.errors import UserError, refuse_given
from vitdistill.evaluation.loading import place_of
from vitdistill.evaluation.progress import track
from vitdistill.files import write_atomically
from vitdistill.models.classes import class_names
from vitdistill.models.network import Network
from vitdistill.runs.directory import list_in_run
from vitdistill.tasks.segmentation import Segmentation

log = logging.getLogger(__name__)

SHARES = "shares.csv"


def label_files(
    network: Network,
    files: Sequence[str],
    *,
    out: str,
    config: Mapping[str, Any] | None = None,
    segments: SegmentTest = SegmentTest(),
    batch_size: int = 8,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Write the mask of every picture, its colours over the picture, and a table of how much of it is of each class.

    Args:
        network: one that labels pixels.
        files: pictures, and folders of them at any depth.
        out: folder for `<name>.png` (class numbers, with a palette), `<name>_overlay.png` and `shares.csv`.
        config: of the run that the network is of, which says where windows lie; without one its family does.
        segments: where windows lie, and at which sizes pictures are seen.
        batch_size: windows of a picture that are looked at at once.
        device: auto, cpu, cuda, ...

    Returns:
        A row for each readable file, in order: path, mask and overlay (the files written), and shares (class -> share
        of the pixels, of those that occur, the largest first).

    Raises:
        UserError: when no file can be read, the folder is a file, or it is said what masks mean.
    """
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError("--out must be a folder", f"the file {folder}")
    if batch_size < 1:
        raise UserError("batch_size must be at least 1", batch_size)
    given = {"classes": segments.classes is not None, "reduce_zero_label": segments.reduce_zero_label is not None}
    refuse_given({f"segments.{name}": is_given for name, is_given in given.items()}, "on pictures without masks")
    tested = Segmentation.tested_files(segments, network, config or {})
    task = Segmentation.of(network).tested(tested, batch_size)
    task.check(network)
    network.eval().to(place_of(device))
    names = class_names(network) or [str(number) for number in range(network.num_classes)]
    rows: list[dict[str, Any]] = []
    taken: dict[str, int] = {}
    for path, image in _pictures(files):
        mask = task.labelled(network, image)
        stem = Path(path).stem
        taken[stem] = taken.get(stem, 0) + 1
        stem = stem if taken[stem] == 1 else f"{stem}-{taken[stem]}"
        places = {"mask": folder / f"{stem}.png", "overlay": folder / f"{stem}_overlay.png"}
        for place, picture in zip(places.values(), (as_picture(mask), overlay(image, mask)), strict=True):
            write_atomically(place, lambda file, picture=picture: picture.save(file, "PNG"))
        written = {name: str(place) for name, place in places.items()}
        rows.append({"path": path, **written, "shares": _shares(mask, names)})
    write_atomically(folder / SHARES, lambda file: _write_shares(file, rows, names))
    list_in_run(folder / SHARES, *(Path(row[name]) for row in rows for name in ("mask", "overlay")))
    return rows


def _pictures(files: Sequence[str]) -> Iterator[tuple[str, Image.Image]]:
    """Paths and pictures; those that cannot be read are named in one warning each.

    Raises:
        UserError: when there is none to read, or a video among them.
    """
    given = given_files(files, clips=False)
    unreadable, count = CorruptLog.of(given), 0
    for index in track(range(len(given)), "labelling", len(given)):
        path = given.path(index)
        try:
            image = given.load(index)[0]
        except UNREADABLE as error:
            unreadable.add([(path, reason_of(error, path))])
            continue
        if not isinstance(image, Image.Image):
            raise UserError("Masks are made of pictures", f"the video {path}", "Give pictures")
        count += 1
        yield path, image
    if not count:
        raise UserError("At least one file must be readable", f"none of {len(given)}, for the reasons above")


def _shares(mask: UInt8[np.ndarray, "height width"], names: Sequence[str]) -> dict[str, float]:
    counts = np.bincount(mask.flatten(), minlength=len(names))
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    return {names[number]: round(float(counts[number]) / mask.size, 6) for number in order}


def _write_shares(file: IO[bytes], rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """A line for each picture: its path, and the share of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *names])
    writer.writerows([row["path"], *(row["shares"].get(name, 0) for name in names)] for row in rows)
    file.write(text.getvalue().encode(errors="surrogateescape"))
