"""AVA's csv formats: who does what, where and when.

Gu et al., "AVA: A Video Dataset of Spatio-temporally Localized Atomic Visual Actions", CVPR 2018. A key frame is one
second of one video. A row is one box in it; a person who does several things at once has several rows with the same
box. Boxes are x1, y1, x2, y2 as shares of the frame's width and height; action ids count from 1.
"""

import csv
import io
import math
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Bool, Float, Int

from vitdistill.errors import UserError

KeyFrameName = tuple[str, int]  # video id, second
Numbers = dict[KeyFrameName, int]  # key frames as numbers, the same in all files that are read with it

TRUTH = "video_id,middle_frame_timestamp,x1,y1,x2,y2,action_id,person_id"
DETECTION = "video_id,timestamp,x1,y1,x2,y2,,score"
EXCLUDED = "video_id,timestamp"
LABELS = 'item { name: "..." id: 1 }, or in a csv file label_id,label_name'
TIME_NAMES = ("timestamp", "middle_frame_timestamp")  # of the second column, where a file begins with a header
LIMITS = (-1.0, 2.0)  # detectors overshoot the frame a little; coordinates beyond these are pixels
# Both of the official spellings: item { name id } and label { name label_id label_type }.
ITEM = re.compile(r"""(?:item|label)\s*\{((?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^{}"'])*)\}""")
COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
NAME = re.compile(r"""\bname:\s*(["'])(.*?)(?<!\\)\1""")
NUMBER = re.compile(r"\b(?:label_)?id:\s*(\d+)")


@dataclass(frozen=True)
class Rows:
    """Boxes with an action each.

    Attributes:
        frame: number of the key frame.
        box: x1, y1, x2, y2 as shares of width and height.
        action: id; 0 where there is none.
        score: 0 to 1; 1 for what is annotated.
    """

    frame: Int[np.ndarray, "n"]
    box: Float[np.ndarray, "n 4"]
    action: Int[np.ndarray, "n"]
    score: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.frame)

    def pick(self, chosen: Bool[np.ndarray, "n"] | Int[np.ndarray, "m"]) -> "Rows":
        """Some of the rows, by a mask or by their numbers."""
        return Rows(self.frame[chosen], self.box[chosen], self.action[chosen], self.score[chosen])

    def without(self, frames: Collection[int]) -> "Rows":
        """The rows of all other key frames."""
        return self.pick(~np.isin(self.frame, list(frames)))


def read_truth(path: str | Path, numbers: Numbers, actions: Collection[int] | None = None) -> Rows:
    """Read annotations: `video_id,middle_frame_timestamp,x1,y1,x2,y2,action_id[,person_id]`, with or without a header.

    Rows without a box (AVA-Kinetics has them for key frames without a person) are left out.

    Args:
        path: the csv file.
        numbers: of key frames; new ones are added.
        actions: the ids that may occur; None allows any from 1 on.

    Raises:
        UserError: naming file and line, for a row that is no such row, and for an id that is not among the actions.
    """
    return _read(path, numbers, lambda fields: _truth(fields, actions), TRUTH)


def read_detections(path: str | Path, numbers: Numbers, threshold: float) -> Rows:
    """Read boxes that a person detector found: `video_id,timestamp,x1,y1,x2,y2,[action_id,]score`.

    The action, where one is given, is ignored. The same box twice in a key frame counts once, see `KeyFrames`.

    Args:
        path: the csv file.
        numbers: of key frames; new ones are added.
        threshold: boxes with a lower score are left out.

    Raises:
        UserError: naming file and line, for a row that is no such row.
    """
    found = _read(path, numbers, _detection, DETECTION)
    return found.pick(found.score >= threshold)


def read_excluded(path: str | Path) -> set[KeyFrameName]:
    """Read key frames that do not count: `video_id,timestamp`.

    Raises:
        UserError: naming file and line, for a row that is no such row.
    """
    excluded = set()
    for line, fields in _lines(path):
        try:
            excluded.add(_key(fields))
        except (ValueError, IndexError) as error:
            raise _malformed(path, line, fields, EXCLUDED) from error
    return excluded


def read_labels(path: str | Path) -> dict[int, str]:
    """Read a label map: AVA's pbtxt (both spellings), or csv with an id and a name (and more columns) in every line.

    Returns:
        Names by id, in the order of the ids.

    Raises:
        UserError: when there is none, or an id stands twice.
    """
    pairs = _csv_labels(path) if Path(path).suffix.lower() == ".csv" else _pbtxt_labels(path)
    ids = [number for number, _ in pairs]
    if not ids or min(ids) < 1 or len(set(ids)) < len(ids):
        twice = sorted(number for number in set(ids) if ids.count(number) > 1 or number < 1)
        got = f"{path} with {'none' if not ids else 'the id ' + str(twice[0]) + ' not once or below 1'}"
        raise UserError("A label map must name actions, with ids from 1 on, each once", got, f"A label is {LABELS}")
    return dict(sorted(pairs))


def write_predictions(path: Path, rows: Rows, names: Mapping[int, KeyFrameName]) -> None:
    """Write scored boxes as AVA submissions are: `video_id,timestamp,x1,y1,x2,y2,action_id,score`, without a header.

    Args:
        path: the csv file.
        rows: what to write.
        names: of key frames, by their numbers.
    """
    from vitdistill.files import write_atomically

    def lines() -> Iterator[list[object]]:
        for frame, box, action, score in zip(rows.frame.tolist(), rows.box, rows.action, rows.score, strict=True):
            video, second = names[frame]
            yield [video, f"{second:04d}", *(f"{edge:.9g}" for edge in box), action, f"{score:.9g}"]

    def write(file: IO[bytes]) -> None:
        # Names come back as they were read: quoted where they hold a comma, and byte by byte.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        csv.writer(text, lineterminator="\n").writerows(lines())
        text.detach()

    write_atomically(path, write)


# --- rows ----------------------------------------------------------------------------------------------------------

Row = tuple[list[float], int, float]  # box, action, score


def _read(path: str | Path, numbers: Numbers, parse: Callable[[list[str]], Row | None], form: str) -> Rows:
    # Arrays and not lists of tuples: AVA's training file has more than 800,000 rows.
    frames, boxes, actions, scores = array("q"), array("d"), array("q"), array("d")
    for line, fields in _lines(path):
        try:
            key, row = _key(fields), parse(fields)
        except UserError as error:
            raise UserError(f"{error} (line {line} of {path})") from error
        except (ValueError, IndexError) as error:
            raise _malformed(path, line, fields, form) from error
        if row is None:
            continue
        frames.append(numbers.setdefault(key, len(numbers)))
        boxes.extend(row[0])
        actions.append(row[1])
        scores.append(row[2])
    return Rows(
        np.array(frames, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(actions, dtype=np.int64),
        np.array(scores, dtype=np.float64),
    )


def _lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers; a header is left out."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader, first = csv.reader(file), True
            for fields in reader:
                fields = [field.strip() for field in fields]
                if not any(fields):
                    continue
                is_header = first and len(fields) > 1 and fields[1].lower() in TIME_NAMES
                first = False
                if not is_header:
                    yield reader.line_num, fields
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError("A file in an AVA format must be readable", f"'{path}' ({reason})") from error


def _key(fields: list[str]) -> KeyFrameName:
    second = float(fields[1])
    if not fields[0] or second < 0 or not second.is_integer():
        raise ValueError
    return fields[0], int(second)


def _truth(fields: list[str], actions: Collection[int] | None) -> Row | None:
    if not any(fields[2:7]):  # without a box and an action, whatever the person
        return None
    action = int(fields[6])
    if action < 1 or len(fields) > 8:
        raise ValueError
    if actions is not None and action not in actions:
        raise UserError(
            "Annotated actions must be in the label map",
            f"action id {action}",
            "Give the map of all of them, and --actions.evaluated for those that count",
        )
    return _box(fields), action, 1.0


def _detection(fields: list[str]) -> Row | None:
    if not any(fields[2:]):
        return None
    score = float(fields[-1])
    if len(fields) not in (7, 8) or not 0 <= score <= 1:
        raise ValueError
    return _box(fields), 0, score


def _box(fields: list[str]) -> list[float]:
    x1, y1, x2, y2 = box = [float(field) for field in fields[2:6]]
    low, high = LIMITS
    if not all(map(math.isfinite, box)) or min(box) < low or max(box) > high or x1 > x2 or y1 > y2:
        raise ValueError
    return box


def _malformed(path: str | Path, line: int, fields: list[str], form: str) -> UserError:
    return UserError(
        f"Every line of {path} must be {form}",
        f"line {line}: '{','.join(fields)}'",
        "Times are whole seconds, coordinates are shares of width and height with x1 <= x2 and y1 <= y2",
    )


# --- labels --------------------------------------------------------------------------------------------------------


def _pbtxt_labels(path: str | Path) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("The label map must be a readable text file", f"'{path}'", f"A label is {LABELS}") from error
    text = COMMENT.sub("", text)
    if rest := ITEM.sub("", text).strip():
        raise UserError(f"Every label of {path} must be whole", f"'{rest[:60]}'", f"A label is {LABELS}")
    pairs = []
    for item in ITEM.findall(text):
        name, number = NAME.search(item), NUMBER.search(item)
        if name is None or number is None:
            raise UserError(f"Every label of {path} must have a name and an id", f"'{item}'", f"A label is {LABELS}")
        pairs.append((int(number[1]), name[2].replace('\\"', '"')))
    return pairs


def _csv_labels(path: str | Path) -> list[tuple[int, str]]:
    pairs = []
    for line, fields in _lines(path):
        if line == 1 and not fields[0].isdecimal():
            continue
        if len(fields) < 2 or not fields[0].isdecimal():
            raise _malformed(path, line, fields, "label_id,label_name")
        pairs.append((int(fields[0]), fields[1]))
    return pairs
