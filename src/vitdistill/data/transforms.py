"""Which transforms a source needs: of images or of videos, with labels or without."""

from typing import Any

from vitdistill.data import clips, recipes
from vitdistill.data.clips import Sampling
from vitdistill.data.recipes import Augment
from vitdistill.data.source import DataSource
from vitdistill.data.video import VideoSet
from vitdistill.errors import UserError


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
    """How clips are taken from videos for a network; None for images.

    Raises:
        UserError: when a network over clips is given images, or the reverse.
    """
    frames = getattr(network, "frames", None)
    if (frames is not None) != is_video(source):
        sees, holds = ("clips", "images") if frames is not None else ("images", "videos")
        raise UserError(
            f"The network must see what the data holds; {network.name} sees {sees} and {source.name} holds {holds}"
        )
    return None if frames is None else sampling_of(source, frames, stride, kind)


def training_transform(
    source: DataSource, augment: Augment, image_size: tuple[int, int], sampling: Sampling | None, *, labels: bool
) -> Any:
    """From an image or a video of the source to what the device gets, with the recipe's randomness."""
    if not is_video(source):
        return recipes.train_transform(augment, image_size)
    assert sampling is not None
    size, options = _square(image_size), augment.resolved()
    if options.scale == 1 and not options.hflip and options.auto_augment == "none" and source.frames:
        return clips.eval_transform(size, sampling)  # bundled clips, whole and as they are
    if labels:
        return clips.finetune_transform(size, sampling, augment)
    return clips.pretrain_transform(size, sampling)


def validation_transform(
    source: DataSource, augment: Augment, image_size: tuple[int, int], sampling: Sampling | None
) -> Any:
    """The same without randomness: the centre crop, of a video's middle clip."""
    if not is_video(source):
        return recipes.eval_transform(augment, image_size)
    assert sampling is not None
    return clips.eval_transform(_square(image_size), sampling)


def _square(size: tuple[int, int]) -> int:
    if size[0] != size[1]:
        raise UserError("Clips are cropped to squares", f"{size[0]}x{size[1]}", "Choose a square img_size")
    return size[0]
