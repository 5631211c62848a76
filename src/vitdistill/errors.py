"""Errors that a user can act on: one line with the rule, the value received and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The command line prints the message as one line and exits with code 2."""

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


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """A remedy naming the closest known names, e.g. "Did you mean 'keep' or 'seed'?"; empty when none is near."""
    matches = get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def refuse_unused(**unused: tuple[bool, str]) -> None:
    """Refuse options that were given but would change nothing.

    Args:
        unused: per option, whether it was given in vain, and what it goes with.

    Raises:
        UserError: naming them all.
    """
    vain = [f"--{name} ({goes_with})" for name, (given, goes_with) in unused.items() if given]
    if vain:
        raise UserError("Options that would change nothing are refused", ", ".join(vain), "Leave them out")


def error_words(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
