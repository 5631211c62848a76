"""What folders of images and folders of videos share: splits, class folders, files at any depth, a share held out.

`images/folder.py` and `clips/files.py` say what a sample is (`Kind`); which samples a folder holds is decided here.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitdistill.data.images.decode import image_suffixes
from vitdistill.data.left_out import of_other_program, say_left_out, say_once
from vitdistill.data.samples import Samples, digest_of
from vitdistill.data.source import DataSource
from vitdistill.errors import MachineError, UserError

# Upper or lower case. Of several, the first is taken.
TRAIN_NAMES: tuple[str, ...] = ("train", "training")
VAL_NAMES: tuple[str, ...] = ("val", "validation", "valid", "testing", "test")
HOLD_OUT_EVERY = 100  # one sample in so many is held out for validation where there is no folder for it
HOLD_OUT_MOST = 5000
THREADS = 16  # that list class folders
NAMED = 3  # how many of the names that are wrong a message shows


class FileSamples(Samples):
    """The samples of one split, by their paths.

    Paths are held in one array of bytes and not in a list of strings: workers share the pages of an array after a
    fork, while counting references would copy those of a list, once per worker.
    """

    def __init__(self, root: Path, names: np.ndarray, labels: np.ndarray | None = None) -> None:
        """
        Args:
            root: the folder that relative paths start from.
            names: paths, bytes as the file system has them, (samples,).
            labels: class numbers, int64, (samples,); None where there are none.
        """
        self.root = str(root)
        self._names = names
        self._labels = labels

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._names[index])))

    @property
    def labels(self) -> list[int] | None:
        return None if self._labels is None else self._labels.tolist()

    def label(self, index: int) -> int | None:
        """Class number of one sample; None where there are no labels."""
        return None if self._labels is None else int(self._labels[index])

    def digest(self) -> str:
        """Of the names below the folder and the class numbers. Files are not read."""
        names = self._names.tolist()
        if all(map(os.path.isabs, names)):  # a list may name files anywhere: they start from what they share
            shared = os.path.commonpath([os.path.dirname(min(names)), os.path.dirname(max(names))])
            names = [name[len(shared) :] for name in names]
        return digest_of(b"\0".join(names), b"" if self._labels is None else self._labels.astype("<i8").tobytes())


@dataclass(frozen=True)
class Kind:
    """What distinguishes images from videos here.

    Attributes:
        word: what a sample is called in messages.
        is_sample: whether a file is one, by its name.
        below: paths of all samples below a folder (without the named folders in it), relative to it and in order;
            counts the suffixes of the other files.
        make: from a folder, names and labels to a set.
        layout: what a labelled folder looks like, for messages.
        formats: which files are read, for messages.
        otherwise: what there may be in place of the split folders, for messages.
        folders: whether a folder may be a sample.
    """

    word: str
    is_sample: Callable[[str], bool]
    below: Callable[[Path, tuple[str, ...], Counter[str]], list[str]]
    make: Callable[[Path, np.ndarray, np.ndarray | None], FileSamples]
    layout: str
    formats: str
    otherwise: str = ""
    folders: bool = False


def labelled(root: Path, kind: Kind) -> DataSource:
    """A folder with `train/` and `val/` (or `validation/`, `valid/`, `test/`), one folder per class in each.

    Validation may lack some of the classes; one line says which, and one what files were left out.

    Raises:
        UserError: when a split is missing, a class is empty in training, there are fewer than two classes, or
            validation has classes that training lacks.
    """
    train, val = _split_folder(root, TRAIN_NAMES, kind), _split_folder(root, VAL_NAMES, kind)
    classes, val_classes = _class_names(train, kind), _class_names(val, kind)
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only '{classes[0]}' in {train}", kind.layout)
    only_train, only_val = in_order(set(classes) - set(val_classes)), in_order(set(val_classes) - set(classes))
    if only_val:
        composed = [{unicodedata.normalize("NFC", name) for name in names} for names in (only_train, only_val)]
        raise UserError(
            f"The class folders of {val} must be among those of {train}",
            f"{some(only_train)} only in {train.name}, {some(only_val)} only in {val.name}",
            "Letters with accents are encoded in two ways (Unicode NFC and NFD): rename the folders alike"
            if composed[0] & composed[1]
            else "Remove or rename the folders that differ",
        )
    left: Counter[str] = Counter()
    samples = of_classes(train, classes, kind, left)
    scored = of_classes(val, classes, kind, left, all_of_them=False)
    counts = np.bincount(np.array(scored.labels), minlength=len(classes))
    if lacking := [name for name, count in zip(classes, counts, strict=True) if not count]:
        say_once(f"{val} has no {kind.word} of {some(lacking)}: scored on the other {np.count_nonzero(counts)} classes")
    if classes != sorted(classes):
        say_once(f"Classes of {root} are in the order of their numbers: {', '.join(classes[:12])}, not in that of text")
    say_left_out(root, kind.word, left, (_beside_classes(split, kind) for split in (train, val)))
    return DataSource(root.resolve().name, samples, scored, classes)


def labelled_if_possible(root: Path, kind: Kind) -> DataSource | None:
    """The labelled source, or None where the folder is not laid out as one."""
    splits = (first_folder(root, TRAIN_NAMES), first_folder(root, VAL_NAMES))
    # A sample beside the class folders has no class: reading the folder as a labelled one would leave it out.
    if any(split is None or any(map(kind.is_sample, os.listdir(split))) for split in splits):
        return None
    try:
        return labelled(root, kind)
    except UserError:
        return None


def unlabelled(root: Path, kind: Kind) -> DataSource:
    """Any folder of samples: those below `train/`, or all but the other splits; some held out where there is no `val/`.

    Raises:
        UserError: when there are fewer than two samples, or none in a split.
    """
    train_root, val_root = first_folder(root, TRAIN_NAMES) or root, first_folder(root, VAL_NAMES)
    # Without train/, the other splits lie among the training samples, and must not be trained on.
    left: Counter[str] = Counter()
    train = np.sort(as_bytes(kind.below(train_root, VAL_NAMES if train_root == root else (), left)))
    if val_root is None:
        val_root = train_root
        train, val = hold_out(train, train_root, kind)
    else:
        val = np.sort(as_bytes(kind.below(val_root, (), left)))
        outside = f" outside {val_root.name}/" if train_root == root else ""
        for names, rule in (
            (train, f"{train_root} must hold at least one {kind.word}{outside} to train on"),
            (val, f"{val_root} must hold at least one {kind.word} to validate on"),
        ):
            if not len(names):
                raise UserError(rule, "none", kind.formats)
    say_left_out(root, kind.word, left)
    name = root.resolve().name
    return DataSource(name, kind.make(train_root, train, None), kind.make(val_root, val, None), [])


def hold_out(names: np.ndarray, place: Path, kind: Kind, share: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The names of the training samples, and of those held out for validation.

    Args:
        names: paths as bytes, sorted.
        place: where they were found, for the message.
        kind: what they are.
        share: as for `held_out`.

    Raises:
        UserError: when there are fewer than two.
    """
    if len(names) < 2:
        found = "none" if not len(names) else f"only '{os.fsdecode(bytes(names[0]))}'"
        rule = f"At least two {kind.word}s are needed, one to validate on"
        raise UserError(rule, f"{found} in {place}", kind.formats)
    out = held_out(len(names), share)
    return names[~out], names[out]


def held_out(samples: int, share: float | None = None) -> np.ndarray:
    """Which of so many samples are held out for validation: random, but fixed.

    Args:
        samples: how many there are, at least two.
        share: how much of them; None is one in a hundred, at least 1 and at most 5000.

    Returns:
        Whether each is held out, bool (samples,).
    """
    count = min(samples // HOLD_OUT_EVERY, HOLD_OUT_MOST) if share is None else min(round(share * samples), samples - 1)
    # RandomState's streams are frozen, so the split is the same under every version of numpy.
    chosen = np.zeros(samples, dtype=bool)
    chosen[np.random.RandomState(0).permutation(samples)[: max(count, 1)]] = True
    return chosen


@contextmanager
def listing(place: object) -> Iterator[None]:
    """Whatever cannot be listed in here, for want of permission or file descriptors, is one line.

    Raises:
        MachineError: which is also an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        where = error.filename or place
        raise MachineError(f"{where} must be readable", error.strerror or str(error), "", error.errno) from error


def first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that is a folder in `root`, in upper or lower case."""
    for name in names:
        if (root / name).is_dir():
            return root / name
        for found in sorted(os.listdir(root)) if root.is_dir() else ():
            if found.lower() == name and (root / found).is_dir():
                return root / found
    return None


def has_classes(root: Path) -> bool:
    """Whether there is a folder to train on with folders in it."""
    train = first_folder(root, TRAIN_NAMES)
    return train is not None and any(entry.is_dir() and not of_other_program(entry.name) for entry in os.scandir(train))


def is_image(path: str) -> bool:
    """Whether a file is an image by its name; upper or lower case does not matter."""
    return os.path.splitext(path)[1].lower() in image_suffixes() and not of_other_program(os.path.basename(path))


def as_bytes(names: Iterable[str]) -> np.ndarray:
    """Paths as the file system has them, in one array."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def in_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their numbers: sorted as text, or by value where all are whole numbers (as timm)."""
    names = list(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def some(names: Iterable[object]) -> str:
    """Up to three names in the order given, e.g. "'a', 'b', 'c' and 2 more"."""
    ordered = list(names)
    text = ", ".join(repr(name) for name in ordered[:NAMED]) or "none"
    return text if len(ordered) <= NAMED else f"{text} and {len(ordered) - NAMED} more"


def _split_folder(root: Path, names: tuple[str, ...], kind: Kind) -> Path:
    if (folder := first_folder(root, names)) is not None:
        return folder
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    shown = [name for name in names if name not in ("training", "valid", "testing")]  # taken as well, but less usual
    raise UserError(
        f"The data folder {root} must hold a folder {' or '.join(map(repr, shown))}{kind.otherwise}",
        f"the folders {some(found)}" if found else "no folder in it",
        kind.layout,
    )


def _class_names(split: Path, kind: Kind) -> list[str]:
    names = in_order(entry.name for entry in os.scandir(split) if entry.is_dir() and not of_other_program(entry.name))
    if not names:
        raise UserError(f"{split} must hold one folder per class", "no folder in it", kind.layout)
    return names


def _beside_classes(split: Path, kind: Kind) -> str:
    count = sum(kind.is_sample(name) for name in os.listdir(split))
    return f"{count} {kind.word}{'s' * (count > 1)} in {split.name}/ outside the class folders" if count else ""


def of_classes(
    split: Path, classes: list[str], kind: Kind, left: Counter[str], *, all_of_them: bool = True
) -> FileSamples:
    """The samples of a split; counts the other files by their suffix.

    Raises:
        UserError: when there is none, or none of some class and `all_of_them` are needed.
    """

    def below(name: str) -> tuple[list[str], Counter[str]]:
        others: Counter[str] = Counter()
        there = (split / name).is_dir()
        return kind.below(split / name, (), others) if there else [], others

    # Folders of a network drive answer slowly, and no slower together.
    with ThreadPoolExecutor(THREADS) as threads:
        per_class = list(threads.map(below, classes))
    for _, others in per_class:
        left.update(others)
    empty = [name for name, (found, _) in zip(classes, per_class, strict=True) if not found]
    if empty and (all_of_them or len(empty) == len(classes)):
        rule = f"Every class folder in {split} must hold at least one {kind.word}"
        raise UserError(rule, f"none in {some(empty)}", kind.formats)
    names = as_bytes(
        f"{name}{os.sep}{path}" for name, (found, _) in zip(classes, per_class, strict=True) for path in found
    )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found, _ in per_class])
    return kind.make(split, names, labels)
