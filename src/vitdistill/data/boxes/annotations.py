"""What is known of the boxes of one set of images, in arrays, and what was wrong with them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vitdistill.data.left_out import say_once
from vitdistill.data.samples import Problem

# What an annotation can have wrong that costs no training: such boxes are left out (or cut), counted and named.
OUTSIDE, CUT, EMPTY, UNKNOWN = "box outside", "box cut", "empty box", "unknown category"
WORDS = {
    OUTSIDE: "outside their image",
    EMPTY: "empty",
    UNKNOWN: "of a category that is not listed",
}
NAMED = 2  # how many of a kind are named


@dataclass(frozen=True)
class Boxes:
    """The boxes of a set of images.

    Attributes:
        paths: of the images.
        sizes: height and width of each image in pixels, as annotated.
        ids: by which the annotations name each image.
        offsets: boxes of image i are rows offsets[i] to offsets[i + 1] - 1.
        corners: x1, y1, x2, y2 of every box in pixels; x2 and y2 lie behind its last column and row.
        classes: class numbers.
        ignored: crowds and difficult objects: not trained on, neither right nor wrong when they are found.
        areas: in square pixels, as annotated.
        problems: what was wrong with annotations.
    """

    paths: list[str]
    sizes: Int64[np.ndarray, "images 2"]
    ids: list[int | str]
    offsets: Int64[np.ndarray, "_"]
    corners: Float32[np.ndarray, "n 4"]
    classes: Int64[np.ndarray, "n"]
    ignored: Bool[np.ndarray, "n"]
    areas: Float32[np.ndarray, "n"]
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, index: int) -> slice:
        """Which boxes are those of an image."""
        return slice(*self.offsets[index : index + 2].tolist())

    @property
    def most(self) -> int:
        """Boxes to train on in the image that has most, at least 1."""
        number = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return max(1, int(np.bincount(number[~self.ignored], minlength=1).max(initial=0)))

    def joined(self, other: "Boxes") -> "Boxes":
        """The images of both, one set behind the other."""
        moved = [problem._replace(number=problem.number + len(self)) for problem in other.problems]
        return Boxes(
            self.paths + other.paths,
            np.concatenate((self.sizes, other.sizes)),
            self.ids + other.ids,
            np.concatenate((self.offsets, other.offsets[1:] + self.offsets[-1])),
            np.concatenate((self.corners, other.corners)),
            np.concatenate((self.classes, other.classes)),
            np.concatenate((self.ignored, other.ignored)),
            np.concatenate((self.areas, other.areas)),
            self.problems + moved,
        )

    def say_problems(self, where: str) -> None:
        """One line for each kind of annotation that was left out."""
        counts = Counter(problem.kind for problem in self.problems)
        for kind, words in WORDS.items():
            if counts[kind]:
                found = [problem for problem in self.problems if problem.kind == kind][:NAMED]
                shown = ", ".join(f"{self.paths[problem.number]} ({problem.detail})" for problem in found)
                more = ", ..." if counts[kind] > NAMED else ""
                say_once(f"Boxes of {where} that are {words}, left out ({counts[kind]}): {shown}{more}")


@dataclass
class Gathering:
    """Boxes while they are read; `finish` puts them into arrays.

    Example:
        >>> gathering = Gathering()
        >>> gathering.image("a.jpg", 1, (48, 64))
        >>> gathering.box((-2, 0, 10, 10), 3)
        >>> gathering.finish().corners
        array([[ 0.,  0., 10., 10.]], dtype=float32)
    """

    paths: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    ids: list[int | str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    corners: list[tuple[float, ...]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def image(self, path: str, name: int | str, size: tuple[int, int]) -> None:
        """The image to which the next boxes belong.

        Args:
            path: of its file.
            name: by which annotations call it.
            size: height and width in pixels.
        """
        self.paths.append(path)
        self.ids.append(name)
        self.sizes.append(size)
        self.counts.append(0)

    def problem(self, kind: str, detail: str) -> None:
        """Note something wrong with the image at hand."""
        self.problems.append(Problem(kind, len(self.paths) - 1, detail))

    def box(
        self,
        corners: Sequence[float],
        number: int,
        *,
        ignored: bool = False,
        area: float | None = None,
        name: str = "",
    ) -> None:
        """A box of the image at hand: cut to the image; left out where nothing of it is in there.

        Args:
            corners: x1, y1, x2, y2 in pixels.
            number: of its class.
            ignored: whether it is a crowd, or difficult.
            area: in square pixels; None takes that of the box.
            name: of the annotation, for messages.
        """
        height, width = self.sizes[-1]
        x1, y1, x2, y2 = corners
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        words = f"{name} {x1:g}, {y1:g}, {x2:g}, {y2:g} in {width}x{height} pixels".strip()
        if not (x2 > x1 and y2 > y1):
            self.problem(EMPTY, words)
        elif not (inside[2] > inside[0] and inside[3] > inside[1]):
            self.problem(OUTSIDE, words)
        else:
            if max(inside[0] - x1, inside[1] - y1, x2 - inside[2], y2 - inside[3]) >= 1:
                self.problem(CUT, words)
            self.corners.append(inside)
            self.classes.append(number)
            self.ignored.append(ignored)
            self.areas.append((x2 - x1) * (y2 - y1) if area is None else area)
            self.counts[-1] += 1

    def finish(self) -> Boxes:
        """All of it in arrays."""
        return Boxes(
            self.paths,
            np.array(self.sizes, dtype=np.int64).reshape(-1, 2),
            self.ids,
            np.concatenate(([0], np.cumsum(self.counts))).astype(np.int64),
            np.array(self.corners, dtype=np.float32).reshape(-1, 4),
            np.array(self.classes, dtype=np.int64),
            np.array(self.ignored, dtype=bool),
            np.array(self.areas, dtype=np.float32),
            self.problems,
        )
