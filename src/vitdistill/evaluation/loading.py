"""From the words of a command to a network, its data, and batches of images; shared by the evaluation verbs."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitdistill.data.clips.sampling import Views
from vitdistill.data.clips.transforms import cut_views
from vitdistill.data.device import blank_padding
from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import BAD_SHARE, Batch, CorruptLog, default_workers, make_loader
from vitdistill.data.open import open_source
from vitdistill.data.order import EvalBatchSampler
from vitdistill.data.samples import Samples, ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.evaluation.progress import track
from vitdistill.models.names import absolute_model, check_model_there, is_saved
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord, record_of
from vitdistill.runs.read import Checkpoint, Run, find_run, read_run
from vitdistill.tasks import task_of
from vitdistill.types import InputSpec

log = logging.getLogger(__name__)


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
        backbone: the network.
        source: the data.
        options: how samples are resized and cropped, and clips taken.
        spec: what the samples are made into; None is what the network takes.
    """

    backbone: Network
    source: DataSource
    options: ViewOptions
    spec: InputSpec | None = None


def open_subject(
    model: str,
    *,
    data: Any,
    checkpoint: Checkpoint,
    image_size: int | None,
    crop_pct: float | None,
    model_args: dict[str, Any] | None,
    clips: int = 1,
    crops: int = 1,
    stride: int | None = None,
    sampling: str | None = None,
) -> Subject:
    """Open the network and the data of an evaluation verb, whose arguments of the same names these are.

    Raises:
        UserError: when the model or the data cannot be had, the folder is no run, no data is named for a model that
            is no run, or options of videos are given for images or the reverse.
    """
    model = absolute_model(model) if "~" in model else model
    run, config = run_of(model)
    try:
        source = open_source(data_of(model, config) if data is None else data)
    except UserError as error:
        if data is not None or run is None or "data" not in config:
            raise
        # A run without labels may have been trained on any folder of images. What is wrong with it even then is said.
        run.source(labels=False)
        raise UserError(f"Labelled data is needed, and the run's own is not: {error}", remedy="Give --data") from error
    backbone = load(model, Path(model), checkpoint, image_size, model_args)
    views = ViewOptions(augment=Augment(), stride=stride, sampling=sampling, clips=clips, crops=crops)
    return made_ready(backbone, source, config, views, crop_pct)


def made_ready(
    backbone: Network,
    source: DataSource,
    config: dict[str, Any],
    given: ViewOptions,
    crop_pct: float | None,
    *,
    trained_on: DataSource | None = None,
) -> Subject:
    """A network and samples, with the transform of the network's own evaluation.

    Args:
        backbone: the network.
        source: whose validation set is read.
        config: of the run that the network is of; empty where it is of none.
        given: how clips are taken; what is None is as in the network's training. Its `augment` is replaced.
        crop_pct: share of the resized image that the centre crop keeps; None is as recorded.
        trained_on: the network's own data, where that is known and another one.

    Raises:
        UserError: when the network takes something else than these samples.
    """
    stride, sampling = clips_of(backbone, config, given.stride, given.sampling)
    augment = validation_crop(config, trained_on or source, crop_pct, backbone)
    options = replace(given, augment=augment, stride=stride, sampling=sampling)
    source.val.check(backbone.input, options)
    source.val.transform(backbone.input, options, train=False)  # refuses now what the reader would refuse later
    return Subject(backbone, source, options)


def run_of(model: str) -> tuple[Run | None, dict[str, Any]]:
    """The run that a model is, if it is one, and its configuration.

    Raises:
        UserError: when it is a folder without a network, or the run's files cannot be read.
    """
    check_model_there(model)
    folder, run = Path(model), find_run(model)
    if folder.is_dir() and not is_saved(folder):
        ModelRecord.read(folder)  # a folder that is no run is refused as such, before its data is missed
    config = {} if run is None else run.config
    if run is not None and run.problems and not config:
        raise UserError("The files of a run must be readable", f"{folder}: {'; '.join(run.problems)}")
    if run is not None and not run.info:
        log.warning("%s: %s; the model is read without it", folder, "; ".join(run.problems))
    return run, config


def task_of_model(model: str, image_size: int | None, args: dict[str, Any] | None) -> str:
    """What a model is to be tested for: the task of its run, else what its architecture shows, without its weights.

    Raises:
        UserError: when there is no such model.
    """
    from vitdistill.models.build import build

    run = find_run(model) if Path(model).is_dir() else None
    if run is not None:
        return str(run.config.get("task", "classification"))
    check_model_there(model)
    return task_of(build(model, args=args, image_size=image_size, meta=True))


def data_of(model: str, config: dict[str, Any]) -> str:
    """The data on which a run, or a bundled network, was trained.

    Raises:
        UserError: when the model is neither.
    """
    if "data" in config:
        return str(config["data"])
    for source in ("digits", "moving_digits", "sounds"):
        if model.startswith((source, source.replace("_", "-"))):
            return source
    if Path(model).is_dir():
        raise UserError(
            "Data must be named where the run does not say it", f"{model} without config.yaml", "Give --data"
        )
    raise UserError("Data must be named for a model that is no run directory", remedy="Give --data")


def load(
    model: str, folder: Path, checkpoint: Checkpoint, image_size: int | None, args: dict[str, Any] | None
) -> Network:
    """The network of a model or of a run's checkpoint.

    Raises:
        UserError: when it cannot be had, or options are given that a checkpoint decides by itself.
    """
    from vitdistill.models.build import build

    if checkpoint == "exported":
        return build(model, args=args, image_size=image_size, pretrained=True)
    given = {"image_size": image_size, "model_args": args}
    refuse_without_effect(given, {}, given, "unless --checkpoint is exported")
    return read_run(folder).student(checkpoint)


def validation_crop(
    config: dict[str, Any], source: DataSource | None, crop_pct: float | None, backbone: Network
) -> Augment:
    """The validation crop: the recorded one, else the run's, the bundled data's (none), or that of the publication."""
    published = getattr(backbone.net, "pretrained_cfg", None) or {}
    recorded = record_of(backbone.net).preprocessing
    if recorded:
        options: dict[str, Any] = {"recipe": "none"}
        if backbone.input.frames is None:  # clips are not enlarged before the crop, and sounds not cropped
            options |= {key: recorded[key] for key in ("crop_pct", "interpolation") if key in recorded}
    elif config:
        options = dict(config.get("augment") or {})
    elif source is not None and source.image_size:
        options = {"recipe": "none"}
    else:
        options = {"recipe": "tiny"}
        options |= {key: published[key] for key in ("crop_pct", "interpolation") if published.get(key)}
    if crop_pct is not None:
        options["crop_pct"] = crop_pct
    return Augment(**options)


def clips_of(
    backbone: Network, config: dict[str, Any], stride: int | None, sampling: str | None
) -> tuple[int | None, str | None]:
    """Stride and sampling of clips: as given, else as in the network's training, which its record or its run says."""
    trained = record_of(backbone.net).preprocessing or config
    if sampling is None and trained.get("sampling") == "uniform":  # dense is no option given
        sampling = "uniform"
    if stride is None and sampling != "uniform":
        stride = trained.get("stride")
    return stride, sampling


def place_of(device: str) -> torch.device:
    """The device that a name stands for; "auto" is the first GPU where there is one.

    Raises:
        UserError: when this machine has no such device.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError("The device must exist on this machine", f"{device} ({str(error).splitlines()[0]})") from error
    return torch.device(name)


class Reader:
    """Hands a network its images: resized, centre-cropped and normalised as in validation, never augmented.

    Attributes:
        place: the device on which the images arrive.
        bad_share: share of a set that may be unreadable.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        batch_size: int,
        device: str,
        workers: int | None,
        bad_share: float = BAD_SHARE,
    ) -> None:
        """
        Args:
            subject: whose images to read, and for which network.
            batch_size: images, or views of videos, per step.
            device: auto, cpu, cuda, ...
            workers: loader processes; None chooses by the data and the cores.
            bad_share: share of a set that may be unreadable; in small sets up to 3 files are borne.

        Raises:
            UserError: when this machine has no such device, the share is none, or a batch would be empty.
        """
        if not 0 <= bad_share <= 1:
            raise UserError("bad_share must lie in [0, 1]", bad_share)
        if batch_size < 1:
            raise UserError("batch_size must be at least 1", batch_size)
        self.bad_share = bad_share
        self.subject, self.batch_size, self.place = subject, batch_size, place_of(device)
        self.workers = default_workers(subject.source) if workers is None else workers

    def batches(self, images: Samples, corrupt: CorruptLog, text: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Normalised images (b, 3, height, width) on the device with their class numbers (b,), in order.

        Of videos, clips (b, 3, frames, height, width), or all views of b videos (b * views, 3, frames, height, width).
        Without labels, None in place of class numbers.

        Args:
            images: the set to read, once.
            corrupt: takes note of unreadable images, which are left out.
            text: shown before the progress bar.

        Raises:
            UserError: when more of the set is unreadable than `corrupt` bears.
        """
        for inputs, batch in self.read(images, text):
            corrupt.add(batch.skipped)
            corrupt.check(len(images))
            if inputs is not None:
                yield inputs, batch.targets

    def read(self, images: Samples, text: str) -> Iterator[tuple[Tensor | None, Batch]]:
        """The inputs of each batch (None where nothing of it is readable), and the batch; `batches` without a limit.

        Args:
            images: the set to read, once.
            text: shown before the progress bar.
        """
        backbone, source, options, _ = self.subject
        spec, views = self.subject.spec or backbone.input, Views(options.clips, options.crops)
        on_device = images.on_device(spec, options, len(source.classes))
        loader = make_loader(
            images,
            images.transform(spec, options, train=False),
            EvalBatchSampler(len(images), max(1, self.batch_size // views.count)),
            seed=0,
            num_workers=self.workers,
            pin_memory=self.place.type == "cuda",
        )
        for batch in track(loader, text, len(loader)):
            if not len(batch.index):
                yield None, batch
                continue
            assert isinstance(batch.images, Tensor)  # one view: several are for training
            inputs = batch.images.to(self.place)
            made = on_device.eval(inputs if views.count == 1 else cut_views(inputs, views))
            yield blank_padding(made, None if batch.sizes is None else batch.sizes.to(self.place)), batch
