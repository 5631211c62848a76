"""A table of paths and labels by name: `--data labels.csv`, or `csv:labels.csv?path=file&label=breed`.

`labels_csv.py` reads it, as it does those that lie in a folder.
"""

import os
from pathlib import Path

from vitdistill.data.clips.files import VIDEOS, ready
from vitdistill.data.containers.address import Address
from vitdistill.data.folders import is_image, listing
from vitdistill.data.images.folder import IMAGES
from vitdistill.data.labels_csv import by_table
from vitdistill.data.media import is_video
from vitdistill.data.source import DataSource
from vitdistill.data.tables import LOOKED_AT, Table, TableOptions


def open_csv(address: Address, *, labels: bool) -> DataSource:
    """Open a table of images, or of videos: what its first path is.

    Options: `path`, `label`, `split` (columns, by name or by number from 1), `train` and `val` (what the column `split`
    says of them; or for `val` the share of each class to hold out).

    Raises:
        UserError: as `by_table`.
    """
    file = Path(address.name).expanduser()
    named = {name: address.options.get(name) for name in ("path", "label", "split", "train")}
    options = TableOptions(**named, val=address.val)
    with listing(file):
        table = Table(file, lambda name: is_image(name) or is_video(name), options, most=LOOKED_AT)
        path = table.lines[0][1][table.columns.path]
        videos = is_video(path) or os.path.isdir(file.parent / path)
        source = by_table(file, VIDEOS if videos else IMAGES, options, labels=labels, share=address.share)
        return ready(source) if videos else source
