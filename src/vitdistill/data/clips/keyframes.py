"""What kind of keyframe a packet holds: decoding cannot begin at each alike.

Sources: ITU-T H.264, 7.3.1 and D.1.8; ITU-T H.265, 7.4.2.2; ISO/IEC 14496-2 (MPEG-4), 6.3.4.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

Key = Literal["no", "clean", "open", "gradual"]

SEI, IDR = 6, 5  # types of H.264's units: further information, and a picture after which none refers to what was before
IDR_HEVC = (19, 20)  # the same picture in H.265
RECOVERY_POINT = 6  # type of further information: after how many pictures a decoder that begins here is right


def kind_of(packet: Any, codec: str, context: Any, *, first: bool) -> Key:
    """Whether decoding that begins at a keyframe is right from it on.

    Args:
        packet: with the flag of a keyframe.
        codec: its name.
        context: the decoder.
        first: whether it is the first packet of the file; others are looked at where kinds of keyframes matter.

    Returns:
        clean: yes, and nothing after it refers to what was before. open: yes, but pictures that are shown before it
        may refer to what was before. gradual: only after some pictures (periodic intra refresh).
    """
    header = context.extradata or b""
    if codec == "h264":
        key: Key = "open"
        for unit in _units(bytes(packet), header, 4):
            if unit[0] & 31 == IDR:
                return "clean"
            if unit[0] & 31 == SEI and _recovers_later(unit[1:]):
                key = "gradual"
        return key
    if codec == "hevc" and first:
        return "clean" if any(unit[0] >> 1 & 63 in IDR_HEVC for unit in _units(bytes(packet), header, 21)) else "open"
    return "open" if codec == "mpeg4" and context.has_b_frames else "clean"


def _units(packet: bytes, header: bytes, place_of_width: int) -> Iterator[bytes]:
    if header[:1] != b"\x01":  # start codes between units
        yield from (unit for unit in re.split(rb"\x00\x00\x01", packet)[1:] if unit)
        return
    place, width = 0, (header[place_of_width] & 3) + 1  # the length of each unit before it
    while place + width < len(packet):
        size = int.from_bytes(packet[place : place + width], "big")
        if unit := packet[place + width : place + width + size]:
            yield unit
        place += width + size


def _recovers_later(information: bytes) -> bool:
    """Whether further information has a recovery point that is some pictures away."""
    data, place = information.replace(b"\x00\x00\x03", b"\x00\x00"), 0
    while place + 2 < len(data):
        kind = size = 0
        while data[place] == 255 and place + 2 < len(data):
            kind, place = kind + 255, place + 1
        kind, place = kind + data[place], place + 1
        while data[place] == 255 and place + 1 < len(data):
            size, place = size + 255, place + 1
        size, place = size + data[place], place + 1
        if kind == RECOVERY_POINT and place < len(data):
            return not data[place] & 0x80  # a number of pictures: the single bit 1 is 0
        place += size
    return False
