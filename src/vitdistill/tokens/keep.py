"""How many patches to keep: a number, a fraction, or a schedule over training."""

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Annotated, TypeVar

from vitdistill.errors import UserError

T = TypeVar("T", bound=Hashable)
_REMEDY = "Give a count such as 98, a fraction such as 0.5, or a schedule such as '1.0->0.5' or '0:1.0,0.5:0.25'"


def keep_count(keep: int | float | str, patches: int) -> int:
    """Number of patches to keep out of `patches`.

    Args:
        keep: an int is a count, a float in (0, 1] a fraction (rounded to the nearest patch, at least one). Note
            that 1 is one patch and 1.0 is all of them. A string is read as one or the other.
        patches: patches in the grid, N.

    Raises:
        UserError: for zero, negative, NaN, more than `patches`, or anything that is no number.
    """
    number = _number(keep)
    is_count = isinstance(number, int) or (number > 1 and number == int(number))
    if not (0 < number <= (patches if is_count else 1)):
        raise UserError(f"keep must lie between 1 and {patches} patches, or in (0, 1] as a fraction", keep, _REMEDY)
    return int(number) if is_count else max(1, math.floor(number * patches + 0.5))


def _number(keep: int | float | str) -> int | float:
    if isinstance(keep, bool) or not isinstance(keep, str | Real):
        raise UserError("keep must be a number", repr(keep), _REMEDY)
    if isinstance(keep, str):
        try:
            keep = float(keep) if any(mark in keep.lower() for mark in ".en") else int(keep)
        except ValueError:
            raise UserError("keep must be a number", repr(keep), _REMEDY) from None
    if isinstance(keep, float) and not math.isfinite(keep):
        raise UserError("keep must be a finite number", keep, _REMEDY)
    return keep


@dataclass(frozen=True)
class KeepSchedule:
    """Keep over training progress in [0, 1].

    Attributes:
        points: (progress, keep) pairs, ascending in progress, the first at 0.
        linear: interpolate the count between the points (True), or hold each until the next (False).
    """

    points: tuple[tuple[float, int | float | str], ...]
    linear: bool = False

    @classmethod
    def parse(cls, keep: "int | float | str | KeepSchedule") -> "KeepSchedule":
        """Read a count, a fraction, 'a->b' (linear) or 'progress:keep,progress:keep' (steps).

        Raises:
            UserError: when the text is none of these.
        """
        if isinstance(keep, KeepSchedule):
            return keep
        text = str(keep)
        if "->" in text:
            start, _, end = text.partition("->")
            return cls(((0.0, start.strip()), (1.0, end.strip())), linear=True)
        if ":" in text:
            return cls(tuple(sorted(_step(part) for part in text.split(",")))).checked(text)
        return cls(((0.0, keep),))

    def checked(self, text: str) -> "KeepSchedule":
        if self.points[0][0] != 0 or not all(0 <= at <= 1 for at, _ in self.points):
            raise UserError("A keep schedule starts at progress 0 and ends at most at 1", text, _REMEDY)
        return self

    def __str__(self) -> str:
        if self.constant:
            return str(self.points[0][1])
        if self.linear:
            return "->".join(str(keep) for _, keep in self.points)
        return ",".join(f"{at:g}:{keep}" for at, keep in self.points)

    @property
    def constant(self) -> bool:
        """Whether the count stays the same throughout."""
        return len(self.points) == 1

    def count(self, progress: float, patches: int) -> int:
        """Patches kept at a training progress in [0, 1], out of `patches`.

        Under a linear schedule the number changes between steps, up to `patches` times in a training; compiled code is
        compiled again at each change.
        """
        counts = [(at, keep_count(keep, patches)) for at, keep in self.points]
        if self.linear:
            (_, start), (_, end) = counts
            return math.floor(start + (end - start) * min(max(progress, 0.0), 1.0) + 0.5)
        return [count for at, count in counts if at <= max(progress, 0.0)][-1]


def progress_at(step: int, steps: int) -> float:
    """Share of a training that is done at a step of it: 0 at the first, 1 at the last; 0 if there is but one."""
    return step / max(1, steps - 1)


def tally(value_at: Callable[[float], T], steps: int, done: int | None = None) -> Counter[T]:
    """How many steps of a training have which value (patches kept, say), where the value depends on its progress.

    Training asks its method at every step; this counts the same without asking at every step: at a thousand of them,
    and in between only where neighbours differ. A value that comes and goes within a thousandth is not seen.

    Args:
        value_at: the value at a training progress in [0, 1].
        steps: of the whole training.
        done: count the first so many of them only.

    Example:
        >>> schedule = KeepSchedule.parse("0:1.0,0.1:0.25")
        >>> tally(lambda progress: schedule.count(progress, 196), steps=5)
        Counter({49: 4, 196: 1})
    """
    last = (steps if done is None else done) - 1
    if last < 0:
        return Counter()
    asked = {round(part * last / 1000) for part in range(1001)}
    values = {step: value_at(progress_at(step, steps)) for step in sorted(asked)}
    counts = Counter([values[last]])
    gaps = list(pairwise(values))
    while gaps:
        low, high = gaps.pop()
        if high - low == 1 or values[low] == values[high]:
            counts[values[low]] += high - low
        else:
            middle = (low + high) // 2
            values[middle] = value_at(progress_at(middle, steps))
            gaps += [(low, middle), (middle, high)]
    return counts


def _step(part: str) -> tuple[float, str]:
    at, _, keep = part.partition(":")
    try:
        step = float(at), keep.strip()
    except ValueError:
        step = 0.0, ""
    if not step[1]:
        raise UserError("A step of a keep schedule reads progress:keep", repr(part), _REMEDY)
    return step


def check_keep(keep: "int | float | str | KeepSchedule") -> None:
    """Refuse what no grid of patches can make sense of.

    Raises:
        UserError: when it is no count, fraction or schedule of them, or a number in it is 0, negative or not finite.
    """
    for _, part in KeepSchedule.parse(keep).points:
        number = _number(part)
        if not number > 0 or (number > 1 and number != int(number)):
            raise UserError("keep must be a positive number of patches, or a fraction in (0, 1]", keep, _REMEDY)


Keep = Annotated[int | float | str, check_keep]
