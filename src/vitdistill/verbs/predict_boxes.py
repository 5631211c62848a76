"""`vitdistill predict` of a detector: a row for each object, and pictures with boxes in them."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from vitdistill.data.boxes.given import GivenImages
from vitdistill.errors import UserError
from vitdistill.evaluation.boxes import Detection, detect_files
from vitdistill.files import write_atomically
from vitdistill.models.network import Network
from vitdistill.reporting.galleries.boxes import Drawn, draw_boxes
from vitdistill.runs.directory import list_in_run
from vitdistill.verbs.rows import RowWriter


def predict_boxes(
    network: Network, files: list[str], writer: RowWriter, *, threshold: float, draw: str | None, **options: Any
) -> list[dict[str, Any]]:
    """Write what is found in files, and return it.

    Args:
        network: a detector.
        files: images, videos, and folders of them.
        writer: of the rows.
        threshold: least score of an object.
        draw: folder for pictures; None draws none.
        options: of `detect_files`.

    Raises:
        UserError: when the threshold is out of range, --draw is a file, or no file can be read.
    """
    if not 0 <= threshold <= 1:
        raise UserError("--threshold must lie in [0, 1]", threshold)
    folder = None if draw is None else Path(draw).expanduser()
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError("--draw must be a folder", f"the file {draw}")
    rows: list[dict[str, Any]] = []
    names: Counter[str] = Counter()
    images, drawn = 0, 0
    with writer:
        for path, found in detect_files(network, files, threshold=threshold, **options):
            new = [_row(path, one) for one in found]
            writer.write(new)
            rows += new
            images += 1
            if folder is not None:
                drawn += _draw(folder, names, path, found)
    if writer.out is not None:
        list_in_run(writer.out)
        print(f"wrote {len(rows)} objects in {images} files to {writer.out}")
    elif not rows:
        print(f"no object with a score of at least {threshold:g} in {images} files")
    if folder is not None:
        print(f"wrote {drawn} pictures into {folder}")
    return rows


def _row(path: str, one: Detection) -> dict[str, Any]:
    corners = dict(zip(("x1", "y1", "x2", "y2"), one.corners, strict=True))
    return {"path": path, "label": one.label, "class": one.number, "score": one.score, **corners}


def _draw(folder: Path, names: Counter[str], path: str, found: list[Detection]) -> int:
    """Write one picture; files of one name in several folders are numbered."""
    stem = Path(path).stem or os.path.basename(os.path.abspath(path))
    names[stem] += 1
    name = stem if names[stem] == 1 else f"{stem}-{names[stem]}"
    image = GivenImages([path], None).load(0)[0]
    # The surest above the others.
    boxes = [Drawn(one.corners, one.number, f"{one.label} {one.score:.2f}") for one in reversed(found)]
    picture = draw_boxes(image, boxes)
    write_atomically(folder / f"{name}.png", lambda file: picture.save(file, format="png"))
    list_in_run(folder / f"{name}.png")
    return 1
