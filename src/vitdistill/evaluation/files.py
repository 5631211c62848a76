"""Files of users before a network: read as in its evaluation, in order, whatever is unreadable named and left out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vitdistill.data.folders import FileSamples
from vitdistill.data.given import files_for
from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import CorruptLog
from vitdistill.data.open import open_source
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.evaluation.loading import (
    Checkpoint,
    Reader,
    Subject,
    data_of,
    load,
    made_ready,
    run_of,
)
from vitdistill.models.network import Network
from vitdistill.models.presets import BUNDLED


def open_files(
    model: str,
    files: Sequence[str],
    *,
    checkpoint: Checkpoint,
    image_size: int | None,
    crop_pct: float | None,
    model_args: dict[str, Any] | None,
    clips: int = 1,
    crops: int = 1,
    stride: int | None = None,
    sampling: str | None = None,
) -> Subject:
    """Open a network and files, with the transform of the network's own evaluation.

    The arguments are those of `predict` and `embed`.

    Raises:
        UserError: when the model cannot be had, tells the actions of boxes, or there are no files for it.
    """
    run, config = run_of(model)
    if run is not None and config.get("task") == "actions":
        raise UserError(
            f"{model} tells the actions of people, whose boxes it needs",
            remedy=f"Use `vitdistill evaluate {model} --out FOLDER`, which writes predictions.csv",
        )
    network = load(model, Path(model), checkpoint, image_size, model_args)
    given = files_for(files, network.input)
    views = ViewOptions(augment=Augment(), stride=stride, sampling=sampling, clips=clips, crops=crops)
    return subject_of(model, network, given, config, views, crop_pct)


def subject_of(
    model: object,
    network: Network,
    given: FileSamples,
    config: dict[str, Any],
    views: ViewOptions,
    crop_pct: float | None,
) -> Subject:
    """As `made_ready`, for files. Networks trained on bundled images, which are not enlarged before the crop, are known
    by their names.
    """
    own = open_source(data_of(model, config)) if isinstance(model, str) and model in BUNDLED else None
    return made_ready(network, DataSource("files", given, given, []), config, views, crop_pct, trained_on=own)


def reader_of(subject: Subject, *, batch_size: int, device: str, workers: int | None) -> Reader:
    """A reader that starts no processes for a single batch, which would take longer than to read it.

    The arguments are those of `Reader`.
    """
    few = len(subject.source.val) <= batch_size
    return Reader(subject, batch_size=batch_size, device=device, workers=0 if workers is None and few else workers)


def read_files(reader: Reader, text: str) -> Iterator[tuple[list[str], Tensor]]:
    """Paths and normalised inputs, batch by batch and in order; unreadable files are named in one warning each.

    Args:
        reader: of what `open_files` gave.
        text: shown before the progress bar.

    Raises:
        UserError: when no file at all could be read.
    """
    files = reader.subject.source.val
    unreadable, count = CorruptLog.of(files), 0
    for inputs, batch in reader.read(files, text):
        unreadable.add(batch.skipped)
        if inputs is not None:
            paths = [files.path(index) for index in batch.index.tolist()]
            count += len(paths)
            yield paths, inputs
    if not count:
        raise UserError("At least one file must be readable", f"none of {len(files)}, for the reasons above")
