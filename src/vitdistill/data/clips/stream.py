"""An open video file, without decoding anything: its header, how frame numbers become timestamps, seeking, packets."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import Any

from vitdistill.errors import UserError

SEEK_SECONDS = 2.0  # shorter gaps are demuxed through, which costs less than a seek
BACK_OFF_SECONDS = (0.0, 2.0)  # some containers seek to a keyframe after the target: try earlier, then from the start
MAX_RATE = 240  # frames/s; browsers write 1000 where they do not know
FALLBACK_RATE = Fraction(25)


def require_av(what: str = "Reading video files") -> Any:
    """The module `av`.

    Args:
        what: needs it, for the message.

    Raises:
        UserError: when PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{what} needs PyAV", "no module 'av'", "Install it with pip install 'vitdistill[video]'"
        ) from error
    return av


class Stream:
    """An open file: its picture stream, and how frame numbers become timestamps."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.container = _open_container(path)
        try:
            self._read_header()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> "Stream":
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
        first = next((packet for packet in self.demux()), None)
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
        times = [packet.pts for packet in self.demux()]
        known = [time for time in times if time is not None]
        span = (max(known) - min(known)) * _fraction(self.stream.time_base) if known else Fraction(0)
        self.reopen()
        return len(times), rate or ((len(times) - 1) / span if span > 0 else FALLBACK_RATE)

    def reopen(self) -> None:
        """Back to the start of the file, with a fresh decoder."""
        self.container.close()
        self.container = _open_container(self.path)
        self.stream = self.container.streams.video[0]
        self.codec = self.stream.codec_context
        self.codec.thread_count = 1

    def demux(self) -> Iterator[Any]:
        """Packets of the picture stream, as far as the file can be read."""
        av = require_av()
        with suppress(av.FFmpegError):  # the end of a truncated file
            for packet in self.container.demux(self.stream):
                if packet.size:  # the last one is empty, a sign for decoders
                    yield packet

    def packets_from(self, stamp: int) -> list[Any] | None:
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
        self._packets = self.demux()
        return [packet for packet in [next(self._packets, None)] if packet is not None]

    def _seek(self, stamp: int) -> bool:
        av = require_av()
        try:
            self.container.seek(stamp, stream=self.stream, backward=True)
        except (av.FFmpegError, OSError):
            return False
        return True

    def until_seek_pays(self, stamps: list[int]) -> list[int]:
        """The leading timestamps between which no keyframe makes another seek worth while."""
        index = self.stream.index_entries
        for place, (here, there) in enumerate(pairwise(stamps), start=1):
            if there - here > SEEK_SECONDS * self.per_second:
                entry = index.search_timestamp(there, backward=True)
                if entry >= 0 and index[entry].timestamp > here:
                    return stamps[:place]
        return stamps

    def packets_until(self, stamp: int, head: list[Any]) -> list[Any]:
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


def _fraction(rational: Any) -> Fraction:
    """0 where PyAV knows none, which versions of it say differently."""
    return Fraction(rational.numerator, rational.denominator) if rational else Fraction(0)


def _open_container(path: str) -> Any:
    av = require_av()
    try:
        return av.open(path)
    except UnicodeDecodeError:  # titles in some other encoding; later versions of PyAV do not mind
        return av.open(path, metadata_errors="replace")
