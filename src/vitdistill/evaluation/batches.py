"""Batches from files, for use in Python: made exactly as evaluation makes them."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitdistill.data.audio.files import given_sounds
from vitdistill.data.folders import as_bytes
from vitdistill.data.given import GivenFiles, is_clip
from vitdistill.data.images.augment import Augment
from vitdistill.data.samples import UNREADABLE, ViewOptions, reason_of
from vitdistill.errors import UserError
from vitdistill.evaluation.files import subject_of
from vitdistill.evaluation.loading import run_of
from vitdistill.files import check_exist
from vitdistill.models.build import build
from vitdistill.models.network import Network


def read_batch(
    paths: Sequence[str | Path] | str | Path,
    model: str | Network | nn.Module,
    *,
    crop_pct: float | None = None,
    stride: int | None = None,
    sampling: str | None = None,
) -> Float[Tensor, "b channels *pixels"]:
    """A batch of image, video or sound files as a model's evaluation sees them: resized, cropped and normalised.

    Args:
        paths: image files, or video files (a folder of frames is a video). Networks over clips take videos; those over
            images see the middle frame of a video, those over spectrograms take sounds.
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
    names = [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
    if not names:
        raise UserError("At least one file is needed for a batch", "none")
    check_exist(names)
    config = run_of(model)[1] if isinstance(model, str) else {}
    network = build(model, pretrained=True) if isinstance(model, str) else build(model)
    # Each path is one input, also a folder, whose frames are a video; `given_files` would look for files in it.
    places = [os.path.expanduser(name) for name in names]
    files = given_sounds(places) if network.input.sound else GivenFiles(as_bytes(places))
    if network.input.frames is not None and (images := [name for name in names if not is_clip(name)]):
        raise UserError("A network over clips needs videos", f"{len(images)} other files, such as {images[0]}")
    views = ViewOptions(augment=Augment(), stride=stride, sampling=sampling)
    subject = subject_of(model, network, files, config, views, crop_pct)
    transform = files.transform(network.input, subject.options, train=False)
    made: list[Tensor] = []
    for index in range(len(files)):
        try:
            one = transform(files.load(index)[0])
            assert isinstance(one, Tensor)
            made.append(one)
        except UNREADABLE as error:
            reason = reason_of(error, files.path(index))
            raise UserError("All files of a batch must be readable", f"{files.path(index)} ({reason})") from error
    return files.on_device(network.input, subject.options, 1).eval(torch.stack(made))
