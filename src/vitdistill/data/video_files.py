"""Videos on disk: one folder per class as for images, or lists as Kinetics and Something-Something come with.

A video is a file, or a folder that holds its frames as images. What trains without labels takes any folder of videos.
"""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import is_image_file

from vitdistill.data.image_folder import HOLD_OUT_EVERY, HOLD_OUT_MOST, TRAIN_NAMES, VAL_NAMES
from vitdistill.data.source import DataSource
from vitdistill.data.video import Video, VideoSet
from vitdistill.data.video_decode import FrameFolder, VideoFile, require_av
from vitdistill.errors import UserError

EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov")
LIST_SUFFIXES = (".csv", ".txt")
FORMATS = "mp4, avi, mkv, webm and mov files and folders of frames are read"
LAYOUT = "Expected <data>/train/<class>/*.mp4 and <data>/val/<class>/*.mp4, or the lists <data>/train.csv and val.csv"
LINE = "A line is 'path label', 'path,label' or 'folder-of-frames count label', with a whole number as label"

UNLABELLED = ["video"]  # the classes of videos without labels
LOOKED_AT = 1000  # files that `has_videos` looks at
# What frames are called when they come out of a video; photos in class folders rarely have such names.
FRAME_NAME = re.compile(r"(img|image|frame)s?[_-]?\d+\.\w+", re.IGNORECASE)
COLUMN = re.compile(r"(.*?\S)(?:\s*,\s*|\s+)([+-]?\d+)")  # what stands before the last whole number, and the number


class FileVideos(VideoSet):
    """The videos of one split: files, folders of frames, or both.

    Paths are held in one array of bytes, which workers share after a fork (see `image_folder.FolderImages`).
    """

    def __init__(self, root: Path, names: np.ndarray, labels: np.ndarray) -> None:
        """
        Args:
            root: the folder that relative paths start from.
            names: paths, bytes as the file system has them, (videos,).
            labels: class numbers, int64, (videos,).
        """
        self.root = str(root)
        self._names, self._labels = names, labels

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[Video, int]:  # type: ignore[override]
        path = self.path(index)
        return (FrameFolder if os.path.isdir(path) else VideoFile)(path), int(self._labels[index])

    def path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self._names[index])))

    @property
    def labels(self) -> list[int]:
        return self._labels.tolist()


def video_files(path: str | Path, *, labels: bool = True, root: str | Path | None = None) -> DataSource:
    """Open videos on disk.

    - A folder with the lists `train.csv` and `val.csv` (or `.txt`; `train_list`, `val_list`; `validation`, `test`), or
      one of these lists itself. Every line names a video and its class number: `path label` or `path,label`, and
      `path count label` for a folder of frames, where the count is not needed. Paths may hold spaces. The training
      list must have every class from 0 on; the other one may lack some. Lists win over folders.
    - A folder with `train/` and `val/` (or `validation/`, `test/`), one folder per class in each, with video files or
      folders of frames at any depth in it. Images directly in a class folder are not taken for a video.

    Without labels, all of the above are opened as ever, and so are lists without labels and any other folder with at
    least two videos. All videos then have label 0 of the one class `video`; where there is no list or folder to
    validate on, 1% of the videos (at least 1, at most 5000) are held out: random, but always the same for the same
    files.

    Args:
        path: the folder, or a list.
        labels: whether the classes are needed.
        root: what relative paths in lists start from; None means the folder of the list.

    Raises:
        UserError: when the folder is missing. With labels, when a split is missing, a class is empty, there are
            fewer than two classes, the classes of the splits differ, or labels of a list do not run from 0 without
            gaps. When a line of a list cannot be read, or videos of it are missing. Without labels, when there are
            fewer than two videos, or none in a split. When there are video files and PyAV is not installed.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError("The data must be an existing folder or list of videos", f"'{path}'", LAYOUT)
    below = None if root is None else Path(root).expanduser()
    source = _from_lists(place, below, labels) if _lists(place)[0] else _from_folders(place, labels)
    if any(not os.path.isdir(videos.path(0)) for videos in (source.train, source.val)):
        require_av()  # here, as the loader would take its absence for unreadable files
    return source


def has_videos(path: str | Path) -> bool:
    """Whether a folder or a list looks like videos rather than images.

    It does when its training list starts with a video, when most of the first 1000 videos and images are videos, or
    when `train/<class>/<clip>/` holds images with names such as `img_00001.jpg` or `frame_1.png`. Other folders of
    frames look like images: open them with `video_files`.

    Args:
        path: the folder or list; need not exist.
    """
    place = Path(path).expanduser()
    train_list, _ = _lists(place)
    if train_list is not None and _lists_videos(train_list):
        return True
    if not place.is_dir():
        return False
    media = (name for _, _, files in _folders(place, ()) for name in files if _is_video(name) or _is_image(name))
    are_videos = [_is_video(name) for name in islice(media, LOOKED_AT)]
    return sum(are_videos) * 2 > len(are_videos) or _has_frame_folders(place)


# --- lists ---------------------------------------------------------------------------------------------------------


def _lists(place: Path) -> tuple[Path | None, Path | None]:
    """The lists to train and to validate on."""
    if place.suffix.lower() in LIST_SUFFIXES and place.is_file():
        others = (place.with_name(place.name.replace("train", name)) for name in VAL_NAMES if "train" in place.stem)
        return place, next((other for other in others if other.is_file()), None)
    return _list_in(place, TRAIN_NAMES), _list_in(place, VAL_NAMES)


def _list_in(folder: Path, names: tuple[str, ...]) -> Path | None:
    candidates = (
        folder / f"{name}{end}{suffix}" for name in names for end in ("", "_list") for suffix in LIST_SUFFIXES
    )
    return next((file for file in candidates if file.is_file()), None)


def _lists_videos(file: Path) -> bool:
    """Whether the first line of a list names a video file or an existing folder."""
    for _, line in _lines(file):
        paths = list(_paths_in(line))
        return any(_is_video(path) or (file.parent / path).is_dir() for path in paths)
    return False


def _from_lists(place: Path, root: Path | None, labels: bool) -> DataSource:
    train_file, val_file = _lists(place)
    assert train_file is not None
    name = (place if place.is_dir() else place.parent).resolve().name
    if labels:
        return _labelled_lists(name, train_file, val_file, root)
    try:
        return _labelled_lists(name, train_file, val_file, root)
    except UserError:
        pass  # what is wrong with the labels does not matter here; all else is found again
    train = _names_in(train_file, root or train_file.parent)
    if val_file is None:
        train, val = _hold_out(train, str(train_file))
    else:
        val = _names_in(val_file, root or val_file.parent)
    return DataSource(
        name,
        _without_labels(root or train_file.parent, train),
        _without_labels(root or (val_file or train_file).parent, val),
        UNLABELLED.copy(),
    )


def _labelled_lists(name: str, train_file: Path, val_file: Path | None, root: Path | None) -> DataSource:
    if val_file is None:
        raise UserError(f"Next to {train_file} there must be a list to validate on", "none", LAYOUT)
    train, val = _labelled_list(train_file, root), _labelled_list(val_file, root)
    classes = sorted(set(train.labels))
    if classes != list(range(len(classes))):
        missing = sorted(set(range(classes[-1] + 1)) - set(classes))
        problem = f"the label {classes[0]}" if classes[0] < 0 else f"no label {_some(missing)} below {classes[-1]}"
        raise UserError(f"Labels in {train_file} must run from 0 without gaps", problem, "Number the classes anew")
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only label 0 in {train_file}")
    if unknown := sorted(set(val.labels) - set(classes)):
        raise UserError(
            f"Labels in {val_file} must be among the 0 to {classes[-1]} of {train_file.name}", _some(unknown)
        )
    return DataSource(name, train, val, [str(label) for label in classes])


def _labelled_list(file: Path, root: Path | None) -> FileVideos:
    base = root or file.parent
    names, labels = [], []
    for number, line in _lines(file):
        if (match := COLUMN.fullmatch(line)) is None:
            raise UserError(f"Every line of {file} must name a video and its label", f"line {number}: '{line}'", LINE)
        names.append(_existing(base, [match[1], *_without_last_number(match[1])]))
        labels.append(int(match[2]))
    _check_names(names, file)
    return FileVideos(base, _bytes(path for path, _ in names), np.array(labels, dtype=np.int64))


def _names_in(file: Path, base: Path) -> np.ndarray:
    """The paths of a list, labels or not, as sorted bytes."""
    names = [_existing(base, list(_paths_in(line))) for _, line in _lines(file)]
    _check_names(names, file)
    return np.unique(_bytes(path for path, _ in names))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _paths_in(line: str) -> Iterator[str]:
    """What may be the path in a line: all of it, or what comes before one or two whole numbers."""
    yield line
    for path in _without_last_number(line):
        yield path
        yield from _without_last_number(path)


def _without_last_number(text: str) -> list[str]:
    match = COLUMN.fullmatch(text)
    return [] if match is None else [match[1]]


def _existing(base: Path, candidates: list[str]) -> tuple[str, bool]:
    """The first candidate that exists, else the one that looks most like a path, and whether it exists."""
    candidates = [path.strip("\"'") for path in candidates]
    for path in candidates:
        if os.path.exists(os.path.join(base, path)):
            return path, True
    return next((path for path in candidates if _is_video(path)), candidates[-1]), False


def _check_names(names: list[tuple[str, bool]], file: Path) -> None:
    if not names:
        raise UserError(f"The list {file} must name at least one video", "none", LINE)
    missing = [path for path, exists in names if not exists]
    if missing:
        shown = ", ".join(repr(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"All videos that {file} names must exist",
            f"{len(missing)} of {len(names)} missing: {shown}",
            f"Paths start from {file.parent} unless another root is given",
        )


# --- folders -------------------------------------------------------------------------------------------------------


def _from_folders(root: Path, labels: bool) -> DataSource:
    if not root.is_dir():
        raise UserError(f"A list of videos must end in {' or '.join(LIST_SUFFIXES)}", f"'{root}'", LAYOUT)
    if labels:
        return _labelled_folders(root)
    splits = (_first(root, TRAIN_NAMES), _first(root, VAL_NAMES))
    # A video beside the class folders has no class: reading the folder as a labelled one would leave it out.
    if all(split is not None and not any(map(_is_video, os.listdir(split))) for split in splits):
        try:
            return _labelled_folders(root)
        except UserError:
            pass
    return _unlabelled_folders(root)


def _labelled_folders(root: Path) -> DataSource:
    train, val = _split_folder(root, TRAIN_NAMES), _split_folder(root, VAL_NAMES)
    classes, val_classes = _class_names(train), _class_names(val)
    if len(classes) < 2:
        raise UserError("Training needs at least two classes", f"only '{classes[0]}' in {train}", LAYOUT)
    if classes != val_classes:
        only_train, only_val = sorted(set(classes) - set(val_classes)), sorted(set(val_classes) - set(classes))
        raise UserError(
            f"{train} and {val} must have the same class folders",
            f"{_some(only_train)} only in {train.name}, {_some(only_val)} only in {val.name}",
            "Remove or rename the folders that differ",
        )
    return DataSource(root.resolve().name, _videos(train, classes), _videos(val, classes), classes)


def _videos(split: Path, classes: list[str]) -> FileVideos:
    per_class = [sorted(_videos_below(split / name)) for name in classes]
    empty = [name for name, videos in zip(classes, per_class, strict=True) if not videos]
    if empty:
        raise UserError(
            f"Every class folder in {split} must hold at least one video", f"none in {_some(empty)}", FORMATS
        )
    names = [os.path.join(name, video) for name, videos in zip(classes, per_class, strict=True) for video in videos]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(videos) for videos in per_class])
    return FileVideos(split, _bytes(names), labels)


def _unlabelled_folders(root: Path) -> DataSource:
    train_root, val_root = _first(root, TRAIN_NAMES) or root, _first(root, VAL_NAMES)
    # Without train/, the other splits lie among the training videos, and must not be trained on.
    train = np.sort(_bytes(_videos_below(train_root, leave_out=VAL_NAMES if train_root == root else ())))
    if val_root is None:
        val_root = train_root
        train, val = _hold_out(train, str(train_root))
    else:
        val = np.sort(_bytes(_videos_below(val_root)))
        outside = f" outside {val_root.name}/" if train_root == root else ""
        _check_not_empty(train, f"{train_root} must hold at least one video{outside} to train on")
        _check_not_empty(val, f"{val_root} must hold at least one video to validate on")
    return DataSource(
        root.resolve().name, _without_labels(train_root, train), _without_labels(val_root, val), UNLABELLED.copy()
    )


def _videos_below(root: Path, leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    """Video files and folders of frames below a folder, relative to it; images directly in it are no video."""
    for below, folders, files in _folders(root, leave_out):
        if below and any(map(_is_image, files)):
            folders.clear()
            yield below
        yield from (os.path.join(below, name) for name in files if _is_video(name))


def _folders(root: Path, leave_out: tuple[str, ...]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, but relative to `root`, sorted, through links (each folder once), and without hidden folders.

    Args:
        root: the folder.
        leave_out: folders directly in it that are not entered.
    """
    entered: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # links may lead round in a circle
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below = "" if folder == str(root) else os.path.relpath(folder, root)
        not_wanted = () if below else leave_out
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in not_wanted)
        yield below, folders, sorted(files)


def _has_frame_folders(root: Path) -> bool:
    """Whether `train/<class>/<clip>/` holds numbered frames, and `train/<class>/` no image."""
    if (train := _first(root, TRAIN_NAMES)) is None:
        return False
    for below, folders, files in _folders(train, ()):
        depth = len(Path(below).parts)
        images = [name for name in files if _is_image(name)]
        if images:
            return depth == 2 and all(FRAME_NAME.fullmatch(name) for name in images)
        if depth >= 2:
            folders.clear()
    return False


def _class_names(split: Path) -> list[str]:
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{split} must hold one folder per class", "no folder in it", LAYOUT)
    return names


def _split_folder(root: Path, names: tuple[str, ...]) -> Path:
    if (folder := _first(root, names)) is not None:
        return folder
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    raise UserError(
        f"The data folder {root} must hold a folder {' or '.join(repr(name) for name in names)}, or lists",
        f"the folders {_some(found)}" if found else "no folder in it",
        LAYOUT,
    )


# --- both ----------------------------------------------------------------------------------------------------------


def _hold_out(names: np.ndarray, place: str) -> tuple[np.ndarray, np.ndarray]:
    """The names of the training videos, and of those held out for validation; as `image_folder` does."""
    if len(names) < 2:
        found = "none" if not len(names) else f"only '{os.fsdecode(bytes(names[0]))}'"
        raise UserError("At least two videos are needed, one to validate on", f"{found} in {place}", FORMATS)
    count = min(max(len(names) // HOLD_OUT_EVERY, 1), HOLD_OUT_MOST)
    held_out = np.zeros(len(names), dtype=bool)
    held_out[np.random.RandomState(0).permutation(len(names))[:count]] = True
    return names[~held_out], names[held_out]


def _without_labels(root: Path, names: np.ndarray) -> FileVideos:
    return FileVideos(root, names, np.zeros(len(names), dtype=np.int64))


def _check_not_empty(names: np.ndarray, rule: str) -> None:
    if not len(names):
        raise UserError(rule, "none", FORMATS)


def _bytes(names: Iterable[str]) -> np.ndarray:
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that is a folder in `root`."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def _is_video(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not os.path.basename(path).startswith(".")


def _is_image(path: str) -> bool:
    return is_image_file(path) and not os.path.basename(path).startswith(".")


def _some(names: Iterable[object], shown: int = 3) -> str:
    """Up to three names in the order given, e.g. "'a', 'b', 'c' and 2 more"."""
    ordered = list(names)
    text = ", ".join(repr(name) for name in ordered[:shown]) or "none"
    return text if len(ordered) <= shown else f"{text} and {len(ordered) - shown} more"
