"""What `--data` says as text, such as `torchvision:CIFAR10?root=/data`: scheme, name and options. Needs no torch."""

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from vitdistill.errors import UserError, near

# At least two letters, so that C:\data is a path.
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
RANGE = re.compile(r"(\d+)\.\.(\d+)")
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Address:
    """A container of data.

    Attributes:
        scheme: what kind of container.
        name: what stands between the scheme and the options: a name, a path or a pattern of paths.
        options: what stands behind the question mark, by name.
    """

    scheme: str
    name: str
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "&".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.scheme}:{self.name}" + (f"?{options}" if options else "")

    def flag(self, name: str) -> bool:
        """A yes or no; no where it is not given.

        Raises:
            UserError: when it is neither.
        """
        value = self.options.get(name, "false").lower()
        if value not in FLAGS:
            raise UserError(f"The option {name} of {self} must be true or false", f"'{value}'")
        return FLAGS[value]

    @property
    def share(self) -> float | None:
        """The share of the training samples to hold out for validation, where `val` is a number below 1; else None.

        Raises:
            UserError: when it is a number but no share.
        """
        try:
            value = float(self.options.get("val", ""))
        except ValueError:
            return None
        if not 0 < value < 1:
            raise UserError(
                f"The option val of {self} must be the name of a split, or a share above 0 and below 1", value
            )
        return value

    @property
    def val(self) -> str | None:
        """The split to validate on, where `val` names one."""
        return None if self.share is not None else self.options.get("val")


def parse(text: str) -> Address | None:
    """The address in a text; None for a text without a scheme.

    Raises:
        UserError: when an option is not of the form name=value or is given twice.
    """
    match = SCHEME.fullmatch(text)
    if match is None:
        return None
    name, options = _options(match[2], text)
    return Address(match[1].lower(), name, options)


def split_path(text: str) -> tuple[str, dict[str, str]]:
    """A path, and the options behind its question mark; a path that exists has none.

    Raises:
        UserError: as `parse`.
    """
    return (text, {}) if Path(text).expanduser().exists() else _options(text, text)


def _options(text: str, whole: str) -> tuple[str, dict[str, str]]:
    name, mark, rest = text.partition("?")
    options: dict[str, str] = {}
    for part in rest.split("&") if mark else ():
        key, equals, value = part.partition("=")
        if not key or not equals or key in options:
            what = f"'{key}' twice" if key in options else f"'{part}'"
            raise UserError(f"Options in {whole} must be like ?name=value&other=value", what)
        options[key] = value
    return name, options


def check_options(address: Address, known: Iterable[str]) -> None:
    """Refuse options that a scheme does not have.

    Raises:
        UserError: with near names.
    """
    known = list(known)
    for name in address.options:
        if name not in known:
            remedy = near(name, known) or f"There are {', '.join(known)}"
            raise UserError(f"{address.scheme}: has no option '{name}'", f"'{address}'", remedy)


def paths_of(pattern: str) -> list[str]:
    """The paths that a pattern stands for: parts joined by commas, braces ({000..146}, {a,b}), *, and ~.

    Braces name files that must be there; what a * finds is sorted.

    Example:
        >>> paths_of("train-{08..11}.tar")
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'train-11.tar']
    """
    expanded = chain.from_iterable(expand_braces(part) for part in _at_commas(pattern))
    return list(chain.from_iterable(_globbed(os.path.expanduser(path)) for path in expanded))


def absolute(pattern: str) -> str:
    """A pattern of paths that holds wherever the process goes.

    Example:
        >>> absolute("train-{0..3}.tar, ~/val.tar")
        '/here/train-{0..3}.tar,/home/me/val.tar'
    """
    return ",".join(os.path.abspath(os.path.expanduser(part)) for part in _at_commas(pattern))


def expand_braces(pattern: str) -> list[str]:
    """The texts that braces stand for, as in a shell; numbers keep their zeros."""
    start = pattern.find("{")
    end, depth = start, 0
    for end in range(start, len(pattern)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(pattern[end], 0)
        if depth == 0:
            break
    if start < 0 or depth:
        return [pattern]
    inside = pattern[start + 1 : end]
    if match := RANGE.fullmatch(inside):
        first, last = int(match[1]), int(match[2])
        step = 1 if first <= last else -1
        padded = any(len(text) > 1 and text.startswith("0") for text in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        choices = [str(number).zfill(width) for number in range(first, last + step, step)]
    else:
        choices = list(chain.from_iterable(expand_braces(part) for part in _at_commas(inside)))
    rest = expand_braces(pattern[end + 1 :])
    return [pattern[:start] + choice + after for choice in choices for after in rest]


def _at_commas(text: str) -> list[str]:
    """Parts between commas that stand in no braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _globbed(path: str) -> list[str]:
    if not any(letter in path for letter in "*[") or os.path.exists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True))
