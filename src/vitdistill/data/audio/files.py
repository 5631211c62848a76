"""Sounds on disk: `train/` and `val/`, one folder per class in each, as for images; wav, flac and ogg."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitdistill.data.audio.decode import Sound, require_soundfile
from vitdistill.data.audio.samples import SoundSamples
from vitdistill.data.folders import (
    FileSamples,
    Kind,
    as_bytes,
    has_classes,
    labelled,
    labelled_if_possible,
    some,
    unlabelled,
)
from vitdistill.data.labels_csv import by_table, find_table, say_unnamed
from vitdistill.data.left_out import say_left_out, suffix
from vitdistill.data.media import is_sound, walk
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError


class FileSounds(FileSamples, SoundSamples):
    """The sounds of one split."""

    def load(self, index: int) -> tuple[Sound, int | None]:
        return Sound(self.path(index), self.root or None), self.label(index)

    def place(self) -> str:
        return self.root or self.path(0)


def sound_files(path: str | Path, *, labels: bool = True) -> DataSource:
    """Open a folder of sounds, as `image_folder` opens one of images: class folders, a table of labels, or any files
    where labels are not needed.

    Args:
        path: the folder.
        labels: whether the classes are needed.

    Raises:
        UserError: as `image_folder`, or when soundfile or SciPy is not installed.
    """
    require_soundfile()  # here, as the loader would take its absence for unreadable files
    root = Path(path).expanduser()
    if not labels:
        return labelled_if_possible(root, SOUNDS) or unlabelled(root, SOUNDS)
    table = None if has_classes(root) else find_table(root)
    if table is None:
        return labelled(root, SOUNDS)
    source = by_table(table, SOUNDS)
    say_unnamed(root, table, SOUNDS, source)
    return source


def given_sounds(names: Sequence[str]) -> FileSounds:
    """Sounds that were named one by one; nothing of them is kept.

    Args:
        names: paths.

    Raises:
        UserError: when soundfile or SciPy is not installed.
    """
    require_soundfile()
    given = FileSounds(Path(), as_bytes(names))
    given.root = ""  # so that paths are as they were given
    return given


def sounds_below(root: Path, leave_out: tuple[str, ...], left: Counter[str]) -> list[str]:
    """Paths of all sounds below a folder, relative to it; counts the other files."""
    found = []
    for below, _, files in walk(root, leave_out):
        left.update(suffix(name) for name in files if not is_sound(name))
        found += [os.path.join(below, name) for name in files if is_sound(name)]
    return sorted(found)


def list_sounds(path: str | Path) -> list[str]:
    """A sound file, or all sounds below a folder, in sorted order.

    Raises:
        UserError: when there is none.
    """
    place = Path(path).expanduser()
    left: Counter[str] = Counter()
    if not place.is_dir():
        return [str(place)]
    found = [os.path.join(place, name) for name in sounds_below(place, (), left)]
    say_left_out(place, "sound", left)
    if not found:
        raise UserError("There must be sounds", f"none in {some([str(path)])}", FORMATS)
    return found


def make_sounds(root: Path, names: np.ndarray, labels: np.ndarray | None) -> FileSounds:
    """A set of sounds."""
    return FileSounds(root, names, labels)


FORMATS = "wav, flac and ogg files are read"
SOUNDS = Kind(
    word="sound",
    is_sample=is_sound,
    below=sounds_below,
    make=make_sounds,
    layout="Expected <data>/train/<class>/*.wav and <data>/val/<class>/*.wav",
    formats=FORMATS,
)
