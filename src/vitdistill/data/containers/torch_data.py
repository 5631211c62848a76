"""Any map-style torch `Dataset` of (picture, class): torchvision's, a Subset, a ConcatDataset, one's own.

Pictures may be PIL images, uint8 or float tensors (channels, height, width), or numpy arrays (height, width, channels);
floats lie in 0..1. The data set's own transform runs before the recipe's, so it should not normalise.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vitdistill.data.containers.labels import Part, source_of, texts
from vitdistill.data.containers.rows import RowImages
from vitdistill.data.images.decode import as_rgb
from vitdistill.data.samples import UNREADABLE, reason_of
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError

logger = logging.getLogger(__name__)

LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y", "target")  # where data sets keep the class of every sample
SAMPLE_ATTRIBUTES = ("samples", "_samples", "imgs")  # lists of (file, class)
FILE_ATTRIBUTES = ("_image_files", "_images", "images")
NAME_ATTRIBUTES = ("wnids", "classes", "categories", "all_categories")
TRIED = 2  # samples from the front that are looked at
TOLERANCE = 1e-3  # resizing of floats may leave 0..1 by a little
PICTURE = "a PIL image, a tensor (channels, height, width) or an array (height, width, channels)"


class TorchImages(RowImages):
    """Samples of a map-style data set."""

    random = True  # it may have a transform of its own

    def __init__(self, data: Any, name: str, rows: np.ndarray, labels: np.ndarray | None) -> None:
        """
        Args:
            data: the data set.
            name: of the split, for messages.
            rows: as for `RowImages`.
            labels: as for `RowImages`.
        """
        super().__init__(rows, labels)
        self._data, self._name = data, name

    def picture(self, row: int) -> Image.Image:
        return as_picture(_first(self._data[row]), self.row_name(row))

    def row_name(self, row: int) -> str:
        return file_of(self._data, row) or f"{self._name}[{row}]"

    def keys(self) -> bytes:
        return self.rows.astype("<i8").tobytes()


def is_dataset(data: object) -> bool:
    """Whether an object has samples by number."""
    return hasattr(data, "__getitem__") and not isinstance(data, str | bytes | Mapping)


def open_torch(data: Any, *, labels: bool) -> DataSource:
    """Open a map-style data set, of which a share is held out for validation, or a pair of them (train, val).

    Args:
        data: a data set of (picture, class); a tuple, list or mapping of two; or one or two of Hugging Face's.
        labels: whether labels are needed.

    Raises:
        UserError: when it is none, pictures are none, or labels are needed and not there.
    """
    train, val = _pair(data)
    _check_map_style(train)
    if val is not None:
        _check_map_style(val)
    if type(train).__module__.partition(".")[0] == "datasets":
        from vitdistill.data.containers.address import Address
        from vitdistill.data.containers.hf import of_splits

        splits = {"train": train} if val is None else {"train": train, "val": val}
        return of_splits(splits, Address("hf", type(train).__name__), labels=labels)
    name = type(train).__name__
    train_part = part_of(train, name if val is None else f"{name} (train)")
    val_part = None if val is None else part_of(val, f"{type(val).__name__} (val)")
    names = class_names(train)
    if val is not None and names is not None and (theirs := class_names(val)) not in (None, names):
        raise UserError("Both data sets must have the same classes in the same order", f"{names} and {theirs}")
    return source_of(
        name,
        train_part,
        val_part,
        names=names,
        labels=labels,
        remedy="Samples must be (picture, class), with a whole number or a name for the class",
    )


def part_of(data: Any, where: str) -> Part:
    """A data set as a split; its labels are found without loading pictures where it keeps them in a usual place.

    Raises:
        UserError: when its first sample is not a picture, or a picture with something else than a class; or a sample
            that has to be read for its class cannot be.
    """
    first = next(
        (sample for index in range(min(len(data), TRIED)) if (sample := _readable(data, index)) is not None), None
    )
    if isinstance(first, tuple | list) and len(first) > 2:
        raise UserError(f"Samples of {where} must be (picture, class)", f"{len(first)} values a sample")
    if first is not None:
        as_picture(_first(first), f"{where}[0]")
    return Part(where, len(data), labels_of(data, where), lambda rows, labels: TorchImages(data, where, rows, labels))


def labels_of(data: Any, where: str) -> np.ndarray | None:
    """What a data set says of the class of every sample; None where samples have no class."""
    looked_at = sorted({*range(min(len(data), TRIED)), len(data) // 2, max(len(data) - 1, 0)}) if len(data) else []
    samples = {index: sample for index in looked_at if (sample := _readable(data, index)) is not None}
    if not all(isinstance(sample, tuple | list) and len(sample) > 1 for sample in samples.values()):
        return None
    if not all(isinstance(_plain(sample[1]), int | float | str | None) for sample in samples.values()):
        return None  # boxes, one-hot vectors, ...
    kept = _kept_labels(data)
    if kept is not None and len(kept) == len(data):
        transform = getattr(data, "target_transform", None)
        values = [_plain(value if transform is None else transform(value)) for value in kept]
        if all(values[index] == _plain(sample[1]) for index, sample in samples.items()):
            return _array(values)
    logger.warning("Reading every sample of %s once, as it does not keep its labels in a list", where)
    console = Console(stderr=True)
    numbers = track(range(len(data)), f"Labels of {where}", console=console, disable=not console.is_terminal)
    return _array([_label(data, index, where) for index in numbers])


def _label(data: Any, index: int, where: str) -> Any:
    """The class of a sample that has to be read for it."""
    try:
        sample = data[index]
    except UNREADABLE as error:
        reason = reason_of(error, file_of(data, index) or f"sample {index}")  # raises what is no fault of the file
        raise UserError(
            f"The class of every sample of {where} must be known",
            f"sample {index} cannot be read ({reason})",
            "Give the data set a list `targets` of its classes, or leave the sample out",
        ) from error
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        raise UserError(f"Samples of {where} must be (picture, class)", f"{type(sample).__name__} as sample {index}")
    return _plain(sample[1])


def _readable(data: Any, index: int) -> Any | None:
    """A sample; None where it is unreadable, which the loader will say."""
    try:
        return data[index]
    except UNREADABLE as error:
        reason_of(error, file_of(data, index) or f"sample {index}")  # raises what is no fault of the file
        return None


def class_names(data: Any) -> list[str] | None:
    """The class names that a data set, or the one inside it, carries."""
    for name in NAME_ATTRIBUTES:
        found = getattr(data, name, None)
        if isinstance(found, Sequence) and not isinstance(found, str) and len(found):
            return texts(found)
    numbered = getattr(data, "class_to_idx", None)
    if isinstance(numbered, Mapping) and sorted(numbered.values()) == list(range(len(numbered))):
        return texts(sorted(numbered, key=lambda name: numbered[name]))
    inner = getattr(data, "dataset", None)  # a Subset's
    if inner is not None:
        return class_names(inner)
    parts = getattr(data, "datasets", None)  # a ConcatDataset's
    if isinstance(parts, Sequence) and parts:
        named = [class_names(part) for part in parts]
        if any(names != named[0] for names in named):
            raise UserError("All parts of a ConcatDataset must have the same classes in the same order", named)
        return named[0]
    return None


def file_of(data: Any, row: int) -> str | None:
    """The file of a sample, where the data set lists files."""
    for attribute in (*SAMPLE_ATTRIBUTES, *FILE_ATTRIBUTES):
        found = getattr(data, attribute, None)
        if isinstance(found, list) and len(found) == len(data):
            file = (
                found[row][0] if attribute in SAMPLE_ATTRIBUTES and isinstance(found[row], tuple | list) else found[row]
            )
            if isinstance(file, str) or hasattr(file, "__fspath__"):
                return str(file)
    if hasattr(data, "indices") and hasattr(data, "dataset"):
        return file_of(data.dataset, int(data.indices[row]))
    return None


def as_picture(value: Any, where: str) -> Image.Image:
    """A picture of any of the accepted forms, as upright RGB.

    Raises:
        OSError, SyntaxError, ValueError: as `images.decode.as_rgb`.
        UserError: when it is none of them, or its numbers are out of range.
    """
    if isinstance(value, Image.Image):
        return as_rgb(value)
    if isinstance(value, Tensor):
        array = value.detach().cpu()
        if array.is_floating_point():
            array = array.float()
        pixels = array.numpy()
        if pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
    elif isinstance(value, np.ndarray):
        pixels = value
        if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
            pixels = pixels.transpose(1, 2, 0)
    else:
        raise UserError(f"A picture must be {PICTURE}", f"{type(value).__name__} from {where}")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
        raise UserError(f"A picture must be {PICTURE}", f"the shape {tuple(value.shape)} from {where}")
    pixels = _as_bytes(pixels, where)
    return as_rgb(Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels))


def _as_bytes(pixels: np.ndarray, where: str) -> np.ndarray:
    """Pixels as uint8."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return np.rint(pixels / 257).astype(np.uint8)
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if pixels.dtype.kind == "f":
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
            raise UserError(
                "Float pictures must lie in 0..1",
                f"{low:.3g} to {high:.3g} from {where}",
                "Take Normalize out of its transform, or divide by 255: pictures are normalised as the network asks",
            )
        return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    if low < 0 or high > 255:
        raise UserError("Pictures of whole numbers must lie in 0..255", f"{low:.0f} to {high:.0f} from {where}")
    return pixels.astype(np.uint8)


def _pair(data: Any) -> tuple[Any, Any | None]:
    """What to train and to validate on."""
    if isinstance(data, Mapping):
        from vitdistill.data.containers.splits import choose_splits

        train, val = choose_splits(data, None, None, "the mapping of data sets")
        return data[train], None if val is None else data[val]
    if (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(is_dataset(one) and not isinstance(one, tuple) for one in data)
    ):
        return data[0], data[1]
    return data, None


def _check_map_style(data: Any) -> None:
    if not is_dataset(data):
        raise UserError(
            "Data must be a path, a source, a map-style Dataset or a pair (train, val) of them",
            type(data).__name__,
            "An IterableDataset has no samples by number, which exact resume needs",
        )
    try:
        len(data)
    except TypeError as error:
        raise UserError("A Dataset must say how many samples it has", type(data).__name__, "Give it __len__") from error


def _kept_labels(data: Any) -> Sequence[Any] | None:
    """The labels that a data set, or those that it is made of, keep in a list; as they are before transforms."""
    if isinstance(data, torch.utils.data.Subset):
        inner = _through(data.dataset)
        return None if inner is None else [inner[int(index)] for index in data.indices]
    if isinstance(data, torch.utils.data.ConcatDataset):
        parts = [_through(part) for part in data.datasets]
        return (
            None if any(part is None for part in parts) else [one for part in parts if part is not None for one in part]
        )
    if isinstance(data, torch.utils.data.TensorDataset):
        return data.tensors[1].tolist() if len(data.tensors) > 1 and data.tensors[1].ndim == 1 else None
    if isinstance(data, list):
        return [_label(data, index, "the list") for index in range(len(data))]
    for attribute in LABEL_ATTRIBUTES:
        found = getattr(data, attribute, None)
        if isinstance(found, Tensor | np.ndarray):
            return found.tolist() if found.ndim == 1 else None
        if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == len(data):
            return found
    for attribute in SAMPLE_ATTRIBUTES:
        found = getattr(data, attribute, None)
        if isinstance(found, list) and len(found) == len(data) and isinstance(found[0], tuple) and len(found[0]) == 2:
            return [sample[1] for sample in found]
    return None


def _through(data: Any) -> Sequence[Any] | None:
    """The kept labels of an inner data set, with its own transform of labels."""
    kept, transform = _kept_labels(data), getattr(data, "target_transform", None)
    if kept is None or len(kept) != len(data):
        return None
    return kept if transform is None else [transform(value) for value in kept]


def _first(sample: Any) -> Any:
    """The picture of a sample."""
    return sample[0] if isinstance(sample, tuple | list) and len(sample) else sample


def _plain(value: Any) -> Any:
    """A label as a Python number or text."""
    return value.item() if isinstance(value, Tensor | np.generic | np.ndarray) and np.ndim(value) == 0 else value


def _array(values: list[Any]) -> np.ndarray:
    if all(isinstance(value, int | float | str | bool) for value in values):
        return (
            np.asarray(values)
            if not any(isinstance(value, str) for value in values)
            else np.array(values, dtype=object)
        )
    result = np.empty(len(values), dtype=object)
    result[:] = [None if value is None else str(value) for value in values]
    return result
