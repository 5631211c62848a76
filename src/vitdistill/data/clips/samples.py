"""Sets of videos, and how videos become inputs: clips for networks over clips, single frames for those over images."""

import hashlib
import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vitdistill.data.clips import transforms as clip_transforms
from vitdistill.data.clips.sampling import Sampling, Views
from vitdistill.data.clips.video import Video
from vitdistill.data.images.recipes import Augment, ImageTransform
from vitdistill.data.images.samples import image_transform
from vitdistill.data.samples import (
    UNREADABLE,
    Facts,
    Samples,
    Transform,
    ViewOptions,
    reason_of,
    refuse_several,
    refuse_sound,
)
from vitdistill.errors import UserError, refuse_given
from vitdistill.types import InputSpec

logger = logging.getLogger(__name__)

LOOKED_FOR = 2.0  # seconds that `check` takes, unless all videos so far are too short
STRIDE = 4  # of dense clips by default, as for Kinetics
LOOKED_AT = 64  # videos that `check` opens
INSPECTED_AT, INSPECTED_AT_ONCE = 32, 2048  # shorter edge in pixels of the frames that `inspect` decodes, and how many


class VideoSamples(Samples):
    """Videos. `load` opens one, a `Video`, and decodes nothing: the transform asks for the frames it needs.

    Attributes:
        clip_frames: frames of every video, where all are ready-made clips of that length, taken whole by default.
    """

    word: ClassVar[str] = "video"
    has_frames: ClassVar[bool] = True
    clip_frames: int | None = None

    def sampling(self, spec: InputSpec, options: ViewOptions) -> Sampling:
        """Which frames make a clip for a network over clips.

        Raises:
            UserError: when an option would change nothing, or is out of range.
        """
        assert spec.frames is not None
        kind: Any = options.sampling or "dense"
        if kind == "uniform":
            refuse_given({"stride": options.stride is not None}, "with --sampling uniform")
        default = STRIDE if self.clip_frames is None else 1
        return Sampling(frames=spec.frames, stride=default if options.stride is None else options.stride, kind=kind)

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> Transform:
        refuse_sound(spec, options, self.word)
        refuse_several(options)
        if spec.frames is None:
            return FrameTransform(image_transform(spec, options, train=train), anywhere=train)
        if spec.shape[0] != 3:
            raise UserError("Clips are read as RGB, for networks with 3 channels", f"in_chans {spec.shape[0]}")
        sampling, augment = self.sampling(spec, options), options.augment
        # Training takes it with the recipe, evaluation as an option of its own.
        name = "augment.crop_pct" if train else "crop_pct"
        refuse_given({name: augment.crop_pct is not None}, "on clips, which are not enlarged before the centre crop")
        size = _square(spec.size)
        if train:
            return self._training(size, sampling, augment, labels=options.labels)
        views = Views(options.clips, options.crops)
        if views.count > 1:
            return clip_transforms.views_transform(size, sampling, views)
        return clip_transforms.eval_transform(size, sampling)

    def preprocessing(self, spec: InputSpec, options: ViewOptions) -> dict[str, Any]:
        found = super().preprocessing(spec, options)
        if spec.frames is None:
            return found
        taken = self.sampling(spec, options)
        clips = {
            "frames": taken.frames,
            "sampling": taken.kind,
            "stride": taken.stride if taken.kind == "dense" else None,
        }
        return {**found, **clips, "crop_pct": 1.0, "interpolation": "bilinear"}

    def _training(self, size: int, sampling: Sampling, augment: Augment, *, labels: bool) -> Transform:
        options = augment.resolved()
        if not labels:
            _check_pretraining(augment)
        if options.scale == 1:
            refuse_given({"augment.interpolation": augment.interpolation is not None}, "with scale 1, the centre crop")
        distorted = options.hflip or options.color_jitter or options.auto_augment != "none"
        whole = sampling.kind == "dense" and self.clip_frames is not None and sampling.span >= self.clip_frames
        if options.scale == 1 and whole and not distorted:
            return clip_transforms.eval_transform(size, sampling)  # bundled clips, whole and as they are
        if labels:
            return clip_transforms.finetune_transform(size, sampling, augment)
        if options.scale == 1:
            return clip_transforms.finetune_transform(size, sampling, Augment(recipe="none"))
        return clip_transforms.pretrain_transform(size, sampling)

    def inspect(self, index: int) -> Facts:
        video: Video = self.load(index)[0]
        if (length := video.length) < 1:
            raise ValueError("a video without frames")
        height, width = video.read([0]).shape[1:3]
        # Of the frames, decoded as for training; so a copy in another container has the same content.
        content = hashlib.blake2b(digest_size=16)
        for first in range(0, length, INSPECTED_AT_ONCE):
            frames = range(first, min(first + INSPECTED_AT_ONCE, length))
            content.update(video.read(frames, short_side=INSPECTED_AT).tobytes())
        return Facts(width, height, length, getattr(video, "rate", None), content.hexdigest())

    def short_side(self, index: int) -> int | None:
        return getattr(self.load(index)[0], "short_side", None)

    def check(self, spec: InputSpec, options: ViewOptions) -> None:
        """Refuse clips that are longer than every video, and warn of those that are longer than some.

        Up to 64 evenly spaced videos are opened, fewer where that takes longer than two seconds; unreadable ones among
        them are passed over. Uniform sampling fits every video.

        Raises:
            UserError: when all videos looked at are shorter than a clip.
        """
        if spec.frames is None:
            return
        sampling = self.sampling(spec, options)
        lengths: list[int] = []
        began = time.monotonic()
        for index in np.unique(np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).astype(int)).tolist():
            if max(lengths, default=0) >= sampling.needed and time.monotonic() - began > LOOKED_FOR:
                break
            try:
                lengths.append(self.load(index)[0].length)
            except UNREADABLE as error:
                reason_of(error, self.path(index))  # raises what is no fault of the file
        short = [length for length in lengths if length < sampling.needed]
        if not short:
            return
        dense = sampling.kind == "dense"
        clip = f"{sampling.frames} frames with stride {sampling.stride} span {sampling.needed} frames"
        if dense and len(short) == len(lengths):
            raise UserError(
                "A clip must not be longer than every video",
                f"{clip}, and the longest video has {max(short)}",
                "Choose fewer frames, a smaller stride or uniform sampling",
            )
        _warn_of_short(len(short), len(lengths), min(short), clip if dense else f"{sampling.frames} frames", dense)


@lru_cache(maxsize=64)  # once, though training and validation both look
def _warn_of_short(short: int, looked_at: int, shortest: int, clip: str, dense: bool) -> None:
    logger.warning(
        "%d of the %d videos looked at are shorter than a clip (%s; the shortest has %d), so frames are repeated%s",
        *(short, looked_at, clip, shortest),
        ". Choose fewer frames, a smaller stride or uniform sampling" if dense else "",
    )


@dataclass(frozen=True)
class FrameTransform:
    """One frame of a video, for networks over images: anywhere in training, the middle one in validation.

    Attributes:
        image: what happens to the frame.
        anywhere: a random frame, drawn from torch's CPU generator.
    """

    image: ImageTransform
    anywhere: bool

    @property
    def random(self) -> bool:
        return self.anywhere or self.image.random

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of every frame: (3, height, width)."""
        return self.image.shape

    def __call__(self, video: Video) -> UInt8[Tensor, "3 height width"]:
        if video.length < 1:
            raise ValueError("a video without frames")
        number = int(torch.randint(video.length, ())) if self.anywhere else video.length // 2
        return self.image(Image.fromarray(video.read([number])[0]))


def _check_pretraining(augment: Augment) -> None:
    """Refuse what pre-training on clips leaves out: its crop is fixed, and it neither flips nor recolours."""
    options = augment.resolved()
    given = {
        "augment.scale": augment.scale not in (None, 1),
        "augment.hflip": bool(augment.hflip),
        "augment.color_jitter": options.color_jitter > 0,
        "augment.auto_augment": options.auto_augment != "none",
        "augment.interpolation": augment.interpolation not in (None, "bilinear"),
    }
    refuse_given(given, "on clips without labels, but for --augment.scale 1, which takes the centre crop")


def _square(size: tuple[int, int]) -> int:
    if size[0] != size[1]:
        raise UserError("Clips are cropped to squares", f"{size[0]}x{size[1]}", "Choose a square img_size")
    return size[0]
