"""Hugging Face data sets: from the hub or its cache (`hf:owner/name`), a repository folder, or `save_to_disk`."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitdistill.data.containers.address import Address
from vitdistill.data.containers.labels import Part, source_of, texts
from vitdistill.data.containers.rows import EncodedImages
from vitdistill.data.containers.splits import choose_splits
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, error_words, near
from vitdistill.hub import hub_in_reach

LABEL_NAMES = ("label", "labels", "class", "target", "cls", "category", "class_name", "label_name")
IMAGE_NAMES = ("image", "img", "picture", "jpg", "png", "bytes")
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


class HubImages(EncodedImages):
    """Images in a column of a map-style data set, encoded; the data set maps its files into memory."""

    def __init__(self, data: Any, column: str, name: str, rows: np.ndarray, labels: np.ndarray | None) -> None:
        """
        Args:
            data: a `datasets.Dataset` with the column of images alone, not decoded.
            column: its name.
            name: of the split, for messages.
            rows: as for `RowImages`.
            labels: as for `RowImages`.
        """
        super().__init__(rows, labels)
        self._data, self._column, self._name = data, column, name

    def content(self, row: int) -> bytes:
        value = self._data[row][self._column]
        if isinstance(value, bytes):
            return value
        if value is None or (value["bytes"] is None and not value.get("path")):
            raise ValueError("no image in this row")
        return Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]

    def row_name(self, row: int) -> str:
        return f"{self._name}[{row}]"

    def keys(self) -> bytes:
        return self.rows.astype("<i8").tobytes()


def open_hub(address: Address, *, labels: bool) -> DataSource:
    """Open a data set of the hub, of its cache where there is no network, or of a local folder.

    Options: `config`, `revision`, `train`, `val` (splits; or for `val` the share to hold out), `image`, `label`
    (columns).

    Raises:
        UserError: when it cannot be had, or has no column of images, or labels are needed and not there.
    """
    splits = _loaded(address)
    return of_splits(splits, address, labels=labels)


def of_splits(splits: Mapping[str, Any], address: Address, *, labels: bool) -> DataSource:
    """A source of the splits of a data set.

    Args:
        splits: `datasets.Dataset` by name.
        address: whose options choose splits and columns.
        labels: whether labels are needed.

    Raises:
        UserError: as `open_hub`.
    """
    where = address.name or address.scheme
    train_name, val_name = choose_splits(splits, address.options.get("train"), address.val, where)
    if address.share is not None:
        val_name = None
    train = splits[train_name]
    image = _image_column(train, address.options.get("image"), where)
    label = _label_column(train, address.options.get("label"), where, labels=labels)
    names = None if label is None else texts(getattr(train.features[label], "names", None))
    remedy = "" if label else f"Name the column that says the class: ?label=; there are {', '.join(train.column_names)}"
    train_part = _part(train, f"{where}/{train_name}", image, label)
    val_part = None if val_name is None else _part(splits[val_name], f"{where}/{val_name}", image, label)
    name = Path(where.rstrip("/")).name or address.scheme
    return source_of(name, train_part, val_part, names=names, labels=labels, share=address.share, remedy=remedy)


def quiet_in_logs() -> None:
    """No progress bars of the library where nobody watches."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _loaded(address: Address) -> Mapping[str, Any]:
    place = os.path.expanduser(address.name)
    if not os.path.isdir(place):
        hub_in_reach()
    import datasets

    quiet_in_logs()
    options = address.options
    try:
        if os.path.isdir(place) and any((Path(place) / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(place)
        else:
            named = {key: options[key] for key in ("revision",) if key in options}
            found = datasets.load_dataset(place, options.get("config"), **named)
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its network, file and parser libraries raise
        kind = type(error).__name__
        remedy = "Load it once where there is a network, or give a local folder"
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            remedy = "Name one, e.g. ?config=default"
        raise UserError(
            f"hf:{address.name} must be loadable by the datasets library", f"{kind}: {error_words(error)}", remedy
        ) from error
    return found if isinstance(found, Mapping) else {"train": found}


def _image_column(data: Any, wanted: str | None, where: str) -> str:
    if wanted is not None:
        return _named(data, "image", wanted, where)
    images = [name for name, feature in data.features.items() if type(feature).__name__ == "Image"]
    if not images:  # parquet files that know nothing of features
        encoded = [name for name, feature in data.features.items() if _holds_bytes(feature)]
        images = [name for name in encoded if name in IMAGE_NAMES] or encoded
    if len(images) == 1:
        return images[0]
    there = ", ".join(images or data.column_names)
    rule = f"{where} must have one column of images" if images else f"{where} must have a column of images"
    raise UserError(rule, there, f"Name it: ?image={images[0] if images else 'COLUMN'}")


def _named(data: Any, option: str, wanted: str, where: str) -> str:
    if wanted not in data.features:
        what = f"'{wanted}' of {', '.join(data.column_names)}"
        raise UserError(f"{where} must have the column that ?{option}= names", what, near(wanted, data.column_names))
    return wanted


def _holds_bytes(feature: Any) -> bool:
    """Whether a column has encoded images: bytes, or a struct of bytes and path."""
    if isinstance(feature, Mapping):
        return set(feature) >= {"bytes"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _label_column(data: Any, wanted: str | None, where: str, *, labels: bool) -> str | None:
    """The column that says the class; None where there is none, which only matters where labels are needed."""
    if wanted is not None:
        return _named(data, "label", wanted, where)
    classes = [name for name, feature in data.features.items() if type(feature).__name__ == "ClassLabel"]
    scalar = [
        name
        for name, feature in data.features.items()
        if getattr(feature, "dtype", None) is not None
        and str(feature.dtype).startswith(("int", "uint", "string", "large_string", "bool"))
    ]
    named = [name for name in LABEL_NAMES if name in scalar]
    found = classes if len(classes) == 1 else [name for name in named if name in classes or not classes]
    if found:
        return found[0]
    if labels and len(classes) > 1:
        raise UserError(
            f"One column of {where} must say the class", ", ".join(classes), f"Name it: ?label={classes[0]}"
        )
    return None


def _part(data: Any, where: str, image: str, label: str | None) -> Part:
    import datasets

    if missing := [column for column in (image, label) if column is not None and column not in data.features]:
        raise UserError(f"{where} must have the columns of the training split", f"no {missing[0]}")
    images = data.select_columns([image])
    feature = data.features[image]
    if type(feature).__name__ == "Image":
        images = images.cast_column(image, datasets.Image(decode=False))
    elif not _holds_bytes(feature):  # other columns are read as they are: a cast would read all of them into memory
        raise UserError(f"The column {image} of {where} must hold encoded images", f"a column of {feature}")
    values = None if label is None else _values(data, label)
    return Part(where, len(data), values, lambda rows, labels: HubImages(images, image, where, rows, labels))


def _values(data: Any, label: str) -> np.ndarray:
    """A column as an array; whole numbers, texts, or whatever else there is, to be refused."""
    column = data.select_columns([label]).with_format("arrow")[:][label].to_pylist()
    array = np.asarray(column) if not any(value is None or isinstance(value, list) for value in column) else None
    return np.array([str(v) if isinstance(v, list) else v for v in column], dtype=object) if array is None else array
