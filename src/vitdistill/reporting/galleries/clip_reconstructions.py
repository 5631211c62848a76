"""Pictures of what masked video modelling has learnt: frames of clips, what the encoder saw, what was predicted."""

import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from vitdistill.reporting.galleries.masks import dim_dropped
from vitdistill.reporting.galleries.reconstructions import SEED, Reconstructions, to_pixels

if TYPE_CHECKING:
    from vitdistill.data.source import DataSource
    from vitdistill.runs.read import Run
    from vitdistill.types import InputSpec

CLIPS, FRAMES = 2, 8  # in a picture


@torch.inference_mode()
def clip_reconstructions(run: "Run", count: int = CLIPS) -> list[Reconstructions]:
    """Validation clips under a mask that is the same in every report: first frames of up to eight time steps.

    Args:
        run: a run of the verb videomae; its decoder is read from its last checkpoint.
        count: how many clips.

    Raises:
        UserError: when the run holds no decoder, or its data is gone.
    """
    from vitdistill.data.device import OnDevice
    from vitdistill.data.images.augment import Augment
    from vitdistill.methods.videomae import VideoMAE

    method = run.method()
    assert isinstance(method, VideoMAE)
    student = method.student
    source = run.source(labels=False)
    clips = some_clips(source, student.input, run.config.get("stride"), run.config.get("sampling"), count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        kept, masked = method.masking.draw(len(clips), student.grid)
    seen = OnDevice(Augment(recipe="none"), student.input.mean, student.input.std, 1).eval(clips)
    predicted = method.reconstruct(seen, kept, masked)
    first = slice(None, None, clips.shape[2] // student.grid.t)  # of each time step
    some = slice(None, None, math.ceil(student.grid.t / FRAMES))
    found = []
    for clip, own, prediction in zip(clips, kept, predicted, strict=True):
        frames, guess = (frames[:, first].transpose(0, 1) for frames in (clip, prediction))
        hidden, pixels = dim_dropped(frames, own[None], student.grid, strength=1.0), to_pixels(guess, student)
        found.append(Reconstructions(frames[some], hidden[some], pixels[some], method.visible, student.grid.count))
    return found


def some_clips(
    source: "DataSource", spec: "InputSpec", stride: int | None, sampling: str | None, count: int, seed: int = 0
) -> UInt8[Tensor, "b 3 t size size"]:
    """Up to `count` clips, drawn from a source's validation videos, as a model would see them."""
    from vitdistill.data.images.recipes import Augment
    from vitdistill.data.samples import ViewOptions

    options = ViewOptions(augment=Augment(recipe="none"), stride=stride, sampling=sampling)
    transform = source.val.transform(spec, options, train=False)
    order = torch.randperm(len(source.val), generator=torch.Generator().manual_seed(seed))[:count]
    videos: list[Any] = [source.val.load(int(index))[0] for index in order]
    return torch.stack([clip for video in videos if isinstance(clip := transform(video), Tensor)])
