"""Under which masks a network shall be evaluated: how many patches it sees, and who ranks them.

This file is imported to print help texts, so it imports no torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from vitdistill.errors import UserError, near, refuse_given, refuse_without_effect
from vitdistill.methods.selection import MIXED

_REMEDY = "Give a count such as 98, a fraction such as 0.5, or several of them, such as 0.25,0.5,1.0"
# Criteria of `methods.selection` that need no third network.
RANKERS = ("teacher", "random", "student", f"teacher{MIXED}", f"student{MIXED}")


class Masks(NamedTuple):
    """What is asked for.

    Attributes:
        keeps: counts (int) and fractions (float) of patches, each once.
        criteria: names of who ranks the patches, each once.
    """

    keeps: tuple[int | float, ...]
    criteria: tuple[str, ...]

    @property
    def leave_out(self) -> bool:
        """Whether any of them may leave out patches."""
        return any(isinstance(keep, int) or keep < 1 for keep in self.keeps)

    def named(self, word: str) -> bool:
        """Whether a criterion goes by this word, alone or mixed with another."""
        return any(word in name.split("+") for name in self.criteria)


def keeps_of(keep: Any) -> tuple[int | float, ...]:
    """Counts and fractions of patches, from a number, a text with commas, or a list of numbers and texts.

    Raises:
        UserError: for anything else, schedules included, which are for training.

    Example:
        >>> keeps_of("0.25,0.5,98,1.0")
        (0.25, 0.5, 98, 1.0)
    """
    several = _parts(keep) if isinstance(keep, str | list | tuple) else [keep]
    if not several:
        raise UserError("keep must name at least one number of patches", repr(keep), _REMEDY)
    found: list[int | float] = []
    for part in several:
        if isinstance(part, str) and ("->" in part or ":" in part):
            raise UserError("A keep schedule is for training; an evaluation has no progress", repr(part), _REMEDY)
        number = _number(part)
        # Equal numbers differ as keeps: 1 is one patch, and 1.0 all of them.
        if (type(number), number) not in [(type(each), each) for each in found]:
            found.append(number)
    return tuple(found)


def criteria_of(criterion: Any) -> tuple[str, ...]:
    """Names of criteria, from a text with commas or a list.

    Raises:
        UserError: for an unknown name, or none.
    """
    several = _parts(criterion)
    for name in several or [""]:
        if name not in RANKERS:
            rule = f"criterion must be one or several of {', '.join(RANKERS)}"
            raise UserError(rule, repr(name), near(str(name), RANKERS))
    return tuple(dict.fromkeys(several))


Keeps = Annotated[int | float | str | list[int | float | str], keeps_of]
Criteria = Annotated[str | list[str], criteria_of]


def masks_of(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Masks:
    """The masks that options ask for: keep, criterion, student and seed.

    Args:
        values: of the options.
        defaults: of the options.

    Raises:
        UserError: when one is no such value, has no effect beside the others, or misses one.
    """
    masks = Masks(keeps_of(values["keep"]), criteria_of(values["criterion"]))
    if not masks.leave_out:
        refuse_without_effect(values, defaults, ("criterion", "student", "seed"), "unless --keep leaves out patches")
    if masks.named("student") and values["student"] is None:
        wanted = next(name for name in masks.criteria if "student" in name)
        rule = f"The criterion {wanted} needs a student, whose attention ranks the patches"
        raise UserError(rule, remedy="Name a run or a model with --student")
    if not masks.named("student"):
        refuse_given({"student": values["student"] is not None}, "unless --criterion names student")
        if not masks.named("random"):
            refuse_without_effect(values, defaults, ("seed",), "unless --criterion names random or student")
    return masks


def _parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        value = value.split(",")
    return [part.strip() if isinstance(part, str) else part for part in value]


def _number(part: Any) -> int | float:
    try:
        # Text without a mark of fractions is a count: 1 is one patch, and 1.0 all of them.
        text = part.lower() if isinstance(part, str) else ""
        number = (float(text) if any(mark in text for mark in ".en") else int(text)) if text else part
        right = number > 0 and (number <= 1 or number == int(number)) and not isinstance(number, bool)
    except (ValueError, TypeError, OverflowError):  # no number, nan, infinite
        right = False
    if not right:
        raise UserError("keep must be a positive number of patches, or a fraction in (0, 1]", repr(part), _REMEDY)
    return number
