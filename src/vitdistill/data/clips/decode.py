"""Pictures out of video files (PyAV), reading and decoding as little as the request allows.

How a file is read: seek to the keyframe before the first frame asked for, take compressed packets until the last one
(without decoding), see from their timestamps which pictures are the nearest to those asked for, and decode only up to
these: what follows the last wanted picture of a group of pictures is dropped, and pictures in between that no other
picture refers to are skipped. A long gap that holds a keyframe is jumped over with another seek.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vitdistill.data.clips.packets import nearest_times, needed_runs
from vitdistill.data.clips.stream import Stream, require_av
from vitdistill.data.clips.video import Picture, Video, distinct, scaled

logger = logging.getLogger(__name__)

END_SECONDS = 1.0  # a video that ends this long before a frame asked for is worth a warning


class VideoFile(Video):
    """A video file, decoded by PyAV in one thread.

    Frame k is the picture nearest to the time k / (mean frame rate), so files of variable frame rate are sampled evenly
    in time. Rotation that the file asks for is applied; sound is not read.

    What is damaged: pictures that do not decode are replaced by the nearest decoded one, and frames beyond the
    end of a truncated file by its last one (a warning says so, once per file), as long as any picture decodes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Args:
            path: the file; opened when it is first needed.

        Raises:
            UserError: when PyAV is not installed.
        """
        require_av()
        self.path = os.fspath(path)
        self._opened: Stream | None = None

    @property
    def length(self) -> int:
        """Frames in it, as its header says, else its duration times its rate, else counted.

        Raises:
            OSError: when the file is no readable video or has no picture stream.
        """
        return self._open().length

    @property
    def short_side(self) -> int:
        """Shorter edge in pixels, of the file.

        Raises:
            OSError: as `length`.
        """
        return self._open().short_side

    @property
    def rate(self) -> float:
        """Frames per second.

        Raises:
            OSError: as `length`.
        """
        stream = self._open()
        return float(stream.per_second / stream.ticks)

    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        """Decode some frames, each once, in the order asked for; `short_side` is reached in one bilinear resize.

        Args:
            frames: numbers from 0 to `length` - 1; repeats are allowed.
            short_side: resize to this shorter edge in pixels; None keeps the size.

        Raises:
            OSError: when the file is no readable video, or no picture could be decoded.
            IndexError: when a number is out of range, or there is none.
        """
        stream = self._open()
        numbers, places = distinct(frames, stream.length, self.path)
        self._opened = None  # the next reading starts with a fresh decoder
        with _unreadable(self.path), stream:
            pictures = Decoder(stream, short_side).pictures(numbers)
        return np.stack([pictures[place] for place in places])

    def _open(self) -> Stream:
        if self._opened is None:
            with _unreadable(self.path):
                self._opened = Stream(self.path)
        return self._opened


class Decoder:
    """Pictures out of the packets of an open file."""

    def __init__(self, stream: Stream, short_side: int | None) -> None:
        """
        Args:
            stream: the file.
            short_side: shorter edge of the pictures, in pixels; None keeps the size.
        """
        self.stream, self.resize = stream, _Resize(short_side)

    def pictures(self, numbers: list[int]) -> list[Picture]:
        """The pictures of some frames.

        Args:
            numbers: ascending, without repeats.
        """
        stream = self.stream
        stamps = [stream.start + round(number * stream.ticks) for number in numbers]
        pictures: list[Picture] = []
        while len(pictures) < len(stamps):
            packets = stream.packets_from(stamps[len(pictures)])
            if packets is None:
                return self._in_order(numbers)
            first = len(pictures)
            group = stream.until_seek_pays(stamps[first:])
            packets += stream.packets_until(group[-1], packets)
            pictures += self._nearest(group, packets, pictures[-1:])
        return pictures

    def _nearest(self, stamps: list[int], packets: list[Any], before: list[Picture]) -> list[Picture]:
        """The pictures nearest to some timestamps; `before` holds the one to repeat when there is none."""
        times = np.unique([packet.pts for packet in packets if packet.pts is not None and not packet.is_discard])
        wanted = nearest_times(times, stamps) if len(times) else []
        found = self._decoded(packets, set(wanted))
        if not len(times) or stamps[-1] - times[-1] > END_SECONDS * self.stream.per_second:
            _warn_of_early_end(self.stream.path)
        if not found:
            if not before:
                raise OSError(f"{self.stream.path}: no picture could be decoded (truncated or damaged)")
            return before * len(stamps)
        if not wanted:
            return before * len(stamps)
        known = np.array(sorted(found))
        return [found[time] for time in nearest_times(known, wanted)]

    def _decoded(self, packets: list[Any], wanted: set[int]) -> dict[int, Picture]:
        """The wanted pictures that decode; where none does, the last one that does."""
        found: dict[int, Picture] = {}
        last: Any = None
        for run in needed_runs(packets, wanted):
            for packet in [*run, None]:
                # Pictures that nothing refers to and nobody asked for need no decoding.
                if packet is not None:
                    self.stream.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in self._decode(packet):
                    last = frame if frame.pts is not None else last
                    if frame.pts in wanted and frame.pts not in found:
                        found[frame.pts] = self.resize(frame)
            self.stream.codec.flush_buffers()
        if not found and last is not None:
            found[last.pts] = self.resize(last)
        return found

    def _decode(self, packet: Any) -> list[Any]:
        """The frames that a packet (None: the end) brings; none where it is damaged."""
        av = require_av()
        try:
            return self.stream.codec.decode(packet)
        except av.FFmpegError:
            return []

    def _in_order(self, numbers: list[int]) -> list[Picture]:
        """The pictures by counting from the start: for files without timestamps."""
        self.stream.reopen()
        pictures: list[Picture] = []
        count, last = 0, None
        for packet in [*self.stream.demux(), None]:
            for frame in self._decode(packet):
                if len(pictures) < len(numbers) and count == numbers[len(pictures)]:
                    pictures.append(self.resize(frame))
                count, last = count + 1, frame
            if len(pictures) == len(numbers):
                return pictures
        if last is None:
            raise OSError(f"{self.stream.path}: no picture could be decoded (truncated or damaged)")
        _warn_of_early_end(self.stream.path)
        return pictures + [self.resize(last)] * (len(numbers) - len(pictures))


class _Resize:
    """From a decoded frame to RGB: colour conversion, resize and rotation; all frames get the size of the first."""

    def __init__(self, short_side: int | None) -> None:
        from av.video.reformatter import VideoReformatter

        self.short_side = short_side
        self.size: tuple[int, int] | None = None
        self.reformatter = VideoReformatter()  # one for all frames keeps its tables

    def __call__(self, frame: Any) -> Picture:
        self.size = self.size or scaled(frame.width, frame.height, self.short_side)
        width, height = self.size
        rgb = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BILINEAR", threads=1
        )
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)


@contextmanager
def _unreadable(path: str) -> Iterator[None]:
    """Turn what PyAV raises into an OSError that names the file, which the loader skips and counts."""
    av = require_av()
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(f"{path}: no readable video ({error.strerror or error})") from error


@lru_cache(maxsize=1024)
def _warn_of_early_end(path: str) -> None:
    logger.warning("Video ends before its header says, its last frame is repeated: %s", path)
