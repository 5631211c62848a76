"""Images, videos and sounds that were named one by one, or by their folder, in that order and without labels."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from vitdistill.data.audio.files import given_sounds, list_sounds
from vitdistill.data.clips.files import VIDEOS, FileVideos
from vitdistill.data.clips.stream import require_av
from vitdistill.data.clips.video import Video
from vitdistill.data.folders import FileSamples, as_bytes, is_image, some
from vitdistill.data.images.folder import FORMATS, FolderImages
from vitdistill.data.media import is_video, walk
from vitdistill.data.samples import Transform, ViewOptions
from vitdistill.errors import UserError
from vitdistill.files import check_exist
from vitdistill.types import InputSpec

log = logging.getLogger(__name__)


class GivenFiles(FileSamples):
    """Images and videos, read and made ready as those of a data set are. Of a video, networks over images see the
    middle frame."""

    word: ClassVar[str] = "file"

    def __init__(self, names: np.ndarray) -> None:
        """
        Args:
            names: paths, bytes as the file system has them, (files,).
        """
        super().__init__(Path(), names)
        self._images, self._videos = FolderImages(Path(), names), FileVideos(Path(), names)
        for each in (self, self._images, self._videos):
            each.root = ""  # so that paths are as they were given

    def load(self, index: int) -> tuple[Any, int | None]:
        return (self._videos if is_clip(self.path(index)) else self._images).load(index)

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> "EitherTransform":
        still = self._images.transform(spec, options, train=train) if spec.frames is None else None
        return EitherTransform(still, self._videos.transform(spec, options, train=train))


@dataclass(frozen=True)
class EitherTransform:
    """The transform of images for images, that of videos for videos.

    Attributes:
        still: of images; None for networks over clips, to which no image is given.
        video: of videos.
    """

    still: Transform | None
    video: Transform

    @property
    def random(self) -> bool:
        return self.video.random

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.video.shape

    def __call__(self, sample: Any) -> Tensor:
        transform = self.video if isinstance(sample, Video) or self.still is None else self.still
        made = transform(sample)
        assert isinstance(made, Tensor)
        return made


def files_for(paths: Sequence[str], spec: InputSpec) -> FileSamples:
    """The files that were named, and those below the folders that were, as a network takes them.

    Args:
        paths: files and folders.
        spec: what the network takes.

    Raises:
        UserError: when one does not exist, or there is nothing to read, or a library for it is missing.
    """
    if not spec.sound:
        return given_files(paths, clips=spec.frames is not None)
    check_exist(paths)
    return given_sounds([file for path in paths for file in list_sounds(path)])


def given_files(paths: Sequence[str], *, clips: bool) -> GivenFiles:
    """The files that were named, and all images and videos at any depth below the folders that were.

    Files that are neither by their name are counted and named in one warning, if they lie in a folder; one that was
    named itself is taken for an image. Hidden files and folders are passed over.

    Args:
        paths: files and folders.
        clips: whether they are for a network over clips, which needs videos: files, or folders of frames.

    Raises:
        UserError: when one does not exist, or there is nothing to read; or PyAV is missing for a video file.
    """
    check_exist(paths)
    places = [Path(path).expanduser() for path in paths]
    names: list[str] = []
    left_out: list[str] = []
    for place in places:
        if place.is_dir():
            wanted, others = _below(place, clips)
            names += [os.path.join(place, name) for name in wanted]
            left_out += [os.path.join(place, name) for name in others]
        else:
            (left_out if clips and not is_video(str(place)) else names).append(str(place))
    wanted_word = "videos" if clips else "images or videos"
    if left_out:
        log.warning("Left out, since no %s (%d): %s", wanted_word, len(left_out), some(left_out))
    if not names:
        formats = VIDEOS.formats if clips else f"{FORMATS}; {VIDEOS.formats}"
        raise UserError(
            f"There must be {wanted_word}", f"none in {some(map(str, paths))}", formats[0].upper() + formats[1:]
        )
    if any(is_video(name) and not os.path.isdir(name) for name in names):
        require_av()  # here, as the loader would take its absence for unreadable files
    return GivenFiles(as_bytes(names))


def _below(place: Path, clips: bool) -> tuple[list[str], list[str]]:
    """What is read of a folder, and which files of it are left out; relative to it, in order.

    For networks over clips, a folder with several images and without videos is one video, whose frames these are.
    """
    wanted: list[str] = []
    others: list[str] = []
    frames = False  # whether images lie directly in the folder itself
    for below, folders, files in walk(place):
        files = [name for name in files if not name.startswith(".")]
        images, videos = [name for name in files if is_image(name)], [name for name in files if is_video(name)]
        frames |= bool(images) and not below
        if clips and below and len(images) > 1 and not videos:
            folders.clear()
            wanted.append(below)
            continue
        taken = set(videos if clips else images + videos)
        wanted += [os.path.join(below, name) for name in files if name in taken]
        others += [os.path.join(below, name) for name in files if name not in taken]
    return (["."], []) if clips and frames and not wanted else (wanted, others)


def is_clip(path: str) -> bool:
    """Whether a path names a video: a file, or a folder of frames."""
    return is_video(path) or os.path.isdir(path)
