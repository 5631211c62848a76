"""An open video file: which of its streams is the picture, its packets in order, seeking, and plain decoding."""

import errno
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from vitdistill.data.clips.orientation import square_pixels
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
    """An open file and its picture stream: the first one that is no cover picture or thumbnail.

    Attributes:
        path: the file.
        container: as PyAV has it.
        stream: the picture stream.
        codec: its decoder, with one thread.
        pixel: width of a pixel over its height.
        short_side: shorter edge in square pixels.
        rate: frames per second as the header says, else 25.
        per_second: ticks of the time base.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._open()
        try:
            if not self.codec.width or not self.codec.height:
                raise OSError(f"{self.path}: its picture stream has no size")
            self.pixel = _fraction(self.stream.sample_aspect_ratio)
            self.short_side: int = min(square_pixels(self.codec.width, self.codec.height, self.pixel))
            self.per_second = 1 / _fraction(self.stream.time_base)
            rate = _fraction(self.stream.average_rate or self.stream.guessed_rate)
            self.rate = rate if 0 < rate <= MAX_RATE else FALLBACK_RATE
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_error: object) -> None:
        self.container.close()

    def _open(self) -> None:
        self.container = _open_container(self.path)
        try:
            self.stream = _picture_stream(self.path, self.container)
            self.codec = self.stream.codec_context
            if self.codec is None:
                raise OSError(f"{self.path}: its pictures are in a codec that FFmpeg does not decode here")
            self.codec.thread_count = 1  # the loader's workers are the parallelism
        except BaseException:
            self.container.close()
            raise

    def reopen(self) -> None:
        """Back to the start of the file, with a fresh decoder."""
        self.container.close()
        self._open()

    def demux(self) -> Iterator[Any]:
        """Packets of the picture stream in decoding order, as far as the file can be read."""
        av = require_av()
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:  # the last one is empty, a sign for decoders
                    yield packet
        except av.FFmpegError as error:  # the end of a truncated file, or what the system says
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise

    def decode(self, packet: Any) -> list[Any]:
        """The frames that a packet (None: the end) brings; none where it is damaged."""
        av = require_av()
        try:
            return self.codec.decode(packet)
        except av.FFmpegError:
            return []

    def frames(self) -> Iterator[Any]:
        """All frames of the file from its start, in the order in which the decoder shows them."""
        self.reopen()
        for packet in self.demux():
            yield from self.decode(packet)
        yield from self.decode(None)

    def packets_from(self, stamp: int, start: int) -> list[Any] | None:
        """Seek so that the picture at a timestamp can be decoded.

        Args:
            stamp: of the picture.
            start: timestamp of the first picture.

        Returns:
            The first packet from there, a keyframe, if there is any; None where seeking leads nowhere.
        """
        for back in BACK_OFF_SECONDS:
            if not self._seek(max(start, stamp - int(back * self.per_second))):
                break
            packets = self._head()
            if packets and packets[0].is_keyframe and packets[0].pts is not None and packets[0].pts <= stamp:
                return packets
        self.reopen()
        return self._head() or None

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
        reached = any(packet.pts is not None and packet.pts >= stamp for packet in head)
        if reached and all(packet.dts is not None and packet.dts >= stamp for packet in head):
            return packets
        for packet in self._packets:
            packets.append(packet)
            reached = reached or (packet.pts is not None and packet.pts >= stamp)
            if reached and packet.dts is not None and packet.dts >= stamp:
                break
        return packets


def _picture_stream(path: str, container: Any) -> Any:
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    pictures = [stream for stream in container.streams.video if not stream.disposition & still]
    if not pictures:
        cover = " and a cover picture" if container.streams.video else ""
        raise OSError(f"{path}: no pictures in this file, only sound or data{cover}")
    return pictures[0]


def _fraction(rational: Any) -> Fraction:
    """0 where PyAV knows none, which versions of it say differently."""
    return Fraction(rational.numerator, rational.denominator) if rational else Fraction(0)


def _open_container(path: str) -> Any:
    av = require_av()
    try:
        return av.open(path)
    except UnicodeDecodeError:  # titles in some other encoding; later versions of PyAV do not mind
        return av.open(path, metadata_errors="replace")
