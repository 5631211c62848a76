"""Which pictures a video file has, in the order in which it shows them.

Right is what decoding the whole file from its start gives. The packets' timestamps tell the same in a fiftieth of the
time where each packet brings one picture and pictures are shown in the order of their timestamps. Where that is not
certain (`_doubt`), the file is decoded once to count its pictures, and is read from its start.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from vitdistill.data.clips.keyframes import Key, kind_of
from vitdistill.data.clips.stream import Stream

# Containers and codecs whose timestamps were compared with decoding the whole file.
CONTAINERS = ("mov", "matroska", "avi")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff")
DECODERS = {"libvpx-vp9": "vp9", "libvpx": "vp8", "libdav1d": "av1", "libaom-av1": "av1"}
PROGRESSIVE = (0, 1)  # FFmpeg's field order: unknown, and no fields at all
# Bytes of a packet that may say "no picture": of MPEG-4, and of ProRes, whose header FFmpeg puts before nothing.
EMPTY = {"mpeg4": 19, "prores": 8}
KEPT_TIMES = 4_000_000  # of all indexes that a process keeps, 32 MB


@dataclass(frozen=True)
class Index:
    """The pictures of a file.

    Attributes:
        length: how many there are.
        times: their timestamps in ascending order, in ticks of the time base; None where a picture has none, or where
            they run backwards. Where there is a doubt, a decoder may give them to other pictures.
        doubt: why they are found by decoding from the start; "" where their timestamps find them.
        missing: pictures that the container lists and the file no longer holds.
    """

    length: int
    times: Int64[np.ndarray, "n"] | None
    doubt: str = ""
    missing: int = 0


class _Known:
    """The indexes that a process keeps, so that a file is read or decoded to its end once: those used last."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.indexes: OrderedDict[tuple[str, int, int], Index] = OrderedDict()

    def of(self, stream: Stream) -> Index:
        status = os.stat(stream.path)
        key = (stream.path, status.st_size, status.st_mtime_ns)
        if key in self.indexes:
            self.indexes.move_to_end(key)
            return self.indexes[key]
        index = self.indexes[key] = _read(stream)
        self.size += _cost(index)
        while self.size > self.limit and len(self.indexes) > 1:
            self.size -= _cost(self.indexes.popitem(last=False)[1])
        return index


def _cost(index: Index) -> int:
    return 64 + (0 if index.times is None else len(index.times))


_known = _Known(KEPT_TIMES)


def index_of(stream: Stream) -> Index:
    """The pictures of an open file. Where the process does not know them yet, the file is read to its end.

    Raises:
        OSError: when there are none.
    """
    return _known.of(stream)


def _read(stream: Stream) -> Index:
    doubt = _doubt_of_kind(stream)
    packets = [] if doubt else list(_packets(stream))
    missing = _missing(stream, len(packets)) if packets else 0
    doubt = doubt or _doubt(packets, stream)
    if not doubt:
        times = np.sort(np.array([packet.pts for packet in packets], dtype=np.int64))
        return Index(len(times), times, missing=missing)
    stamps = [frame.pts for frame in stream.frames()]
    if not stamps:
        raise OSError(f"{stream.path}: no picture could be decoded (truncated or damaged)")
    # AVI files number pictures in the order of decoding: there are as many steps of time, handed out in another order.
    in_order = None not in stamps and stamps == sorted(stamps)
    if None in stamps or not (in_order or stream.container.format.name == "avi"):
        return Index(len(stamps), None, doubt, missing)
    unique = len(set(stamps)) == len(stamps) and set(stamps) <= {one.pts for one in packets}
    if in_order and unique and _seekable(packets, stream):
        doubt = ""  # the decoder has shown that each timestamp stands for one picture
    return Index(len(stamps), np.array(sorted(stamps), dtype=np.int64), doubt, missing)


def _missing(stream: Stream, packets: int) -> int:
    """Pictures behind the end of a truncated mp4 or mov file, whose table lies at its start."""
    listed = len(stream.stream.index_entries) if stream.container.format.name.startswith("mov") else 0
    return max(0, listed - packets)


def _seekable(packets: "list[_Packet]", stream: Stream) -> bool:
    """Whether seeking gives the same timestamps (AVI files only count pictures) and the same pictures."""
    written = stream.container.format.name != "avi" or all(packet.pts == packet.dts for packet in packets)
    return bool(packets) and written and not any(packet.key == "gradual" for packet in packets)


class _Packet(NamedTuple):
    """What is needed of a packet; its data is not kept."""

    pts: int | None
    dts: int | None
    key: Key
    odd: bool  # it may bring no picture, or a damaged one


def _packets(stream: Stream) -> Iterator[_Packet]:
    codec = _codec_of(stream)
    for number, packet in enumerate(stream.demux()):
        odd = packet.is_discard or packet.is_corrupt or _without_picture(packet, codec)
        key: Key = "no"
        if packet.is_keyframe:
            key = kind_of(packet, codec, stream.codec, first=number == 0)
        yield _Packet(packet.pts, packet.dts, key, odd)


def _doubt_of_kind(stream: Stream) -> str:
    """Why files of this container and codec are decoded; "" where their packets say enough."""
    container, name = stream.container.format.name.split(",")[0], _codec_of(stream)
    if container not in CONTAINERS:
        return f"{container} files do not tell reliably where pictures are"
    if name not in CODECS:
        return f"packets of {name} do not tell reliably where pictures are"
    if container == "avi" and stream.codec.has_b_frames:
        return "AVI files have no timestamps for pictures that are shown in another order than they are decoded"
    return ""


def _doubt(packets: list[_Packet], stream: Stream) -> str:
    """What in the packets speaks against one picture for each, shown in the order of timestamps; "" for nothing."""
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    if len(stamps) < len(packets) or len(set(stamps)) < len(stamps):
        return "its pictures have no timestamps of their own"
    if any(packet.odd for packet in packets):
        return "an edit list hides pictures, or packets bring none or damaged ones"
    if not packets or packets[0].key != "clean" or stamps[0] != min(stamps):
        return "its first pictures refer to others that were cut off"
    if int(stream.codec.field_order) not in PROGRESSIVE and _codec_of(stream) in ("h264", "hevc", "mpeg4"):
        return "interlaced pictures may take two packets"
    latest = np.maximum.accumulate(stamps)
    if any(packet.key == "gradual" for packet in packets):
        return "its pictures clear up gradually, so that decoding cannot begin anywhere"
    late = any(
        packet.key != "no" and latest[place - 1] > stamps[place] for place, packet in enumerate(packets) if place
    )
    reordered = stamps != latest.tolist()
    if late or (reordered != bool(stream.codec.has_b_frames) and len(stamps) > 1):
        return "its timestamps do not fit the order of its pictures"
    return ""


def _codec_of(stream: Stream) -> str:
    return DECODERS.get(stream.codec.name, stream.codec.name)


def _without_picture(packet: Any, codec: str) -> bool:
    """Whether a packet may bring no picture: hidden ones of VP8 and VP9, and signs that one is repeated."""
    if codec in EMPTY:
        return packet.size <= EMPTY[codec]
    if codec not in ("vp8", "vp9"):
        return False
    data = memoryview(packet)
    if codec == "vp8":  # RFC 6386, 9.1: bit 4 shows the frame
        return not data[0] >> 4 & 1
    if data[-1] & 0xE0 == 0xC0:  # a superframe: several frames, the last of which is shown
        return False
    header = format(data[0], "08b")  # VP9 bitstream, 6.2: marker, profile, show_existing_frame, frame_type, show_frame
    existing = 5 if header[2:4] == "11" else 4
    return header[existing] == "0" and header[existing + 2] == "0"
