"""Which compressed packets of a video must be decoded for some pictures.

Timestamps are in ticks of the file's time base; packets come in decoding order.
"""

from collections.abc import Iterator
from typing import Any


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
