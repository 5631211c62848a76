"""Key frames with boxes: one sample is a clip around one second of one video.

Whole frames are resized to the network's square, so that boxes, which are shares of width and height, stay where they
are. Most codes for AVA resize the shorter edge to 256 in place of that and keep the aspect ratio; a ViT with fixed
positions would see other positions than it was trained with.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import functional as tvf
from torchvision.transforms import v2

from vitdistill.data.actions.ava import KeyFrameName, Rows
from vitdistill.data.actions.files import FRAME_RATE
from vitdistill.data.clips.decode import VideoFile
from vitdistill.data.clips.frame_folder import FrameFolder
from vitdistill.data.clips.samples import STRIDE
from vitdistill.data.clips.sampling import Sampling
from vitdistill.data.clips.stream import require_av
from vitdistill.data.clips.video import Video
from vitdistill.data.folders import as_bytes, some
from vitdistill.data.images.recipes import Augment
from vitdistill.data.media import VIDEO_SUFFIXES
from vitdistill.data.samples import UNREADABLE, Samples, ViewOptions, digest_of, reason_of, refuse_several, refuse_sound
from vitdistill.errors import UserError, refuse_given
from vitdistill.types import InputSpec

LOOKED_AT = 8  # videos whose length is compared with the last second asked of them


@dataclass(frozen=True)
class Movies:
    """Where videos are, and how their time runs.

    Args:
        folder: holds `<video id>.mp4` (or with another suffix of videos), or a folder `<video id>/` of frames.
        start: second of the movie at which files and folders begin; AVA's annotated quarter of an hour begins at 900.
        frame_rate: frames per second of folders of frames; video files say theirs.
    """

    folder: Path
    start: float = 0.0
    frame_rate: float = FRAME_RATE

    def find(self, videos: Sequence[str]) -> list[str]:
        """The path of every video.

        Raises:
            UserError: when the folder or a video is missing, or PyAV for one that is a file.
        """
        if not self.folder.is_dir():
            raise UserError("--data must be an existing folder of videos", f"'{self.folder}'")
        there = {_lower_ending(entry.name): entry.name for entry in os.scandir(self.folder)}
        names = [
            next((there[n] for n in (v, *(f"{v}{end}" for end in VIDEO_SUFFIXES)) if n in there), None) for v in videos
        ]
        missing = [video for video, name in zip(videos, names, strict=True) if name is None]
        if missing:
            raise UserError(
                f"All annotated videos must be in {self.folder}",
                f"{len(missing)} of {len(videos)} missing: {some(missing)}",
                "A video is <video_id>.mp4 (or with another suffix of videos) or a folder <video_id> of frames",
            )
        paths = [os.path.join(self.folder, name) for name in names if name is not None]
        folders = [os.path.isdir(path) for path in paths]
        if not all(folders):
            require_av()  # here, as the loader would take its absence for unreadable files
        given = not any(folders) and self.frame_rate != FRAME_RATE
        refuse_given({"actions.frame_rate": given}, "on video files, which say their own")
        return paths


def _lower_ending(name: str) -> str:
    """`a.MP4` as `a.mp4`."""
    stem, ending = os.path.splitext(name)
    return stem + ending.lower() if ending.lower() in VIDEO_SUFFIXES else name


class KeyFrame(Video):
    """A video with one second of it picked out.

    Attributes:
        boxes: x1, y1, x2, y2 as shares of width and height.
        actions: which of the classes each box shows; None for boxes of a detector.
    """

    def __init__(
        self,
        path: str,
        second: int,
        movies: Movies,
        boxes: Float[np.ndarray, "boxes 4"],
        actions: Bool[np.ndarray, "boxes c"] | None,
    ) -> None:
        self.path, self.second, self.movies = path, second, movies
        self.boxes, self.actions = boxes, actions
        self._video = FrameFolder(path) if os.path.isdir(path) else VideoFile(path)

    @property
    def length(self) -> int:
        return self._video.length

    @property
    def number(self) -> int:
        """The frame at this second.

        Raises:
            OSError: when the video ends more than a second earlier.
        """
        seconds = self.second - self.movies.start
        if isinstance(self._video, VideoFile):
            rate, number = self._video.rate, self._video.number_at(seconds)
        else:
            rate, number = self.movies.frame_rate, round(seconds * self.movies.frame_rate)
        if number > self.length - 1 + rate:
            raise OSError(f"{self.path}: ends before second {self.second} of the movie")
        return min(number, self.length - 1)

    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        return self._video.read(frames, short_side)


class KeyFrames(Samples):
    """Key frames of one split, each a `KeyFrame` with its boxes.

    Everything is held in arrays, whose memory workers share after a fork.

    Attributes:
        frame: number of every key frame.
        offsets: boxes of key frame i are rows offsets[i] to offsets[i + 1] - 1 of `boxes`.
        boxes: of all key frames, without repeats within one.
        actions: which of the classes each box shows; None for boxes of a detector.
        classes: how many there are.
    """

    word: ClassVar[str] = "key frame"
    has_frames: ClassVar[bool] = True

    def __init__(
        self, rows: Rows, names: Sequence[KeyFrameName], movies: Movies, ids: Sequence[int], *, annotated: bool
    ) -> None:
        """
        Args:
            rows: at least one.
            names: of all key frames, in the order of their numbers.
            movies: where the videos are.
            ids: of the actions, in the order of the classes.
            annotated: whether the rows' actions are known.

        Raises:
            UserError: when a video is missing, or its time does not fit.
        """
        together = np.column_stack([rows.frame, rows.box])
        distinct, inverse = np.unique(together, axis=0, return_inverse=True)
        self.boxes = np.ascontiguousarray(distinct[:, 1:])
        self.frame, starts = np.unique(distinct[:, 0].astype(np.int64), return_index=True)
        self.offsets = np.append(starts, len(distinct)).astype(np.int64)
        self.classes = len(ids)
        self.actions: Bool[np.ndarray, "n c"] | None = None
        if annotated:
            self.actions = np.zeros((len(distinct), len(ids)), dtype=bool)
            self.actions[inverse.reshape(-1), np.searchsorted(ids, rows.action)] = True
        videos = list(dict.fromkeys(names[number][0] for number in self.frame.tolist()))
        place = {video: index for index, video in enumerate(videos)}
        self._video = np.array([place[names[number][0]] for number in self.frame.tolist()], dtype=np.int32)
        self._second = np.array([names[number][1] for number in self.frame.tolist()], dtype=np.int64)
        self._paths = as_bytes(movies.find(videos))
        self.movies = movies
        self._check_times()

    def _check_times(self) -> None:
        """Compare times with the start, and with the length of some videos."""
        if early := sorted(self._second[self._second < self.movies.start].tolist()):
            rule = f"No key frame may come before the start of the videos, {self.movies.start:g} s"
            raise UserError(rule, f"{early[0]} s", "Set --actions.start to the second at which they begin")
        for video in range(min(LOOKED_AT, len(self._paths))):
            of_video = np.flatnonzero(self._video == video)
            last = int(of_video[self._second[of_video].argmax()])
            frame = self.load(last)[0]
            try:
                length = frame.length
            except UNREADABLE as error:
                reason_of(error, frame.path)  # raises what is no fault of the file
                continue  # unreadable: the loader counts it
            try:
                _ = frame.number
            except OSError as error:
                reason_of(error, frame.path)
                raise UserError(
                    "Videos must last to their last key frame",
                    f"second {frame.second} of {frame.path}, which has {length} frames from second "
                    f"{self.movies.start:g} on",
                    "Set --actions.start to the second of the movie at which the files begin "
                    "(and --actions.frame_rate of frames)",
                ) from error

    def __len__(self) -> int:
        return len(self.frame)

    def load(self, index: int) -> tuple[KeyFrame, None]:
        rows = slice(*self.offsets[index : index + 2])
        actions = None if self.actions is None else self.actions[rows]
        path = os.fsdecode(bytes(self._paths[self._video[index]]))
        return KeyFrame(path, int(self._second[index]), self.movies, self.boxes[rows], actions), None

    def path(self, index: int) -> str:
        return f"{os.fsdecode(bytes(self._paths[self._video[index]]))} at {self._second[index]} s"

    @property
    def labels(self) -> None:
        """What key frames show is with their boxes."""
        return None

    def digest(self) -> str:
        """Of the names of the videos, the key frames, and their boxes and actions."""
        videos = [os.path.basename(bytes(path)) for path in self._paths]
        time = np.array([self.movies.start, self.movies.frame_rate])
        rows = (self.boxes, self.offsets, np.array(0 if self.actions is None else self.actions))
        arrays = (self._video.astype("<i8"), self._second, time, *rows)
        return digest_of(b"\0".join(videos), *(array.tobytes() for array in arrays))

    @property
    def most_boxes(self) -> int:
        """Boxes of the key frame that has most."""
        return int(np.diff(self.offsets).max())

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> "KeyFrameTransform":
        """Whole frames, resized to the network's size; in training flipped with their boxes."""
        refuse_sound(spec, options, self.word)
        refuse_several(options)
        if spec.frames is None:
            raise UserError("Key frames need a network over clips", "one over single images")
        if spec.shape[0] != 3:
            raise UserError("Clips are read as RGB, for networks with 3 channels", f"in_chans {spec.shape[0]}")
        if train:
            _check_augment(options.augment)
        given = {
            "clips": (options.clips, options.crops) != (1, 1),
            "sampling": options.sampling not in (None, "dense"),
            "crop_pct": not train and options.augment.crop_pct is not None,
        }
        refuse_given(given, "on key frames")
        sampling = Sampling(frames=spec.frames, stride=STRIDE if options.stride is None else options.stride)
        hflip = options.augment.resolved().hflip if train else 0.0
        return KeyFrameTransform(spec.size, sampling, self.most_boxes, hflip)

    def preprocessing(self, spec: InputSpec, options: ViewOptions) -> dict[str, Any]:
        stride = STRIDE if options.stride is None else options.stride
        clips = {"frames": spec.frames, "sampling": "dense", "stride": stride}
        resized = {"crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "squash"}
        return {**super().preprocessing(spec, options), **clips, **resized}


def _check_augment(augment: Augment) -> None:
    """Refuse what would move pixels without their boxes, or mix the actions of two clips."""
    options = augment.resolved()
    unknown = {
        "scale": options.scale != 1,
        "auto_augment": options.auto_augment != "none",
        "color_jitter": options.color_jitter > 0,
        "mixup or cutmix": options.mixes or augment.mixup_prob is not None,
        "smoothing": options.smoothing > 0,
        "crop_pct": augment.crop_pct is not None,
        "interpolation": augment.interpolation is not None,
    }
    if refused := [name for name, is_given in unknown.items() if is_given]:
        raise UserError(
            "Clips with boxes take the augmentations hflip, erasing and repeats only",
            ", ".join(refused),
            "Choose --augment.recipe none and what you want of these",
        )


@dataclass(frozen=True)
class KeyFrameTransform:
    """From a key frame to its clip and its boxes.

    Attributes:
        size: height and width of the clip in pixels.
        sampling: frames and stride; the key frame is frame number `frames // 2`.
        boxes: to which all key frames are padded.
        hflip: probability of a horizontal flip of frames and boxes.
    """

    size: tuple[int, int]
    sampling: Sampling
    boxes: int
    hflip: float = 0.0

    @property
    def random(self) -> bool:
        return self.hflip > 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of every clip."""
        return (3, self.sampling.frames, *self.size)

    def __call__(self, frame: KeyFrame) -> tuple[UInt8[Tensor, "3 t height width"], Float32[Tensor, "boxes values"]]:
        """
        Returns:
            The clip, and a row per box: x1, y1, x2, y2 as shares of width and height, and after them 0 or 1 for every
            class where the actions are known. Rows beyond the key frame's boxes are NaN.
        """
        numbers = around(frame.number, self.sampling, frame.length)
        clip = torch.from_numpy(frame.read(numbers, min(self.size))).permute(3, 0, 1, 2)
        if clip.shape[-2:] != self.size:
            clip = tvf.resize(clip.transpose(0, 1), list(self.size), antialias=True).transpose(0, 1)
        target = self._target(frame)
        if self.random:
            # Boxes are shares of width and height, so for them the frame is one by one.
            boxes = tv_tensors.BoundingBoxes(target[:, :4], format="XYXY", canvas_size=(1, 1))
            flip = v2.RandomHorizontalFlip(self.hflip)
            video, boxes = flip(tv_tensors.Video(clip.transpose(0, 1)), boxes)
            clip, target[:, :4] = video.as_subclass(Tensor).transpose(0, 1), boxes.as_subclass(Tensor)
        return clip.contiguous(), target

    def _target(self, frame: KeyFrame) -> Float32[Tensor, "boxes values"]:
        columns = [frame.boxes] if frame.actions is None else [frame.boxes, frame.actions]
        rows = np.concatenate(columns, axis=1).astype(np.float32)
        target = torch.full((self.boxes, rows.shape[1]), torch.nan)
        target[: len(rows)] = torch.from_numpy(rows)
        return target


def around(number: int, sampling: Sampling, length: int) -> list[int]:
    """Frame numbers of the clip around a frame; beyond the ends of the video its first or last frame is repeated.

    Args:
        number: the key frame; it is frame number `frames // 2` of the clip.
        sampling: frames and stride.
        length: frames of the video.
    """
    steps = np.arange(sampling.frames) - sampling.frames // 2
    return (number + steps * sampling.stride).clip(0, length - 1).tolist()
