"""Which files, or named parts, of a container are for training and which for validation. Needs no torch."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vitdistill.data.containers.address import Address, paths_of
from vitdistill.errors import UserError, near

TRAIN_WORDS = ("train", "training", "trainval")
VAL_WORDS = ("val", "valid", "validation", "dev", "test", "testing", "eval")  # the first that is there is validated on


class SplitFiles(NamedTuple):
    """Files by what they are for; with nothing to validate on, some of the training samples are held out."""

    train: list[str]
    val: list[str]
    left_out: list[str]


def split_word(name: str) -> str | None:
    """The word in a name that says which split it belongs to; None where there is none.

    Example:
        >>> split_word("imagenet1k-validation-07.tar")
        'validation'
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((word for word in (*TRAIN_WORDS, *VAL_WORDS) if word in words), None)


def split_files(address: Address, suffix: str) -> SplitFiles:
    """The files of an address. Its options `train` and `val` may name them, as patterns of paths.

    Otherwise those with the word val, valid, validation, dev or test in their name (of the file, else of its folder)
    are not for training; of several such words the first of these is validated on.

    Args:
        address: whose name is a pattern of paths; a folder stands for the files in it.
        suffix: of the files in folders.

    Raises:
        UserError: when there are none, or one is missing.
    """
    given = address.options.get("train")
    files = _existing(given or address.name, suffix)
    if len(files) == 1 and "val" not in address.options and (partner := _partner(Path(files[0]))) is not None:
        return SplitFiles(files, [str(partner)], [])
    if address.val is not None:
        return SplitFiles(files, _existing(address.val, suffix), [])
    words = {file: split_word(Path(file).name) or split_word(Path(file).parent.name) for file in files}
    others = [word for word in VAL_WORDS if word in words.values()]
    train = [file for file in files if words[file] not in others]
    if given or not train:  # named as what they are, or all of one kind
        return SplitFiles(files, [], [])
    val = [file for file in files if others and words[file] == others[0]] if address.share is None else []
    return SplitFiles(train, val, [file for file in files if file not in {*train, *val}])


def _partner(file: Path) -> Path | None:
    """The file to validate on beside one to train on, which has the other split's word in its name."""
    word = split_word(file.name)
    if word not in TRAIN_WORDS:
        return None
    beside = (file.with_name(file.name.replace(word, other, 1)) for other in VAL_WORDS)
    return next((path for path in beside if path.is_file()), None)


def _existing(pattern: str, suffix: str) -> list[str]:
    found = []
    for path in paths_of(pattern):
        found += sorted(map(str, Path(path).rglob(f"*{suffix}"))) if os.path.isdir(path) else [path]
    if not found:
        raise UserError(f"At least one {suffix} file is needed", f"none for '{pattern}'")
    if missing := [path for path in found if not os.path.isfile(path)]:
        what = (
            f"{missing[0]}, which is missing"
            if len(found) == 1
            else f"{len(missing)} of {len(found)} missing, the first {missing[0]}"
        )
        raise UserError(f"All {suffix} files must exist", what)
    return found


def choose_splits(available: Iterable[str], train: str | None, val: str | None, where: str) -> tuple[str, str | None]:
    """Which named split to train on and which to validate on; None to hold some of the training samples out.

    Args:
        available: names of the splits that there are.
        train: the split that the user named.
        val: the split that the user named.
        where: what has them, for messages.

    Raises:
        UserError: when a named split is not there, or nothing says which is for training.
    """
    names = list(available)
    for option, name in (("train", train), ("val", val)):
        if name is not None and name not in names:
            there = ", ".join(names)
            raise UserError(
                f"{where} must have the split that ?{option}= names", f"'{name}' of {there}", near(name, names)
            )
    by_word = {word: name for name in reversed(names) if (word := split_word(name)) is not None}
    if train is None:
        train = next((by_word[word] for word in TRAIN_WORDS if word in by_word), names[0] if len(names) == 1 else None)
    if train is None:
        raise UserError(f"One split of {where} must be for training", ", ".join(names), f"Name it: ?train={names[0]}")
    if val is None:
        val = next((by_word[word] for word in VAL_WORDS if by_word.get(word, train) != train), None)
    return train, val
