"""Clips: which frames of a video are taken, in training and in testing.

Draws come from torch's CPU generator, which the loader seeds per sample.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from vitdistill.errors import UserError, near

Kind = Literal["dense", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video make a clip.

    Dense: every `stride`-th frame of a window of frames * stride, which starts anywhere in training. Uniform: one frame
    of each of `frames` equal segments of the whole video, anywhere in its segment in training (TSN).

    Args:
        frames: frames of a clip.
        stride: frames from one to the next in dense sampling; uniform sampling does not use it.
        kind: `dense` (Kinetics, UCF101, HMDB51) or `uniform` (Something-Something).
    """

    frames: int = 16
    stride: int = 4
    kind: Kind = "dense"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError("Sampling must be dense or uniform", repr(self.kind), near(self.kind, get_args(Kind)))
        if self.frames < 1 or self.stride < 1:
            raise UserError(
                "A clip needs at least one frame and a stride of at least one", f"{self.frames} x {self.stride}"
            )

    @property
    def span(self) -> int:
        """Frames of the window of dense sampling."""
        return self.frames * self.stride

    @property
    def needed(self) -> int:
        """Frames that a video must have for a clip without repeated frames."""
        return (self.frames - 1) * self.stride + 1 if self.kind == "dense" else self.frames

    def train(self, length: int) -> list[int]:
        """Frame numbers of a random clip; draws from torch's CPU generator.

        Args:
            length: frames of the video. One shorter than the window is taken whole and its last frame repeated.
        """
        if self.kind == "dense":
            return self._window(int(torch.randint(self._last_start(length) + 1, ())), length)
        return self._segments(torch.rand(self.frames).double().numpy(), length)

    def test(self, length: int, clip: int = 0, clips: int = 1) -> list[int]:
        """Frame numbers of one of several test clips.

        Dense: starts spread evenly from the first to the last possible one; a single clip is the centre. Uniform: a
        single clip takes the middle of every segment, clip c of several the place c / clips in it (TSN, VideoMAE).

        Args:
            length: frames of the video.
            clip: from 0 to `clips` - 1.
            clips: how many there are.
        """
        if self.kind == "uniform":
            return self._segments(np.full(self.frames, 0.5 if clips == 1 else clip / clips), length)
        last = self._last_start(length)
        return self._window(last // 2 if clips == 1 else round(last * clip / (clips - 1)), length)

    def _last_start(self, length: int) -> int:
        return max(0, length - self.span)

    def _window(self, start: int, length: int) -> list[int]:
        return np.minimum(start + np.arange(self.frames) * self.stride, length - 1).tolist()

    def _segments(self, places: np.ndarray, length: int) -> list[int]:
        """Frames at places in 0..1 of every segment."""
        numbers = np.floor((np.arange(self.frames) + places) * length / self.frames).astype(np.int64)
        return numbers.clip(0, length - 1).tolist()


@dataclass(frozen=True)
class Views:
    """Test views of a video: evenly spaced clips, and in each of them crops along the longer edge.

    Args:
        clips: test clips.
        crops: 1 (centre) or 3 (both ends and the centre).

    Raises:
        UserError: when there is no view, or another number of crops.
    """

    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops not in (1, 3):
            raise UserError(
                "Test views are at least one clip, and 1 or 3 crops", f"{self.clips} clips, {self.crops} crops"
            )

    @property
    def count(self) -> int:
        """Views of each video."""
        return self.clips * self.crops
