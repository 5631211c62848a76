"""Errors that a user can act on: one line with the rule, the value received and the remedy."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """Bad input. The command line prints the message as one line and exits with code 2.

    Attributes:
        everywhere: whether all processes of a run raise it together, so that the first alone need print it.
    """

    everywhere = False

    def __init__(self, rule: str, got: object = None, remedy: str = "") -> None:
        """
        Args:
            rule: what must hold, as a full sentence without the final full stop.
            got: the value received; left out of the message when None.
            remedy: what to do about it.
        """
        parts = [rule if got is None else f"{rule}; got {got}"]
        if remedy:
            parts.append(remedy)
        super().__init__(". ".join(" ".join(part.split()) for part in parts))


@contextmanager
def together() -> Iterator[None]:
    """What is refused in here, all processes of a run refuse at the same moment: see `UserError.everywhere`."""
    try:
        yield
    except UserError as error:
        error.everywhere = True
        raise


class MachineError(UserError, OSError):
    """The machine failed, not the data: too many open files, no permission, a full or broken disk.

    Attributes:
        errno: the system's number of it.
    """

    def __init__(self, rule: str, got: object = None, remedy: str = "", errno: int | None = None) -> None:
        super().__init__(rule, got, remedy)
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:  # that of OSError leaves the number out
        return type(self), (str(self), None, "", self.errno)


class OutOfMemoryError(UserError, MemoryError):
    """The machine's memory did not suffice."""


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """A remedy naming the closest known names, e.g. "Did you mean 'keep' or 'seed'?"; empty when none is near.

    Names that begin with it are closer than all others.
    """
    known = list(known)
    begun = sorted((one for one in known if len(name) > 3 and one.startswith(name)), key=len)
    matches = begun[:count] or get_close_matches(name, known, n=count, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def refuse_given(given: Mapping[str, bool], why: str) -> None:
    """Refuse options that were given where nothing reads them.

    Args:
        given: whether it was given, by option.
        why: the rest of the sentence, such as "on single images".

    Raises:
        UserError: naming them all.

    Example:
        >>> refuse_given({"stride": True, "clips": False}, "on single images")
        Traceback (most recent call last):
        ...
        vitdistill.errors.UserError: --stride has no effect on single images. Leave it out
    """
    names = [f"--{name}" for name, is_given in given.items() if is_given]
    if names:
        several = len(names) > 1
        words = f"{', '.join(names[:-1])} and {names[-1]} have" if several else f"{names[0]} has"
        raise UserError(f"{words} no effect {why}", remedy=f"Leave {'them' if several else 'it'} out")


def refuse_without_effect(
    values: Mapping[str, Any], defaults: Mapping[str, Any], options: Iterable[str], why: str
) -> None:
    """Refuse those options that differ from their defaults, as `refuse_given` does.

    Args:
        values: of the options.
        defaults: by option; a value that equals its default was not given. None where there is none.
        options: names of those that have no effect.
        why: the rest of the sentence, such as "unless --criterion is network".

    Raises:
        UserError: naming them all.

    Example:
        >>> refuse_without_effect({"network": "deit"}, {}, ["network"], "unless --criterion is network")
        Traceback (most recent call last):
        ...
        vitdistill.errors.UserError: --network has no effect unless --criterion is network. Leave it out
    """
    nothing: tuple[Any, ...] = (None, {})
    changed = [name for name in options if values[name] != defaults.get(name)]
    refuse_given({name: not (values[name] in nothing and defaults.get(name) in nothing) for name in changed}, why)


def error_words(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
