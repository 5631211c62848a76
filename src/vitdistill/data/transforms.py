"""Which transforms a source needs: of images, of clips or of single frames of videos, with labels or without."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vitdistill.data.actions.key_frames import KeyFrames, KeyFrameTransform
from vitdistill.data.clips import transforms as clip_transforms
from vitdistill.data.clips.sampling import Sampling, Views
from vitdistill.data.clips.video import Video, VideoSet
from vitdistill.data.images import recipes
from vitdistill.data.images.augment import Augment
from vitdistill.data.images.recipes import ImageTransform
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_unused

CROPS = "random crops, which scale 1 turns off"
DENSE = "--sampling dense"
SINGLE_IMAGES = "single images; clips are not enlarged before the centre crop"


def is_video(source: DataSource) -> bool:
    """Whether a source holds videos."""
    return isinstance(source.train, VideoSet)


def sampling_of(source: DataSource, frames: int, stride: int | None, kind: str) -> Sampling:
    """How clips are taken from a source.

    Args:
        source: videos.
        frames: of a clip.
        stride: frames from one to the next; None takes bundled clips whole, and 4 of others (Kinetics).
        kind: dense or uniform.
    """
    if stride is None:
        stride = 1 if source.frames else 4
    return Sampling(frames=frames, stride=stride, kind=kind)  # type: ignore[arg-type]


def clip_sampling(network: Any, source: DataSource, stride: int | None, kind: str) -> Sampling | None:
    """How clips are taken from videos for a network; None for networks over images, which see single frames of videos.

    Raises:
        UserError: when a network over clips is given images.
    """
    frames = getattr(network, "frames", None)
    if frames is None:
        return None
    if not is_video(source):
        raise UserError(
            f"A network over clips needs videos; {network.name} sees clips and {source.name} holds images",
            remedy="Give a folder of videos, or moving_digits",
        )
    return sampling_of(source, frames, stride, kind)


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

    def __call__(self, video: Video | Image.Image) -> UInt8[Tensor, "3 height width"]:
        if isinstance(video, Image.Image):  # the loader's stand-in, of which only the shape counts
            return self.image(video)
        if video.length < 1:
            raise ValueError("a video without frames")
        number = int(torch.randint(video.length, ())) if self.anywhere else video.length // 2
        return self.image(Image.fromarray(video.read([number])[0]))


def training_transform(
    source: DataSource, augment: Augment, image_size: tuple[int, int], sampling: Sampling | None, *, labels: bool
) -> Any:
    """From an image or a video of the source to what the device gets, with the recipe's randomness.

    Raises:
        UserError: when options are given that do nothing to clips.
    """
    if not is_video(source):
        return recipes.train_transform(augment, image_size)
    if isinstance(source.train, KeyFrames):
        assert sampling is not None
        return KeyFrameTransform(image_size, sampling, source.train.most_boxes, augment.resolved().hflip)
    if sampling is None:
        return FrameTransform(recipes.train_transform(augment, image_size), anywhere=True)
    size, options = _square(image_size), augment.resolved()
    refuse_unused(**{"augment.crop_pct": (augment.crop_pct is not None, SINGLE_IMAGES)})
    if not labels:
        _check_pretraining(augment)
    refuse_unused(**{"augment.interpolation": (augment.interpolation is not None and options.scale == 1, CROPS)})
    distorted = options.hflip or options.color_jitter or options.auto_augment != "none"
    whole = sampling.kind == "dense" and source.frames is not None and sampling.span >= source.frames
    if options.scale == 1 and whole and not distorted:
        return clip_transforms.eval_transform(size, sampling)  # bundled clips, whole and as they are
    if labels:
        return clip_transforms.finetune_transform(size, sampling, augment)
    if options.scale == 1:
        return clip_transforms.finetune_transform(size, sampling, Augment(recipe="none"))
    return clip_transforms.pretrain_transform(size, sampling)


def _check_pretraining(augment: Augment) -> None:
    """Refuse what pre-training on clips leaves out: its crop is fixed, and it neither flips nor recolours."""
    options, goes_with = augment.resolved(), "images, or clips with labels"
    refuse_unused(
        **{
            "augment.scale": (augment.scale not in (None, 1), f"{goes_with}; here 1 takes the centre crop"),
            "augment.hflip": (bool(augment.hflip), goes_with),
            "augment.color_jitter": (options.color_jitter > 0, goes_with),
            "augment.auto_augment": (options.auto_augment != "none", goes_with),
            "augment.interpolation": (augment.interpolation not in (None, "bilinear"), goes_with),
        }
    )


def validation_transform(
    source: DataSource,
    augment: Augment,
    image_size: tuple[int, int],
    sampling: Sampling | None,
    views: Views = Views(),
) -> Any:
    """The same without randomness: the centre crop, of a video's middle clip, or several views of it."""
    if not is_video(source):
        return recipes.eval_transform(augment, image_size)
    if isinstance(source.val, KeyFrames):
        assert sampling is not None
        return KeyFrameTransform(image_size, sampling, source.val.most_boxes)
    if sampling is None:
        return FrameTransform(recipes.eval_transform(augment, image_size), anywhere=False)
    if views.count > 1:
        return clip_transforms.views_transform(_square(image_size), sampling, views)
    return clip_transforms.eval_transform(_square(image_size), sampling)


def _square(size: tuple[int, int]) -> int:
    if size[0] != size[1]:
        raise UserError("Clips are cropped to squares", f"{size[0]}x{size[1]}", "Choose a square img_size")
    return size[0]
