"""From a video to a clip: decoding at the right size, crops, flips, colours, test views.

Transforms run from a `Video` to uint8 (3, t, height, width) and draw from `random`, `numpy.random` and torch's CPU
generator, which the loader seeds per sample. Erasing and mixup run on the device.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tvf

from vitdistill.data.clips.sampling import Sampling, Views
from vitdistill.data.clips.video import Video
from vitdistill.data.images.augment import Augment, ResolvedAugment
from vitdistill.data.images.recipes import mend_posterize
from vitdistill.errors import UserError

Clip = UInt8[Tensor, "3 t height width"]
SquareClip = UInt8[Tensor, "3 t size size"]

CROP_SCALES = (1.0, 0.875, 0.75, 0.66)  # of multi-scale cropping, TSN and VideoMAE
# Shorter edge to decode at, per edge of the clip. Pre-training: no crop is enlarged. Fine-tuning: as the authors of
# VideoMAE and MVD, 256 for 224; random resized crops of less than that are enlarged whatever one does.
PRETRAIN_SHORT_SIDE = 1 / min(CROP_SCALES)
FINETUNE_SHORT_SIDE = 256 / 224
RESIZE_ONCE = 1.25  # a video at most so much larger is decoded as it is, so that the crop's resize is the only one


@dataclass(frozen=True)
class ClipTransform:
    """From a video to a clip; normalisation happens on the device.

    Attributes:
        steps: what runs.
        random: whether the outcome depends on the state of the random number generators.
        shape: of every clip: (3, frames, height, width).
    """

    steps: Callable[[Video], Tensor]
    random: bool
    shape: tuple[int, int, int, int]

    def __call__(self, video: Video) -> SquareClip:
        return self.steps(video)


def pretrain_transform(size: int, sampling: Sampling) -> ClipTransform:
    """The transform of VideoMAE's and MVD's pre-training: a multi-scale crop; no flip, no colour.

    Frames are decoded at a shorter edge of size / 0.66, so that no crop is enlarged, or as they are if not much larger.

    Args:
        size: height and width of the clip in pixels.
        sampling: which frames.
    """
    return ClipTransform(partial(_pretrain, size=size, sampling=sampling), True, (3, sampling.frames, size, size))


def finetune_transform(size: int, sampling: Sampling, augment: Augment) -> ClipTransform:
    """The transform of fine-tuning: random resized crop (ratio 3/4 to 4/3), flip, then timm's policy or colour jitter.

    All frames of a clip get the same crop, flip and colour operations. Frames are decoded at a shorter edge of
    256 / 224 * size, or as they are if not much larger. The policy runs after the crop, as for images.

    Args:
        size: height and width of the clip in pixels.
        sampling: which frames.
        augment: the recipe; what runs here is `scale`, `hflip`, `auto_augment`, `color_jitter` and `interpolation`.
            `scale` 1 takes the centre crop of `eval_transform` in place of the random crop.

    Raises:
        UserError: when an option is out of range, or the interpolation is not for video.
    """
    options = augment.resolved()
    if options.interpolation not in ("bilinear", "bicubic", "nearest"):
        raise UserError("Clips are resized by bilinear, bicubic or nearest interpolation", options.interpolation)
    steps = partial(_finetune, size=size, sampling=sampling, options=options, distort=_distortion(options, size))
    return ClipTransform(steps, True, (3, sampling.frames, size, size))


def eval_transform(size: int, sampling: Sampling) -> ClipTransform:
    """The transform of validation: the middle clip, its shorter edge resized to `size` while decoding, centre crop.

    Args:
        size: height and width of the clip in pixels.
        sampling: which frames.
    """
    return ClipTransform(partial(_eval, size=size, sampling=sampling), False, (3, sampling.frames, size, size))


def views_transform(size: int, sampling: Sampling, views: Views) -> ClipTransform:
    """The transform of testing: all views of a video, one behind the other, (3, views * frames, size, size).

    Args:
        size: height and width of a view in pixels.
        sampling: which frames.
        views: clips and crops.
    """
    steps = partial(_views, size=size, sampling=sampling, views=views)
    return ClipTransform(steps, False, (3, views.count * sampling.frames, size, size))


def cut_views(clips: Shaped[Tensor, "b 3 vt size size"], views: Views) -> Shaped[Tensor, "bv 3 t size size"]:
    """Single views out of what `views_transform` makes: those of the first video first.

    Args:
        clips: a batch of videos.
        views: clips and crops.
    """
    return clips.unflatten(2, (views.count, -1)).transpose(1, 2).flatten(0, 1)


def views_of(video: Video, size: int, sampling: Sampling, views: Views) -> UInt8[Tensor, "views 3 t size size"]:
    """All test views of a video.

    Every frame is decoded once, however many views show it.

    Args:
        video: the video.
        size: height and width of a view in pixels; the shorter edge of the frames.
        sampling: which frames.
        views: clips and crops.

    Returns:
        (clips * crops, 3, frames, size, size), all crops of the first clip first.
    """
    clips, crops = views.clips, views.crops
    length = _length(video)
    numbers = [number for clip in range(clips) for number in sampling.test(length, clip, clips)]
    frames = _channels_first(video.read(numbers, size)).unflatten(1, (clips, sampling.frames))
    height, width = frames.shape[-2:]
    places = (0.5,) if crops == 1 else (0.0, 0.5, 1.0)
    cropped = [
        frames[..., top : top + size, left : left + size]
        for place in places
        for top, left in [(round((height - size) * place), round((width - size) * place))]
    ]
    # (crops, 3, clips, t, h, w) to (clips, crops, 3, t, h, w)
    return torch.stack(cropped).permute(2, 0, 1, 3, 4, 5).flatten(0, 1).contiguous()


# --- the steps -----------------------------------------------------------------------------------------------------


def _pretrain(video: Video, *, size: int, sampling: Sampling) -> Tensor:
    frames = _random_clip(video, sampling, math.ceil(size * PRETRAIN_SHORT_SIDE))
    top, left, height, width = multi_scale_crop(frames.shape[-2], frames.shape[-1])
    return _crop_and_resize(frames, (top, left, height, width), size, "bilinear").contiguous()


def _finetune(
    video: Video, *, size: int, sampling: Sampling, options: ResolvedAugment, distort: Callable[[Any], Any] | None
) -> Tensor:
    if options.scale == 1:  # the centre crop of validation in place of the random crop
        frames = _centre(_channels_first(video.read(sampling.train(_length(video)), size)), size)
    else:
        frames = _random_clip(video, sampling, round(size * FINETUNE_SHORT_SIDE))
        top, left, height, width = RandomResizedCrop.get_params(frames, [options.scale, 1.0], [3 / 4, 4 / 3])
        frames = _crop_and_resize(frames, (top, left, height, width), size, options.interpolation)
    if torch.rand(()) < options.hflip:
        frames = frames.flip(-1)
    return (frames if distort is None else _distort_alike(frames, distort)).contiguous()


def _views(video: Video, *, size: int, sampling: Sampling, views: Views) -> Tensor:
    return views_of(video, size, sampling, views).transpose(0, 1).flatten(1, 2).contiguous()


def _eval(video: Video, *, size: int, sampling: Sampling) -> Tensor:
    frames = _channels_first(video.read(sampling.test(_length(video)), size))
    return _centre(frames, size).contiguous()


def multi_scale_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """A random crop of TSN (Wang et al., 2016; `GroupMultiScaleCrop`, max distort 1, more fixed crops).

    Height and width are shares (`CROP_SCALES`) of the shorter edge, neighbours in that list at most; the place is one
    of 13: corners, centre, middles of the edges, and halfway from the centre to the corners. Draws from `random`.

    Args:
        height: of the frames in pixels.
        width: of the frames in pixels.

    Returns:
        Top, left, height and width in pixels.
    """
    edges = [max(1, int(min(height, width) * scale)) for scale in CROP_SCALES]
    pairs = [(edges[i], edges[j]) for i, j in product(range(len(edges)), repeat=2) if abs(i - j) <= 1]
    crop_height, crop_width = random.choice(pairs)
    # In quarters of the way: even ones make a 3 x 3 grid, odd ones the four places halfway.
    row, column = random.choice([*product((0, 2, 4), repeat=2), *product((1, 3), repeat=2)])
    return row * ((height - crop_height) // 4), column * ((width - crop_width) // 4), crop_height, crop_width


def _random_clip(video: Video, sampling: Sampling, short_side: int) -> Clip:
    """A random clip for random crops: at the given shorter edge, or as it is where that is not much larger."""
    numbers = sampling.train(_length(video))
    # A video that knows its size before decoding says so; one of another kind is resized in any case.
    native = getattr(video, "short_side", None)
    as_is = native is not None and native <= short_side * RESIZE_ONCE
    return _channels_first(video.read(numbers, None if as_is else short_side))


def _length(video: Video) -> int:
    """Frames of a video.

    Raises:
        ValueError: when there are none; the loader takes the video as unreadable.
    """
    if video.length < 1:
        raise ValueError("a video without frames")
    return video.length


def _channels_first(frames: UInt8[np.ndarray, "t height width 3"]) -> Clip:
    return torch.from_numpy(frames).permute(3, 0, 1, 2)


def _crop_and_resize(frames: Clip, box: tuple[int, int, int, int], size: int, interpolation: str) -> SquareClip:
    """Crop (top, left, height, width) and resize to a square."""
    top, left, height, width = box
    mode = tvf.InterpolationMode(interpolation)
    cropped = frames[..., top : top + height, left : left + width].transpose(0, 1)
    return tvf.resize(cropped, [size, size], mode, antialias=True).transpose(0, 1)


def _centre(frames: Clip, size: int) -> SquareClip:
    top, left = ((edge - size) // 2 for edge in frames.shape[-2:])
    return frames[..., top : top + size, left : left + size]


def _distortion(options: ResolvedAugment, size: int) -> Callable[[Image.Image], Image.Image] | None:
    """What timm does to the colours and shapes of an image after the crop; None when nothing is asked for."""
    from timm.data import create_transform

    policy = None if options.auto_augment == "none" else options.auto_augment
    if policy is None and not options.color_jitter:
        return None
    _, distort, _ = create_transform(
        size,
        is_training=True,
        use_prefetcher=True,
        separate=True,
        color_jitter=options.color_jitter,
        auto_augment=policy,
        interpolation=options.interpolation,
    )
    for transform in distort.transforms:
        mend_posterize(transform)
    return distort


def _distort_alike(frames: Clip, distort: Callable[[Any], Any]) -> Clip:
    """Apply a random image transform to all frames with the same draws."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    images = []
    for frame in frames.permute(1, 2, 3, 0).contiguous().numpy():
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        images.append(np.asarray(distort(Image.fromarray(frame))))
    return _channels_first(np.stack(images))
