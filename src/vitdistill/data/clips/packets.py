"""Which compressed packets of a video must be decoded for some pictures, and which pictures are nearest to given times.

Timestamps are in ticks of the file's time base; packets come in decoding order.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


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
