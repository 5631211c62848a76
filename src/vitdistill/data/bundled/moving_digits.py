"""Bundled clips: real scans of handwritten digits in synthetic motion, rendered frame by frame as they are read.

Real: the digits, scikit-learn's 8x8 scans (UCI optical digits) in the split of `digits.py`, so no scan of the
validation clips is seen in training. No scan is resampled: a frame shows its pixels as they are, at whole positions.
Synthetic: the motion. The canvas wraps around, and a clip starts anywhere on it, whatever its motion. In every single
frame the digit's position is therefore uniform on the canvas for every motion: one frame never shows the motion.

There are two tasks on the same clips: which digit (spatial, one frame is enough) and which motion (temporal).
Flipping or reversing a clip, or skipping some of its frames, turns a motion into another one.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from vitdistill.data.bundled.digits import DIGIT
from vitdistill.data.bundled.digits import digits as still_digits
from vitdistill.data.clips.samples import VideoSamples
from vitdistill.data.clips.stream import require_av
from vitdistill.data.clips.video import Video
from vitdistill.data.samples import Samples, digest_of
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, near

FRAMES = 16
CANVAS = 16  # height and width of a frame, in pixels: 8x4x4 tokens for tubelets of 2 frames and patches of 4 pixels
FILE_RATE = 8  # frames per second of written files; nothing else has a clock

Task = Literal["digit", "motion"]
DIGITS = tuple("0123456789")
# Rows (downwards) and columns per frame. One pixel per frame is also the speed along the circle.
VELOCITY = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "fast_left": (0, -2),
    "fast_right": (0, 2),
    "still": (0, 0),
}
TURN = {"clockwise": 1, "anticlockwise": -1}  # one round in `FRAMES` frames
JITTER = "jitter"  # at most one pixel off its place, anew in every frame
MOTIONS = (*VELOCITY, *TURN, JITTER)  # as many as digits, so that chance is the same in both tasks
CLASSES: dict[str, tuple[str, ...]] = {"digit": DIGITS, "motion": MOTIONS}


def positions(motion: str, random: np.random.RandomState) -> Int64[np.ndarray, "frames 2"]:
    """Where the digit is in every frame: uniform on the canvas in each, as the start is uniform and independent.

    Args:
        motion: one of `MOTIONS`.
        random: start, phase on the circle and jitter are drawn from it.

    Returns:
        Row and column of the scan's top left corner, 0 to `CANVAS` - 1.
    """
    # Before rounding, so that circles do not all round alike.
    start = random.uniform(0, CANVAS, size=2)
    return np.floor(start + _offsets(motion, random)).astype(np.int64) % CANVAS


def _offsets(motion: str, random: np.random.RandomState) -> np.ndarray:
    """(frames, 2) pixels from the start."""
    time = np.arange(FRAMES)
    if motion in VELOCITY:
        return time[:, None] * np.array(VELOCITY[motion])
    if motion in TURN:
        angle = 2 * np.pi * (random.uniform() + TURN[motion] * time / FRAMES)
        radius = FRAMES / (2 * np.pi)  # one pixel per frame
        return radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return random.randint(-1, 2, size=(FRAMES, 2))


class MovingDigit(Video):
    """A clip of `FRAMES` frames: one scan, white on black, on a canvas that wraps around."""

    def __init__(self, scan: UInt8[np.ndarray, "8 8"], places: Int64[np.ndarray, "frames 2"]) -> None:
        """
        Args:
            scan: the digit, ink is 255.
            places: row and column of its top left corner in every frame, see `positions`.
        """
        self._scan, self._places = scan, places

    @property
    def length(self) -> int:
        return len(self._places)

    def read(self, frames: Sequence[int], short_side: int | None = None) -> UInt8[np.ndarray, "t height width 3"]:
        """Render some frames.

        Args:
            frames: numbers from 0 to `length` - 1; repeats are allowed.
            short_side: height and width of a frame in pixels; pixels are repeated, or averaged where it is smaller
                than the canvas. None keeps the canvas.

        Raises:
            IndexError: when a frame is not in the clip.
        """
        numbers = np.asarray(frames, dtype=np.int64)
        if ((numbers < 0) | (numbers >= self.length)).any():
            raise IndexError(f"Frames are 0 to {self.length - 1}; got {list(frames)}")
        canvas = np.zeros((CANVAS, CANVAS), dtype=np.uint8)
        canvas[:DIGIT, :DIGIT] = self._scan
        side = short_side or CANVAS
        # What a pixel of a frame shows: the canvas, rolled to the digit's place.
        seen = (_repeated(side) - self._places[numbers][:, :, None]) % CANVAS
        grey = canvas[seen[:, 0, :, None], seen[:, 1, None, :]]
        return np.repeat((_averaged(grey, side) if side < CANVAS else grey)[..., None], 3, axis=3)


@cache
def _repeated(side: int) -> np.ndarray:
    """Which row (or column) of the canvas each row of a frame of that size shows: a box filter upwards repeats pixels.

    Taken from Pillow's filter, so that repeated pixels and averaged ones go by the same rules.
    """
    ramp = np.arange(CANVAS, dtype=np.uint8)[None].repeat(CANVAS, axis=0)
    side = max(side, CANVAS)
    return np.asarray(Image.fromarray(ramp).resize((side, side), Image.Resampling.BOX))[0].astype(np.int64)


def _averaged(grey: np.ndarray, side: int) -> np.ndarray:
    """Frames (t, height, width) at a smaller size, by a box filter."""
    resized = [np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX)) for frame in grey]
    return np.array(resized, dtype=np.uint8).reshape(-1, side, side)  # also when there are none


class MovingDigits(VideoSamples):
    """Every scan of a set in motion: clip i shows scan i modulo their number.

    The motions are dealt out in turn to the scans of each digit, so every digit comes with every motion, equally
    often (give or take one), and a scan with several clips has different motions in them (up to ten).
    The same index is the same clip, whatever the task and the number of clips per scan.
    """

    clip_frames = FRAMES
    in_memory = True  # nothing is read from disk, and a clip is the same whenever it is rendered

    def __init__(self, scans: Samples, task: Task, *, clips_per_scan: int, seed: tuple[int, ...]) -> None:
        """
        Args:
            scans: one part of the source `digits`.
            task: which label to hand out.
            clips_per_scan: how many clips show each scan.
            seed: with the index, it decides where a clip starts.
        """
        self._scans = np.stack([_scan(scans, number) for number in range(len(scans))])
        self._names = [scans.path(number) for number in range(len(scans))]
        assert scans.labels is not None
        self._digits = scans.labels
        self._turns = ranks(self._digits)
        self._task = task
        # RandomState's streams are frozen, so clips are the same under every version of numpy.
        random = np.random.RandomState(seed)
        self._places = [positions(self.motion(index), random) for index in range(clips_per_scan * len(scans))]

    def __len__(self) -> int:
        return len(self._places)

    def load(self, index: int) -> tuple[Video, int]:
        return MovingDigit(self._scans[index % len(self._scans)], self._places[index]), self._label(index)

    def path(self, index: int) -> str:
        return f"moving_{self._names[index % len(self._names)]}/{self.motion(index)}"

    @property
    def labels(self) -> list[int]:
        return [self._label(index) for index in range(len(self))]

    def digest(self) -> str:
        return digest_of(self._scans.tobytes(), np.stack(self._places).tobytes(), np.array(self.labels).tobytes())

    def motion(self, index: int) -> str:
        """The motion of a clip, whatever the task."""
        return MOTIONS[self._motion(index)]

    def _motion(self, index: int) -> int:
        again, scan = divmod(index, len(self._scans))
        return (self._turns[scan] + again) % len(MOTIONS)

    def _label(self, index: int) -> int:
        return self._motion(index) if self._task == "motion" else self._digits[index % len(self._digits)]


def _scan(scans: Samples, number: int) -> np.ndarray:
    """The scan itself (8, 8), cut out of the middle of its image."""
    image = scans.load(number)[0].getchannel("R")
    margin = (image.width - DIGIT) // 2
    return np.asarray(image)[margin : margin + DIGIT, margin : margin + DIGIT]


def ranks(labels: Sequence[int]) -> list[int]:
    """For every item, how many earlier ones have its label."""
    seen: Counter[int] = Counter()
    result = []
    for label in labels:
        result.append(seen[label])
        seen[label] += 1
    return result


@cache
def moving_digits(task: Task = "digit", *, clips_per_scan: int = 1, seed: int = 0) -> DataSource:
    """Open the moving digits: 1437 clips to train on and 360 to validate on, times `clips_per_scan`.

    The scans are real, their motion is synthetic (see the top of this file). Both tasks have ten classes and the same
    clips: `DIGITS`, or `MOTIONS`. A single frame says nothing of the motion, and opposite motions differ in nothing
    but the order of their frames.

    Args:
        task: what the label is: "digit", the source `moving_digits`, or "motion", the source `moving_digits:motion`.
        clips_per_scan: clips of each scan, in different motions while there are any left.
        seed: decides where clips start.

    Raises:
        UserError: when there is no such task, when there would be no clips, or when scikit-learn, which carries the
            scans, is not installed.
    """
    if task not in CLASSES:
        raise UserError(f"The task must be one of: {', '.join(CLASSES)}", f"'{task}'", near(task, CLASSES))
    if clips_per_scan < 1:
        raise UserError("There must be at least one clip per scan", clips_per_scan)
    scans = still_digits()
    return DataSource(
        name="moving_digits" if task == "digit" else f"moving_digits:{task}",
        # Different streams, so that no validation clip moves as a training clip does.
        train=MovingDigits(scans.train, task, clips_per_scan=clips_per_scan, seed=(seed, 0)),
        val=MovingDigits(scans.val, task, clips_per_scan=clips_per_scan, seed=(seed, 1)),
        classes=list(CLASSES[task]),
        image_size=CANVAS,
        frames=FRAMES,
    )


def write_mp4(
    folder: str | Path,
    task: Task = "digit",
    *,
    train: int | None = None,
    val: int | None = None,
    size: int = 64,
    clips_per_scan: int = 1,
    seed: int = 0,
) -> Path:
    """Write clips as H.264 files: `train/<class>/*.mp4`, `val/<class>/*.mp4`, and lists `train.csv` and `val.csv`.

    A list has one `path label` per line, as the lists of Kinetics; paths are relative to the folder.
    A part of the clips is taken from all classes in turn, so any 10 clips show all classes.

    Args:
        folder: where to; it must not exist, or be empty.
        task: which label sorts the clips into folders.
        train: number of training clips; None means all.
        val: number of validation clips; None means all.
        size: height and width of a frame in pixels, a multiple of 16 so that pixels are only repeated.
        clips_per_scan: as for `moving_digits`.
        seed: as for `moving_digits`.

    Returns:
        The folder.

    Raises:
        UserError: when PyAV is not installed, when the folder holds anything, or when size or numbers cannot be.
    """
    av = require_av("Writing video files")
    source = moving_digits(task, clips_per_scan=clips_per_scan, seed=seed)
    if size < CANVAS or size % CANVAS:
        raise UserError(f"The size must be a multiple of {CANVAS} pixels", size)
    parts = {"train": (source.train, train), "val": (source.val, val)}
    chosen = {part: _in_turn(part, clips, count) for part, (clips, count) in parts.items()}
    root = Path(folder).expanduser()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError("The folder to write clips to must be new or empty", f"'{root}'", "Name another one")
    for part, (clips, _) in parts.items():
        lines = [_write_clip(av, root, part, clips, index, source.classes, size) for index in chosen[part]]
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def _in_turn(part: str, clips: Samples, count: int | None) -> list[int]:
    """The first clips when classes take turns."""
    count = len(clips) if count is None else count
    if not 1 <= count <= len(clips):
        raise UserError(f"There are 1 to {len(clips)} clips to write for {part}", count)
    labels = clips.labels
    assert labels is not None
    turns = ranks(labels)
    return sorted(range(len(clips)), key=lambda index: (turns[index], labels[index]))[:count]


def _write_clip(av: Any, root: Path, part: str, clips: Samples, index: int, classes: list[str], size: int) -> str:
    """Write one clip; returns its line in the list."""
    video, label = clips.load(index)
    assert isinstance(video, Video) and label is not None
    file = Path(part, classes[label], f"{index:05d}.mp4")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    _encode(av, root / file, video.read(range(video.length), size))
    return f"{file.as_posix()} {label}"


def _encode(av: Any, file: Path, frames: UInt8[np.ndarray, "t height width 3"]) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FILE_RATE, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # starting threads takes longer than encoding
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
