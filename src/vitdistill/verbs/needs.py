"""Which options have an effect only beside others, declared in a form that is both checked and said."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIVEN = "is given"
ABOVE_0 = "is above 0"


@dataclass(frozen=True)
class Names:
    """A condition on an option that joins names by +: that it names this one."""

    name: str


@dataclass(frozen=True)
class Needs:
    """Options, and what they need to have an effect.

    Attributes:
        options: their names.
        conditions: per other option `GIVEN`, `ABOVE_0`, `Names`, or the values of which it must have one; one is
            enough.
    """

    options: tuple[str, ...]
    conditions: Mapping[str, Any]

    def met(self, values: Mapping[str, Any]) -> bool:
        """Whether the options have an effect beside these values."""
        return any(_holds(values[name], wanted) for name, wanted in self.conditions.items())

    @property
    def words(self) -> str:
        """The conditions as a clause: "--criterion is network or network+random"."""
        alike: dict[str, list[str]] = {}
        for name, wanted in self.conditions.items():
            alike.setdefault(_words(wanted), []).append(f"--{name}")
        return " or ".join(f"{' or '.join(names)} {words}" for words, names in alike.items())


def needs(options: str, **conditions: Any) -> Needs:
    """Names of options, separated by spaces, and what they need.

    Example:
        >>> needs("feature residual", target="features").words
        '--target is features'
    """
    return Needs(tuple(options.split()), conditions)


def _holds(value: Any, wanted: Any) -> bool:
    if wanted is GIVEN:
        return value is not None and value is not False
    if wanted is ABOVE_0:
        return value > 0
    if isinstance(wanted, Names):
        return wanted.name in str(value).split("+")
    return value in (wanted if isinstance(wanted, tuple) else (wanted,))


def _words(wanted: Any) -> str:
    if wanted in (GIVEN, ABOVE_0):
        return str(wanted)
    if isinstance(wanted, Names):
        return f"names {wanted.name}"
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    return f"is {' or '.join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)}"
