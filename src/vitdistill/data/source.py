"""A data source: samples to train and to validate on."""

import os
from dataclasses import dataclass

from vitdistill.data.samples import Samples


@dataclass(frozen=True)
class DataSource:
    """Samples to train and validate on.

    Attributes:
        name: short name for tables and file names.
        train: training samples.
        val: validation samples.
        classes: class names, in the order of the class numbers; empty where there are no labels.
        image_size: native height and width in pixels of a bundled source; None means the model's.
        frames: native frames of a clip of a bundled source of videos; None means the model's.
    """

    name: str
    train: Samples
    val: Samples
    classes: list[str]
    image_size: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", [_as_text(name) for name in self.classes])


def _as_text(name: str) -> str:
    """A class name that reports, model cards and terminals can show.

    Folders and tables of older systems may not be in UTF-8; what is not is taken for Windows-1252 (and Latin-1).
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("cp1252", errors="backslashreplace")
    return name
