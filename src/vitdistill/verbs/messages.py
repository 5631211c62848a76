"""jsonargparse's errors as one plain line each: the option, the value, what is expected, and near names."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from vitdistill.errors import UserError, near
from vitdistill.verbs.signatures import options_of, usage_of

_REFUSED = re.compile(r'Parser key "(?P<key>[^"]+)": .*?(?:Got|Given) value: (?P<value>.*)$')
_GROUP = re.compile(r'Parser key "(?P<key>[^"]+)": Unable to load config [\'"](?P<value>.*?)[\'"]')
_MISSING = re.compile(r"arguments are required: (?P<names>.+)$|Key \"(?P<name>[^\"]+)\" is required")
_NO_VALUE = re.compile(r"argument (?P<option>--[\w.]+)\S*: expected")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (?P<name>\S+)")
_UNKNOWN_KEY = re.compile(r"Option '(?P<name>[^']+)' is not accepted|accept option '(?P<nested>[^']+)'")


def refusal(message: str, verb: str) -> UserError:
    """What a complaint of jsonargparse means.

    Args:
        message: of jsonargparse.
        verb: whose options were parsed.
    """
    text = " ".join(str(message).split())
    types = dict(types_of(verb))
    if unknown := _UNKNOWN.search(text):
        name = unknown["name"].partition("=")[0]
        if name == "--frames" and (args := [each for each in types if each.endswith("_args")]):
            given = " or ".join(f"--{each}.frames" for each in args)
            return UserError(f"There is no option {name}", remedy=f"Frames belong to the network: give {given}")
        return UserError(f"There is no option {name}", remedy=near(name, [f"--{each}" for each in types]))
    if unknown := _UNKNOWN_KEY.search(text):
        # The message names the last part only, so compare with the last part of every option.
        name = unknown["name"] or unknown["nested"]
        lasts = {each.rpartition(".")[2]: f"'--{each}'" for each in types}
        close = [lasts[each] for each in get_close_matches(name, lasts, n=3, cutoff=0.5)]
        return UserError(f"There is no option {name}", remedy=f"Did you mean {' or '.join(close)}?" if close else "")
    if missing := _MISSING.search(text):
        names = [f"--{name.strip()}" for name in (missing["names"] or missing["name"]).split(",")]
        words = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        positional = any(f"--{option.name}" in names for option in options_of(verb).values() if option.positional)
        remedy = f"Usage: {usage_of(verb)}" if positional else ""
        return UserError(f"{words} {'is' if len(names) == 1 else 'are'} required", remedy=remedy)
    if no_value := _NO_VALUE.search(text):
        return UserError(f"{no_value['option']} needs a value")
    if refused := _GROUP.search(text) or _REFUSED.search(text):
        key, value = refused["key"], refused["value"]
        if key in types:
            choices = [str(choice) for choice in _choices(types[key])]
            return UserError(f"--{key} must be {_expected(types[key], key)}", repr(value), near(value, choices))
    return UserError(text)


def types_of(verb: str) -> Iterator[tuple[str, Any]]:
    """All options of a verb with their types, those in groups under their dotted names."""
    for name, option in options_of(verb).items():
        yield from _nested(name, option.type)


def _nested(name: str, hint: Any) -> Iterator[tuple[str, Any]]:
    yield name, hint
    if is_dataclass(hint):
        for field in fields(hint):
            yield from _nested(f"{name}.{field.name}", field.type)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _choices(hint: Any) -> list[Any]:
    return [choice for member in _members(hint) if get_origin(member) is Literal for choice in get_args(member)]


def _expected(hint: Any, key: str) -> str:
    """What a value of a type is, in words: "a whole number or null"."""
    members = [member for member in _members(hint) if not (member is int and float in _members(hint))]
    if choices := [*map(str, _choices(hint)), *(["null"] if NoneType in members else [])] if _choices(hint) else []:
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    return " or ".join(_one(member, key) for member in members)


def _one(hint: Any, key: str) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if hint in names:
        return names[hint]
    if is_dataclass(hint):
        return f"given field by field, such as --{key}.{fields(hint)[0].name}"
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        return f"a mapping, such as --{key}.name value"
    items = _expected(arguments[0], key).removeprefix("a ") + "s"
    return (
        f"a list of {len(arguments)} {items}"
        if get_origin(hint) is tuple and ... not in arguments
        else f"a list of {items}"
    )
