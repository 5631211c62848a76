"""Frames out of video files (PyAV) and out of folders of images, reading and decoding as little as the request allows.

How a file is read: seek to the keyframe before the first frame asked for, take compressed packets until the last one
(without decoding), see from their timestamps which pictures are the nearest to those asked for, and decode only up to
these: what follows the last wanted picture of a group of pictures is dropped, and pictures in between that no other
picture refers to are skipped. A long gap that holds a keyframe is jumped over with another seek.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torchvision.datasets.folder import is_image_file

from vitdistill.data.video import Video
from vitdistill.errors import UserError

logger = logging.getLogger(__name__)

SEEK_SECONDS = 2.0  # shorter gaps are demuxed through, which costs less than a seek
BACK_OFF_SECONDS = (0.0, 2.0)  # some containers seek to a keyframe after the target: try earlier, then from the start
MAX_RATE = 240  # frames/s; browsers write 1000 where they do not know
FALLBACK_RATE = Fraction(25)
END_SECONDS = 1.0  # a video that ends this long before a frame asked for is worth a warning

Picture = UInt8[np.ndarray, "height width 3"]


def require_av() -> Any:
    """The module `av`.

    Raises:
        UserError: when PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            "Reading video files needs PyAV", "no module 'av'", "Install it with pip install 'vitdistill[video]'"
        ) from error
    return av


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
        self._opened: _Stream | None = None

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
        numbers, places = _distinct(frames, stream.length, self.path)
        self._opened = None  # the next reading starts with a fresh decoder
        with _unreadable(self.path), stream:
            pictures = stream.pictures(numbers, short_side)
        return np.stack([pictures[place] for place in places])

    def _open(self) -> "_Stream":
        if self._opened is None:
            with _unreadable(self.path):
                self._opened = _Stream(self.path)
        return self._opened


class FrameFolder(Video):
    """A video as a folder of image files, in natural order (`img_2.jpg` before `img_10.jpg`)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Args:
            path: the folder; listed when it is first needed.
        """
        self.path = os.fspath(path)
        self._names: list[str] = []

    @property
    def length(self) -> int:
        """Images in the folder.

        Raises:
            OSError: when the folder is missing or holds no image.
        """
        return len(self._list())

    @property
    def short_side(self) -> int:
        """Shorter edge in pixels, of the first image.

        Raises:
            OSError: as `length`, and when that image is unreadable.
        """
        with Image.open(os.path.join(self.path, self._list()[0])) as image:
            return min(image.size)

    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        """Decode some images, each once, in the order asked for; all get the size of the first.

        Args:
            frames: numbers from 0 to `length` - 1; repeats are allowed.
            short_side: resize to this shorter edge in pixels; None keeps the size.

        Raises:
            OSError, SyntaxError, ValueError: when an image is unreadable; `loading.UNREADABLE` has the full list.
            IndexError: when a number is out of range, or there is none.
        """
        names = self._list()
        numbers, places = _distinct(frames, len(names), self.path)
        pictures: list[Picture] = []
        size: tuple[int, int] | None = None
        for number in numbers:
            with Image.open(os.path.join(self.path, names[number])) as image:
                rgb = image.convert("RGB")
            size = size or _size(*rgb.size, short_side)
            pictures.append(np.asarray(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BILINEAR)))
        return np.stack([pictures[place] for place in places])

    def _list(self) -> list[str]:
        if not self._names:
            names = (name for name in os.listdir(self.path) if is_image_file(name) and not name.startswith("."))
            self._names = sorted(names, key=_natural)
            if not self._names:
                raise OSError(f"{self.path}: no image in this folder of frames")
        return self._names


class _Stream:
    """An open file: its picture stream, and how frame numbers become timestamps."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.container = _open_container(path)
        try:
            self._read_header()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_error: object) -> None:
        self.container.close()

    def _read_header(self) -> None:
        if not self.container.streams.video:
            raise OSError(f"{self.path}: no pictures in this file, only sound or data")
        self.stream = self.container.streams.video[0]
        self.codec = self.stream.codec_context
        if self.codec is None or not self.codec.width or not self.codec.height:
            raise OSError(f"{self.path}: its picture stream has no known codec or no size")
        self.codec.thread_count = 1  # the loader's workers are the parallelism
        self.short_side: int = min(self.codec.width, self.codec.height)
        first = next((packet for packet in self._demux()), None)
        if first is None:
            raise OSError(f"{self.path}: no pictures in this file")
        # With B-pictures an AVI file starts after its start time; with an edit list an MP4 file starts before it.
        self.start: int = max(first.pts if first.pts is not None else 0, self.stream.start_time or 0)
        self.length, rate = self._length_and_rate()
        self.per_second = 1 / _fraction(self.stream.time_base)  # ticks of the time base
        self.ticks = self.per_second / rate  # from frame to frame

    def _length_and_rate(self) -> tuple[int, Fraction]:
        stream = self.stream
        rate = _fraction(stream.average_rate or stream.guessed_rate)
        seconds = (stream.duration or 0) * _fraction(stream.time_base)
        seconds = seconds or Fraction(self.container.duration or 0, 10**6)
        if rate <= 0 or rate > MAX_RATE:
            rate = Fraction(0)
        if stream.frames > 0:
            return stream.frames, rate or (stream.frames / seconds if seconds > 0 else FALLBACK_RATE)
        if seconds > 0 and rate:
            return max(1, round(seconds * rate)), rate
        return self._counted(rate)

    def _counted(self, rate: Fraction) -> tuple[int, Fraction]:
        """Length and rate of a file that tells neither, from the packets' timestamps."""
        self.reopen()
        times = [packet.pts for packet in self._demux()]
        known = [time for time in times if time is not None]
        span = (max(known) - min(known)) * _fraction(self.stream.time_base) if known else Fraction(0)
        self.reopen()
        return len(times), rate or ((len(times) - 1) / span if span > 0 else FALLBACK_RATE)

    def pictures(self, numbers: list[int], short_side: int | None) -> list[Picture]:
        """The pictures of some frames.

        Args:
            numbers: ascending, without repeats.
            short_side: shorter edge in pixels, or None.
        """
        resize = _Resize(short_side)
        stamps = [self.start + round(number * self.ticks) for number in numbers]
        pictures: list[Picture] = []
        while len(pictures) < len(stamps):
            packets = self._packets_from(stamps[len(pictures)])
            if packets is None:
                return self._in_order(numbers, resize)
            first = len(pictures)
            group = self._until_seek_pays(stamps[first:])
            packets += self._packets_until(group[-1], packets)
            pictures += self._nearest(group, packets, resize, pictures[-1:])
        return pictures

    # --- from the file to packets ----------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Back to the start of the file, with a fresh decoder."""
        self.container.close()
        self.container = _open_container(self.path)
        self.stream = self.container.streams.video[0]
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1

    def _demux(self) -> Iterator[Any]:
        """Packets of the picture stream, as far as the file can be read."""
        av = require_av()
        with suppress(av.FFmpegError):  # the end of a truncated file
            for packet in self.container.demux(self.stream):
                if packet.size:  # the last one is empty, a sign for decoders
                    yield packet

    def _packets_from(self, stamp: int) -> list[Any] | None:
        """Seek so that the picture at a timestamp can be decoded.

        Returns:
            The first packet from there, if there is any; None where packets have no timestamps.
        """
        for back in BACK_OFF_SECONDS:
            if not self._seek(max(self.start, stamp - int(back * self.per_second))):
                break
            packets = self._head()
            if not packets:
                return []
            if packets[-1].pts is None:
                return None
            if packets[-1].pts <= stamp:
                return packets
        self.reopen()
        packets = self._head()
        return None if packets and packets[-1].pts is None else packets

    def _head(self) -> list[Any]:
        self._packets = self._demux()
        return [packet for packet in [next(self._packets, None)] if packet is not None]

    def _seek(self, stamp: int) -> bool:
        av = require_av()
        try:
            self.container.seek(stamp, stream=self.stream, backward=True)
        except (av.FFmpegError, OSError):
            return False
        return True

    def _until_seek_pays(self, stamps: list[int]) -> list[int]:
        """The leading timestamps between which no keyframe makes another seek worth while."""
        index = self.stream.index_entries
        for place, (here, there) in enumerate(pairwise(stamps), start=1):
            if there - here > SEEK_SECONDS * self.per_second:
                entry = index.search_timestamp(there, backward=True)
                if entry >= 0 and index[entry].timestamp > here:
                    return stamps[:place]
        return stamps

    def _packets_until(self, stamp: int, head: list[Any]) -> list[Any]:
        """Packets after `head` until all are there that show at or before `stamp`, and one that does not."""
        packets: list[Any] = []
        reached = any(packet.pts >= stamp for packet in head)
        if reached and all(packet.dts is not None and packet.dts >= stamp for packet in head):
            return packets
        for packet in self._packets:
            packets.append(packet)
            reached = reached or (packet.pts is not None and packet.pts >= stamp)
            if reached and packet.dts is not None and packet.dts >= stamp:
                break
        return packets

    # --- from packets to pictures ----------------------------------------------------------------------------------

    def _nearest(
        self, stamps: list[int], packets: list[Any], resize: "_Resize", before: list[Picture]
    ) -> list[Picture]:
        """The pictures nearest to some timestamps; `before` holds the one to repeat when there is none."""
        times = np.unique([packet.pts for packet in packets if packet.pts is not None and not packet.is_discard])
        wanted = nearest_times(times, stamps) if len(times) else []
        found = self._decoded(packets, set(wanted), resize)
        if not len(times) or stamps[-1] - times[-1] > END_SECONDS * self.per_second:
            _warn_of_early_end(self.path)
        if not found:
            if not before:
                raise OSError(f"{self.path}: no picture could be decoded (truncated or damaged)")
            return before * len(stamps)
        if not wanted:
            return before * len(stamps)
        known = np.array(sorted(found))
        return [found[time] for time in nearest_times(known, wanted)]

    def _decoded(self, packets: list[Any], wanted: set[int], resize: "_Resize") -> dict[int, Picture]:
        """The wanted pictures that decode; where none does, the last one that does."""
        found: dict[int, Picture] = {}
        last: Any = None
        for run in needed_runs(packets, wanted):
            for packet in [*run, None]:
                # Pictures that nothing refers to and nobody asked for need no decoding.
                if packet is not None:
                    self.codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in self._decode(packet):
                    last = frame if frame.pts is not None else last
                    if frame.pts in wanted and frame.pts not in found:
                        found[frame.pts] = resize(frame)
            self.codec.flush_buffers()
        if not found and last is not None:
            found[last.pts] = resize(last)
        return found

    def _decode(self, packet: Any) -> list[Any]:
        """The frames that a packet (None: the end) brings; none where it is damaged."""
        av = require_av()
        try:
            return self.codec.decode(packet)
        except av.FFmpegError:
            return []

    def _in_order(self, numbers: list[int], resize: "_Resize") -> list[Picture]:
        """The pictures by counting from the start: for files without timestamps."""
        self.reopen()
        pictures: list[Picture] = []
        count, last = 0, None
        for packet in [*self._demux(), None]:
            for frame in self._decode(packet):
                if len(pictures) < len(numbers) and count == numbers[len(pictures)]:
                    pictures.append(resize(frame))
                count, last = count + 1, frame
            if len(pictures) == len(numbers):
                return pictures
        if last is None:
            raise OSError(f"{self.path}: no picture could be decoded (truncated or damaged)")
        _warn_of_early_end(self.path)
        return pictures + [resize(last)] * (len(numbers) - len(pictures))


class _Resize:
    """From a decoded frame to RGB: colour conversion, resize and rotation; all frames get the size of the first."""

    def __init__(self, short_side: int | None) -> None:
        from av.video.reformatter import VideoReformatter

        self.short_side = short_side
        self.size: tuple[int, int] | None = None
        self.reformatter = VideoReformatter()  # one for all frames keeps its tables

    def __call__(self, frame: Any) -> Picture:
        self.size = self.size or _size(frame.width, frame.height, self.short_side)
        width, height = self.size
        rgb = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BILINEAR", threads=1
        )
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)


def needed_runs(packets: list[Any], wanted: set[int]) -> Iterator[list[Any]]:
    """The packets that must be decoded, as runs that each start at a keyframe.

    Args:
        packets: in decoding order.
        wanted: presentation timestamps of the wanted pictures.
    """
    groups: list[list[Any]] = []
    for packet in packets:
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(packet)
    counts = [max((n for n, packet in enumerate(group, 1) if packet.pts in wanted), default=0) for group in groups]
    run: list[Any] = []
    for number, group in enumerate(groups):
        run += group[: counts[number]]
        if number + 1 < len(groups) and _leads(groups[number + 1], wanted):
            run += group[counts[number] :]  # pictures shown before the next keyframe refer to this group
        elif run:
            yield run
            run = []


def _leads(group: list[Any], wanted: set[int]) -> bool:
    """Whether a wanted picture is decoded after the keyframe of its group and shown before it."""
    return any(packet.pts in wanted and packet.pts < group[0].pts for packet in group if group[0].pts is not None)


def nearest_times(times: np.ndarray, targets: Sequence[int]) -> list[int]:
    """For each target the nearest of the times; of two, the earlier one.

    Args:
        times: ascending, not empty.
        targets: any.
    """
    after = np.searchsorted(times, targets).clip(0, len(times) - 1)
    before = (after - 1).clip(0)
    closer = np.abs(times[after] - targets) < np.abs(times[before] - targets)
    return np.where(closer, times[after], times[before]).tolist()


def _distinct(frames: Sequence[int], length: int, path: str) -> tuple[list[int], list[int]]:
    """The distinct numbers in ascending order, and where among them each frame is.

    Raises:
        IndexError: when a number is out of range, or there is none.
    """
    if not len(frames) or min(frames) < 0 or max(frames) >= length:
        raise IndexError(f"{path}: frames must be among 0 to {length - 1}; got {list(frames)}")
    numbers, places = np.unique(np.asarray(frames), return_inverse=True)
    return numbers.tolist(), places.tolist()


def _size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height with the given shorter edge."""
    if short_side is None:
        return width, height
    shorter = min(width, height)
    return max(1, round(width * short_side / shorter)), max(1, round(height * short_side / shorter))


def _fraction(rational: Any) -> Fraction:
    """0 where PyAV knows none, which versions of it say differently."""
    return Fraction(rational.numerator, rational.denominator) if rational else Fraction(0)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers within names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", Path(name).name)]


def _open_container(path: str) -> Any:
    av = require_av()
    try:
        return av.open(path)
    except UnicodeDecodeError:  # titles in some other encoding; later versions of PyAV do not mind
        return av.open(path, metadata_errors="replace")


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
