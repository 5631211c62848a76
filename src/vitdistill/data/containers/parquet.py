"""Parquet files of encoded images, as `--data photos.parquet`, a folder of such files, or `parquet:PATTERN`.

A row of parquet cannot be reached without reading the hundreds around it, so the `datasets` library writes the files
once into its cache in Arrow's format, which is mapped into memory. The cache takes as much room as the files.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdistill.data.containers.address import Address
from vitdistill.data.containers.hf import of_splits, quiet_in_logs
from vitdistill.data.containers.splits import split_files
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, error_words

logger = logging.getLogger(__name__)


def open_parquet(address: Address, *, labels: bool) -> DataSource:
    """Open parquet files. A file belongs to the split that its name, or else its folder, has in it.

    Options: `train`, `val` (patterns of paths; or for `val` the share to hold out), `image`, `label` (columns).

    Raises:
        UserError: when there is no file, one cannot be read, or columns are missing.
    """
    import datasets

    train, val, left_out = split_files(address, ".parquet")
    if left_out:
        logger.warning("Neither trained nor validated on: %d parquet files, such as %s", len(left_out), left_out[0])
    quiet_in_logs()
    files = {"train": train, "val": val} if val else {"train": train}
    try:
        splits: Mapping[str, Any] = datasets.load_dataset("parquet", data_files=files)
    except Exception as error:  # whatever the file and parser libraries raise
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UserError(f"Parquet files such as {train[0]} must be readable", error_words(cause)) from error
    options = {name: value for name, value in address.options.items() if name not in ("train", "val")}
    if address.share is not None:
        options["val"] = address.options["val"]
    place = str(Path(train[0]).resolve().parent)
    return of_splits(splits, Address(address.scheme, place, options), labels=labels)
