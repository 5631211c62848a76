"""A data source: samples to train and to validate on."""

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
