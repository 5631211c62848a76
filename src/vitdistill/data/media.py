"""The files of a folder, which of them are videos and sounds by their names, and which folders hold sounds.

Needs neither torch nor numpy.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vitdistill.data.left_out import of_other_program

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
# What FFmpeg reads as video under these names. GIF and APNG are images, and .ogg, .mka and .m4a are mostly sound.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mj2"),
    *(".mkv", ".mk3d", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv", ".ogv", ".ogm", ".rm", ".rmvb", ".nut"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".m2p", ".vob", ".ts", ".mts", ".m2ts", ".m2t", ".mod", ".tod", ".mxf"),
    *(".dv", ".wtv", ".amv", ".ivf", ".y4m", ".h264", ".264", ".h265", ".265", ".hevc", ".obu", ".mjpeg", ".mjpg"),
)
# How many sounds, images and videos, and how many files of any kind at most, `has_sounds` looks at.
LOOKED_AT, LISTED = 1000, 20_000


def is_video(path: str) -> bool:
    """Whether a file is a video by its name; upper or lower case does not matter."""
    return path.lower().endswith(VIDEO_SUFFIXES) and not os.path.basename(path).startswith(".")


def is_sound(path: str) -> bool:
    """Whether a file is a sound by its name; upper or lower case does not matter."""
    return path.lower().endswith(SOUND_SUFFIXES) and not of_other_program(os.path.basename(path))


def has_sounds(path: str | Path) -> bool:
    """Whether a folder holds sounds rather than images or videos: most of the first 1000 files of these kinds.

    Args:
        path: the folder; need not exist.
    """
    place = Path(path)
    if not place.is_dir():
        return False
    files = list(islice((name for _, _, names in walk(place) for name in names), LISTED))
    if not any(map(is_sound, files)):
        return False
    from vitdistill.data.folders import is_image

    media = (is_sound(name) for name in files if is_sound(name) or is_image(name) or is_video(name))
    found = list(islice(media, LOOKED_AT))
    return 2 * sum(found) > len(found)


def walk(root: Path, leave_out: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, but relative to `root`, sorted, through links (each folder once), and without other programs' files.

    Args:
        root: the folder.
        leave_out: folders directly in it that are not entered, in lower case.
    """
    # A link that leads up from a class folder would bring the other classes into it.
    above = map(os.stat, Path(root).resolve().parents)
    entered = {(status.st_dev, status.st_ino) for status in above}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # links may lead round in a circle
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below = "" if folder == str(root) else os.path.relpath(folder, root)
        not_wanted = () if below else leave_out
        # Sorted, so that of two links to one folder the same is followed each time.
        folders[:] = sorted(name for name in folders if not of_other_program(name) and name.lower() not in not_wanted)
        yield below, folders, sorted(name for name in files if not of_other_program(name))


def _raise(error: OSError) -> None:
    """os.walk would go on without the folder, and what is in it would be missing without a word."""
    raise error
