"""Videos on disk: one folder per class as for images, or lists as Kinetics and Something-Something come with.

A video is a file, or a folder that holds its frames as images. What trains without labels takes any folder of videos.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Set
from itertools import islice
from pathlib import Path

from vitdistill.data.clips.decode import VideoFile
from vitdistill.data.clips.frame_folder import FrameFolder
from vitdistill.data.clips.lists import LIST_SUFFIXES, find_lists, labelled_lists, names_any, unlabelled_lists
from vitdistill.data.clips.repeated import warn_of_repeated
from vitdistill.data.clips.samples import VideoSamples
from vitdistill.data.clips.stream import require_av
from vitdistill.data.clips.video import Video
from vitdistill.data.folders import (
    TRAIN_NAMES,
    FileSamples,
    Kind,
    first_folder,
    has_classes,
    is_image,
    labelled,
    labelled_if_possible,
    unlabelled,
)
from vitdistill.data.images.decode import HEIF_SUFFIXES
from vitdistill.data.labels_csv import by_table, find_table
from vitdistill.data.left_out import say_once, suffix
from vitdistill.data.media import is_video, walk
from vitdistill.data.samples import Samples
from vitdistill.data.source import DataSource
from vitdistill.data.tables import begins_as_table
from vitdistill.errors import UserError

LOOKED_AT = 1000  # files that `has_videos` looks at
# What frames are called when they come out of a video; photos in class folders rarely have such names.
FRAME_NAME = re.compile(r"(img|image|frame)s?[_-]?\d+\.\w+", re.IGNORECASE)


class FileVideos(FileSamples, VideoSamples):
    """The videos of one split: files, folders of frames, or both."""

    def load(self, index: int) -> tuple[Video, int | None]:
        path = self.path(index)
        return (FrameFolder if os.path.isdir(path) else VideoFile)(path), self.label(index)


def video_files(path: str | Path, *, labels: bool = True, root: str | Path | None = None) -> DataSource:
    """Open videos on disk.

    - A folder with the lists `train.csv` and `val.csv` (or `.txt`; `train_list`, `val_list`; `validation`, `test`), or
      one of these lists itself. Every line names a video and its class number: `path label` or `path,label`, and
      `path count label` for a folder of frames, where the count is not needed. Paths may hold spaces. The training
      list must have every class from 0 on; the other one may lack some. Lists win over folders.
    - A table of paths and class names in their place, see `labels_csv.by_table`, or beside the videos.
    - A folder with `train/` and `val/` (or `validation/`, `test/`), one folder per class in each, with video files or
      folders of frames at any depth in it. Images directly in a class folder are not taken for a video.

    Without labels, all of the above are opened as ever, and so are lists without labels and any other folder with at
    least two videos. Those have no labels, and the source no classes; where there is no list or folder to validate on,
    1% of the videos (at least 1, at most 5000) are held out: random, but always the same for the same files.

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
        raise UserError("The data must be an existing folder or list of videos", f"'{path}'", VIDEOS.layout)
    below = None if root is None else Path(root).expanduser()
    lists = find_lists(place)
    table = _table(place, lists.train, labels)
    if table is not None:
        source = by_table(table, VIDEOS, labels=labels, root=below)
    elif lists.train is not None or (lists.val is not None and place.is_file()):
        source = labelled_lists(lists, below, VIDEOS) if labels else unlabelled_lists(lists, below, VIDEOS)
    elif not place.is_dir():
        raise UserError(f"A list of videos must end in {' or '.join(LIST_SUFFIXES)}", f"'{place}'", VIDEOS.layout)
    else:
        source = labelled(place, VIDEOS) if labels else labelled_if_possible(place, VIDEOS) or unlabelled(place, VIDEOS)
    return ready(source)


def ready(source: DataSource) -> DataSource:
    """A source of videos, once it is known that they can be read, and said which are under two labels or splits.

    Raises:
        UserError: when there are video files and PyAV is not installed.
    """
    if any(_holds_a_file(videos) for videos in (source.train, source.val)):
        require_av()  # here, as the loader would take its absence for unreadable files
    warn_of_repeated(source)
    return source


def _table(place: Path, listed: Path | None, labels: bool) -> Path | None:
    """The table of labels in place of a list; or, where labels are needed, that beside videos without class folders."""
    if listed is not None:
        return listed if begins_as_table(listed, is_video) else None
    return find_table(place) if labels and place.is_dir() and not has_classes(place) else None


def has_videos(path: str | Path) -> bool:
    """Whether a folder or a list looks like videos rather than images.

    It does when its training list names a video, when at least half of the first 1000 videos and images are videos
    (stills of these videos not counted), or when `train/<class>/<clip>/` holds images with names such as
    `img_00001.jpg` or `frame_1.png`. Other folders of frames look like images: open them with `video_files`. A list
    looks like videos unless it names images. Where there are both, one line says what the folder was taken for.

    Args:
        path: the folder or list; need not exist.
    """
    place = Path(path).expanduser()
    lists = find_lists(place)
    if place.is_file():
        return any(file is not None for file in lists) and not names_any(place, is_image)
    if lists.train is not None and names_any(lists.train, is_video, folders=True):
        return True
    if not place.is_dir():
        return False
    files = (name for _, _, files in walk(place) for name in files if is_video(name) or is_image(name))
    media = list(islice(files, LOOKED_AT))
    if not media:
        return lists.train is not None  # which is empty, or names only what is missing: to be said by its reader
    videos = [name for name in media if is_video(name)]
    images = [name for name in media if not is_video(name)]
    known = set(map(stem, videos))
    others = [name for name in images if not shows_one_of(known, name)]
    if not videos or not images:
        return bool(videos) or _has_frame_folders(place)
    taken = len(videos) >= len(others) or _has_frame_folders(place)
    stills = f", {len(images) - len(others)} of them stills of the videos" if len(others) < len(images) else ""
    first = f"of the first {LOOKED_AT}, " if len(media) == LOOKED_AT else ""
    say_once(
        f"{place} is taken for a folder of {'videos' if taken else 'images'}: {first}{len(videos)} videos and "
        f"{len(images)} images{stills}. Keep them apart to train on the others"
    )
    return taken


def stem(name: str) -> str:
    """A file's name without folder and suffix, in lower case."""
    return os.path.splitext(os.path.basename(name))[0].lower()


def shows_one_of(videos: Set[str], image: str) -> bool:
    """Whether an image is a still of a video, by its name: that of the video with something before or behind.

    A HEIC picture is none: telephones write these with a short video of the same name.

    Args:
        videos: their stems.
        image: its file name.

    Example:
        >>> shows_one_of({"clip1"}, "clip1.jpg"), shows_one_of({"clip1"}, "thumb_clip1.png")
        (True, True)
        >>> shows_one_of({"clip1"}, "clip10.jpg"), shows_one_of({"clip1"}, "clip1.heic")
        (False, False)
    """
    if not videos or os.path.splitext(image)[1].lower() in HEIF_SUFFIXES:
        return False
    text = stem(image)
    bounds = [match.span() for match in re.finditer(r"[\W_]+", text)]
    return any(part in videos for start, end in bounds for part in (text[:start], text[end:])) or text in videos


def _holds_a_file(videos: Samples) -> bool:
    paths = (videos.path(index) for index in range(len(videos)))
    return not os.path.isdir(videos.path(0)) or any(map(is_video, paths))


def _videos_below(root: Path, leave_out: tuple[str, ...], left: Counter[str]) -> list[str]:
    """Video files and folders of frames below a folder, relative to it; images directly in it are no video."""
    return sorted(_walked(root, leave_out, left))


def _walked(root: Path, leave_out: tuple[str, ...], left: Counter[str]) -> Iterator[str]:
    stems: dict[str, set[str]] = {}  # of the videos in each folder
    for below, folders, files in walk(root, leave_out):
        videos = [name for name in files if is_video(name)]
        stems[below] = set(map(stem, videos))
        known = stems[below] | stems.get(os.path.dirname(below), set())
        images = [name for name in files if is_image(name) and not shows_one_of(known, name)]
        # Images beside videos, or with the names of videos in the folder above, are stills of these and no frames.
        if below and images and not videos:
            folders.clear()
            yield below
        else:
            left.update(suffix(name) for name in files if not is_video(name))
        yield from (os.path.join(below, name) for name in videos)


def _has_frame_folders(root: Path) -> bool:
    """Whether `train/<class>/<clip>/` holds numbered frames, and `train/<class>/` no image."""
    if (train := first_folder(root, TRAIN_NAMES)) is None:
        return False
    for below, folders, files in walk(train):
        depth = len(Path(below).parts)
        images = [name for name in files if is_image(name)]
        if images:
            return depth == 2 and all(FRAME_NAME.fullmatch(name) for name in images)
        if depth >= 2:
            folders.clear()
    return False


VIDEOS = Kind(
    word="video",
    is_sample=is_video,
    below=_videos_below,
    make=FileVideos,
    layout=(
        "Expected <data>/train/<class>/*.mp4 and <data>/val/<class>/*.mp4, or the lists <data>/train.csv and val.csv"
    ),
    formats="files of FFmpeg's formats (mp4, mov, mkv, webm, avi, wmv, mpg, ts, ...) and folders of frames are read",
    otherwise=", or lists",
    folders=True,
)
