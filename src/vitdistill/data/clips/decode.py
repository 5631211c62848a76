"""Pictures out of video files (PyAV), reading and decoding as little as the request allows.

How a file is read: its index (`index.py`) says which timestamps the pictures have that are asked for. Seek to the
keyframe before the first of them, take compressed packets until the last one (without decoding), and decode only up to
these: what follows the last wanted picture of a group of pictures is dropped, and pictures in between that no other
picture refers to are skipped. A long gap that holds a keyframe is jumped over with another seek. What is not found that
way, and files whose timestamps cannot be trusted, are decoded from the start.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vitdistill.data.clips.index import Index, index_of
from vitdistill.data.clips.orientation import as_shown, square_pixels
from vitdistill.data.clips.packets import needed_runs
from vitdistill.data.clips.stream import Stream, require_av
from vitdistill.data.clips.video import Picture, Video, distinct, scaled

logger = logging.getLogger(__name__)


class VideoFile(Video):
    """A video file, decoded by PyAV in one thread.

    Frame k is the k-th picture that decoding the file from its start gives, as players show it: cut by edit lists,
    turned, mirrored and with square pixels. Sound, cover pictures and further picture streams are not read.

    What is damaged: pictures that do not decode are replaced by the nearest decoded one (a warning says so, once per
    file), as long as half of those asked for do.
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
        self._index: Index | None = None

    @property
    def length(self) -> int:
        """Pictures in it: counted, not as its header says.

        Raises:
            OSError: when the file is no readable video or has no picture stream.
        """
        return self._pictures().length

    @property
    def short_side(self) -> int:
        """Shorter edge of the pictures in (square) pixels.

        Raises:
            OSError: as `length`.
        """
        return self._open().short_side

    @property
    def rate(self) -> float:
        """Frames per second, on average.

        Raises:
            OSError: as `length`.
        """
        stream, index = self._open(), self._pictures()
        if index.times is None or index.times[-1] == index.times[0]:
            return float(stream.rate)
        return float((index.length - 1) * stream.per_second / int(index.times[-1] - index.times[0]))

    def number_at(self, second: float) -> int:
        """The frame that is shown nearest to a time.

        Args:
            second: after the first frame. Behind the last frame, numbers go on at the mean rate.

        Raises:
            OSError: as `length`.
        """
        stream, times = self._open(), self._pictures().times
        if times is None:
            return round(second * self.rate)
        wanted = int(times[0]) + second * float(stream.per_second)
        if wanted > times[-1]:
            return len(times) - 1 + round((wanted - int(times[-1])) / float(stream.per_second) * self.rate)
        return int(np.abs(times - wanted).argmin())

    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        """Decode some frames, each once, in the order asked for; `short_side` is reached in one bilinear resize.

        Args:
            frames: numbers from 0 to `length` - 1; repeats are allowed.
            short_side: resize to this shorter edge in pixels; None keeps the size.

        Raises:
            OSError: when the file is no readable video, or more than half of the pictures do not decode.
            IndexError: when a number is out of range, or there is none.
        """
        stream, index = self._open(), self._pictures()
        numbers, places = distinct(frames, index.length, self.path)
        self._opened = None  # the next reading starts with a fresh decoder
        with _unreadable(self.path), stream:
            pictures = Decoder(stream, index, short_side).pictures(numbers)
        return np.stack([pictures[place] for place in places])

    def _open(self) -> Stream:
        if self._opened is None:
            with _unreadable(self.path):
                self._opened = Stream(self.path)
        return self._opened

    def _pictures(self) -> Index:
        if self._index is None:
            stream = self._open()
            with _unreadable(self.path):
                self._index = index_of(stream)
            if self._index.missing:
                there, missing = self._index.length, self._index.missing
                _warn(self.path, f"truncated, {there} of its {there + missing} pictures are there")
        return self._index


class Decoder:
    """Pictures out of the packets of an open file."""

    def __init__(self, stream: Stream, index: Index, short_side: int | None) -> None:
        """
        Args:
            stream: the file.
            index: of it.
            short_side: shorter edge of the pictures, in pixels; None keeps the size.
        """
        self.stream, self.index, self.render = stream, index, _Renderer(stream, short_side)

    def pictures(self, numbers: list[int]) -> list[Picture]:
        """The pictures of some frames.

        Args:
            numbers: ascending, without repeats.

        Raises:
            OSError: when more than half of them do not decode.
        """
        found = {} if self.index.doubt else self._by_seeking(numbers)
        if len(found) < len(numbers):
            found = self._from_the_start(numbers)
        if lacking := len(numbers) - len(found):
            if not found:
                raise OSError(f"{self.stream.path}: no picture could be decoded (truncated or damaged)")
            what = f"{lacking} of {len(numbers)} pictures do not decode"
            if 2 * lacking > len(numbers):
                raise OSError(f"{self.stream.path}: {what} (damaged)")
            _warn(self.stream.path, f"damaged, {what}; their neighbours are shown in their place")
        known = np.array(sorted(found))
        return [found[int(known[np.abs(known - number).argmin()])] for number in numbers]

    def _by_seeking(self, numbers: list[int]) -> dict[int, Picture]:
        """The pictures by their timestamps, as far as they decode."""
        assert self.index.times is not None
        stamps: list[int] = self.index.times[numbers].tolist()
        found: dict[int, Picture] = {}
        done = 0
        while done < len(stamps):
            packets = self.stream.packets_from(stamps[done], int(self.index.times[0]))
            if packets is None:
                break
            group = self.stream.until_seek_pays(stamps[done:])
            packets += self.stream.packets_until(group[-1], packets)
            found |= self._decoded(packets, set(group))
            done += len(group)
        return {number: found[stamp] for number, stamp in zip(numbers, stamps, strict=True) if stamp in found}

    def _decoded(self, packets: list[Any], wanted: set[int]) -> dict[int, Picture]:
        """The wanted pictures that decode, by their timestamps."""
        found: dict[int, Picture] = {}
        for run in needed_runs(packets, wanted):
            for packet in [*run, None]:
                # Pictures that nothing refers to and nobody asked for need no decoding.
                if packet is not None:
                    self.stream.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in self.stream.decode(packet):
                    if frame.pts in wanted and not frame.is_corrupt:
                        found[frame.pts] = self.render(frame)
            self.stream.codec.flush_buffers()
        return found

    def _from_the_start(self, numbers: list[int]) -> dict[int, Picture]:
        """The pictures by decoding the file from its start, without skipping any, as far as they decode."""
        times = self.index.times
        number_of = (
            {} if times is None or self.index.doubt else dict(zip(times[numbers].tolist(), numbers, strict=True))
        )
        wanted, found = set(numbers), {}
        for count, frame in enumerate(self.stream.frames()):
            number = number_of.get(frame.pts) if number_of else count
            if number in wanted and number not in found:
                found[number] = self.render(frame)
                if len(found) == len(wanted):
                    break
        return found


class _Renderer:
    """From a decoded frame to what a player shows in RGB; all frames get the size of the first."""

    def __init__(self, stream: Stream, short_side: int | None) -> None:
        from av.video.reformatter import VideoReformatter

        self.pixel, self.short_side = stream.pixel, short_side
        self.size: tuple[int, int] | None = None
        self.reformatter = VideoReformatter()  # one for all frames keeps its tables

    def __call__(self, frame: Any) -> Picture:
        if self.size is None:
            self.size = scaled(*square_pixels(frame.width, frame.height, self.pixel), self.short_side)
        width, height = self.size
        rgb = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BILINEAR", threads=1
        )
        return as_shown(rgb.to_ndarray(), frame)


@contextmanager
def _unreadable(path: str) -> Iterator[None]:
    """Turn what PyAV raises into an OSError that names the file; errors of the system, with their number, are some."""
    av = require_av()
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        if not os.path.getsize(path):
            raise OSError(f"{path}: the file is empty") from error
        raise OSError(f"{path}: no readable video ({error.strerror or error})") from error


@lru_cache(maxsize=1024)
def _warn(path: str, what: str) -> None:
    logger.warning("Video %s: %s", path, what)
