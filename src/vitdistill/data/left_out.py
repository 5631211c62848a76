"""What is not read: other programs' files, which are passed over, and all else that is no sample, which is counted."""

import logging
import os
from collections import Counter
from collections.abc import Iterable

log = logging.getLogger(__name__)

# What file managers, network drives, archives and systems leave beside files. Compared in lower case; names that begin
# with a dot are of the same sort.
OF_OTHER_PROGRAMS = {
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
NO_SUFFIX = "without a suffix"
_said: set[str] = set()


def of_other_program(name: str) -> bool:
    """Whether a file or folder is another program's, by its name without a path."""
    return name.startswith(".") or name.lower() in OF_OTHER_PROGRAMS


def suffix(name: str) -> str:
    """A file's suffix in lower case, for counting."""
    return os.path.splitext(name)[1].lower() or NO_SUFFIX


def say_left_out(place: object, word: str, left: Counter[str], others: Iterable[str] = ()) -> None:
    """One line on what a folder holds and is not read; nothing where that is nothing.

    Args:
        place: the folder.
        word: what a sample is called.
        left: how many files of each suffix are no samples.
        others: what else was left out and why, in words.
    """
    reasons = [reason for reason in others if reason]
    if left:
        kinds = ", ".join(f"{count} {end}" for end, count in sorted(left.items(), key=lambda item: (-item[1], item[0])))
        reasons.insert(0, f"{kinds} (not read as {word}s)")
    if reasons:
        say_once(f"Left out of {place}: {'; '.join(reasons)}")


def say_once(line: str) -> None:
    """Warn of something that is found anew whenever the same data is opened."""
    if line not in _said:
        _said.add(line)
        log.warning("%s", line)
