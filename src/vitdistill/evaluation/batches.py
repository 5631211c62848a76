"""Batches from files, for use in Python: made exactly as evaluation makes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.data.clips.files import VIDEOS, is_video
from vitdistill.data.device import OnDevice
from vitdistill.data.folders import as_bytes
from vitdistill.data.images.folder import IMAGES
from vitdistill.data.open import open_source
from vitdistill.data.samples import UNREADABLE, ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, error_words
from vitdistill.evaluation.loading import data_of, validation_crop
from vitdistill.models.build import build
from vitdistill.models.network import Network
from vitdistill.models.presets import BUNDLED
from vitdistill.runs.read import find_run


def read_batch(
    paths: Sequence[str | Path] | str | Path,
    model: str | Network | nn.Module,
    *,
    crop_pct: float | None = None,
    stride: int | None = None,
    sampling: str | None = None,
) -> Float[Tensor, "b channels *pixels"]:
    """A batch of image or video files as a model's evaluation sees them: resized, cropped and normalised.

    Args:
        paths: image files, or video files (a folder of frames is a video); not both.
        model: run directory, timm name or other text that `build` takes, or a network. Text is built at each call, for
            its size and input statistics, so a network is quicker.
        crop_pct: share of the resized image that the centre crop keeps; by default that of the run's recipe, or the
            one that the model was published with.
        stride: of videos: frames from one frame of a dense clip to the next; by default the run's.
        sampling: of videos: dense or uniform; by default the run's.

    Returns:
        On the CPU, in the order of the files; for a network over clips (b, 3, frames, height, width), and one centre
        clip of each video.

    Raises:
        UserError: when there is no file, one cannot be read (with the reason), or the network takes something else.

    Example:
        >>> network = vitdistill.build("runs/small")
        >>> inputs = vitdistill.read_batch(["cat.jpg", "dog.png"], network)  # (2, 3, 224, 224)
        >>> network.eval()(inputs).prediction.argmax(dim=1)
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    files = [file.expanduser().absolute() for file in files]
    if not files:
        raise UserError("At least one file is needed for a batch", "none")
    if missing := [str(file) for file in files if not file.exists()]:
        raise UserError(
            "All files of a batch must exist", f"{len(missing)} of {len(files)} missing, such as {missing[0]}"
        )
    are_videos = [is_video(file.name) or file.is_dir() for file in files]
    if any(are_videos) and not all(are_videos):
        raise UserError("A batch has images or videos, not both", f"{files[are_videos.index(False)]} among videos")
    run = find_run(model) if isinstance(model, str) else None
    config: dict[str, Any] = {} if run is None else run.config
    network = build(model, pretrained=True) if isinstance(model, str) else build(model)
    samples = (VIDEOS if are_videos[0] else IMAGES).make(Path("/"), as_bytes(map(str, files)), None)
    if sampling is None and config.get("sampling") == "uniform":
        sampling = "uniform"
    if stride is None and sampling != "uniform":
        stride = config.get("stride")
    source = DataSource("files", samples, samples, [])
    if isinstance(model, str) and model in BUNDLED:
        source = open_source(data_of(model, {}))  # bundled images are not enlarged before the crop
    augment = validation_crop(config, source, crop_pct, network)
    options = ViewOptions(augment=augment, stride=stride, sampling=sampling)
    transform = samples.transform(network.input, options, train=False)
    made: list[Any] = []
    for index, file in enumerate(files):
        try:
            made.append(transform(samples.load(index)[0]))
        except UNREADABLE as error:
            if isinstance(error, UserError):
                raise
            raise UserError("All files of a batch must be readable", f"{file} ({error_words(error)})") from error
    spec = network.input
    return OnDevice(augment, spec.mean, spec.std, 1).eval(torch.stack(made))
