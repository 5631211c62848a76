"""From the words of a command, or from a configuration, to the values of a verb's options. Needs no torch."""

import json
import re
from collections.abc import Mapping
from itertools import pairwise, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, _loaders_dumpers, get_loader, set_loader

from vitdistill.errors import UserError, near
from vitdistill.verbs.messages import refusal, types_of
from vitdistill.verbs.signatures import documentation, options_of, signature_of, usage_of
from vitdistill.verbs.table import EXAMPLES, VERBS

DECIDING = ("task", "data")  # options on which the defaults of others depend
MODE = "vitdistill"  # of jsonargparse, in which values and configurations are read by `_load`


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML 1.1 but for three of its readings: 8:1 stays text and is not 481, to the base of 60; 1e-3 is a number; dates
    are text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in several if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, several in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_WHOLE = r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|0|[1-9][0-9_]*)$"
_NUMBER = (
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))$"
)
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(_WHOLE), list("-+0123456789"))
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_NUMBER), list("-+0123456789."))


def _load(text: str) -> Any:
    value = yaml.load(text, Loader)
    # `{name}` is text in braces and no mapping; jsonargparse tells which.
    is_text = isinstance(value, dict) and all(part is None for part in value.values())
    return get_loader("yaml")(text) if is_text else value


set_loader(MODE, _load, exceptions=(yaml.YAMLError,))
# Whatever the mode, texts of whole numbers are read by a loader of its own, to which 1:30 is 90. There is no public way
# to name another; a test holds that this one has its effect.
_loaders_dumpers.yaml_default_loader = Loader  # type: ignore[assignment]


def parse(verb: str, words: list[str]) -> dict[str, Any]:
    """The values of a verb's options out of the words behind it.

    Raises:
        UserError: for unknown options (with near names), values of the wrong type, and unusable YAML files.
    """
    words = normalised(verb, words)
    parser = make_parser(verb, _said(words))
    return _values(verb, parser, parser.parse_args(words))


def parse_config(verb: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a verb's options out of a configuration, such as a run's.

    Raises:
        UserError: as `parse`.
    """
    parser = make_parser(verb, config)
    return _values(verb, parser, parser.parse_object(dict(config)))


def _values(verb: str, parser: ArgumentParser, parsed: Any) -> dict[str, Any]:
    values = parser.instantiate_classes(parsed).as_dict()
    values.pop("config", None)
    for name, option in options_of(verb).items():
        if isinstance(values[name], str | int | float):
            for refuse in option.checks:
                refuse(values[name])
    return values


def make_parser(verb: str, said: Mapping[str, Any] = MappingProxyType({})) -> ArgumentParser:
    """A parser with one option for every option of the verb.

    Args:
        verb: any.
        said: values of options that are known, on which defaults depend.
    """

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise refusal(message, verb)

    def function(**_: Any) -> None:
        """Stands for the verb, whose own module is not imported."""

    signature = signature_of(verb, said)
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    function.__doc__ = documentation(verb)
    parser = Parser(
        prog=f"vitdistill {verb}",
        usage=f"{usage_of(verb)}\n\nexample: vitdistill {verb} {EXAMPLES[verb]}",
        description=VERBS[verb].summary,
        exit_on_error=True,
        allow_abbrev=False,
        parser_mode=MODE,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_function_arguments(function, fail_untyped=False, sub_configs=False)
    return parser


def normalised(verb: str, words: list[str]) -> list[str]:
    """Let flags stand alone (`--resume`, `--loader.balance`), let a list of words take all that follow its name
    (`--only half whole`), and let words without an option's name fill the positional options in turn.

    A list takes all that are left, so it is the last of them.
    """
    options = options_of(verb)
    lists = {f"--{option.name}" for option in options.values() if option.type in (list[str], list[str] | None)}
    flags = {f"--{name}" for name, hint in types_of(verb) if hint is bool}
    positional = [option for option in options.values() if option.positional]
    result: list[str] = []
    loose: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        following = words[index + 1] if index + 1 < len(words) else None
        # Where nothing positional may follow a flag, whatever does is its value, right or wrong.
        valued = following is not None and (following.lower() in ("true", "false") or not positional)
        if word in lists and following is not None and not following.startswith(("-", "[")):
            taken = list(takewhile(lambda each: not each.startswith("--"), words[index + 1 :]))
            result += [word, json.dumps(taken)]
            index += len(taken)
        elif word in flags and (not valued or str(following).startswith("-")):
            result.append(f"{word}=true")
        elif word.startswith("-"):
            result.append(word)
            takes_value = "=" not in word and word not in ("-h", "--help") and not word.startswith("--print_config")
            if takes_value and following is not None and (not following.startswith("--")):
                result.append(following)
                index += 1
        else:
            loose.append(word)
        index += 1
    if loose and not positional:
        raise UserError(
            "Options start with --", repr(loose[0]), near(f"--{loose[0]}", [f"--{name}" for name in options])
        )
    named = {word.partition("=")[0] for word in result}
    for option in positional:
        if loose and f"--{option.name}" not in named:
            is_list = "list" in str(option.type)
            result += [f"--{option.name}", json.dumps(loose) if is_list else loose[0]]
            loose = [] if is_list else loose[1:]
    if loose:
        names = " and ".join(option.name for option in positional)
        raise UserError(f"One {names} may be given without its option's name", f"also {' '.join(loose)}")
    return result


def _said(words: list[str]) -> dict[str, Any]:
    """The values on which defaults depend, by words and configurations; the last counts.

    Raises:
        UserError: when a configuration cannot be read.
    """
    found: dict[str, Any] = {}
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        value = value if equals else following
        if name == "--config":
            content = check_yaml(value)
            found |= {key: content[key] for key in DECIDING if key in content}
        elif name.startswith("--") and name[2:] in DECIDING:
            found[name[2:]] = value
    return found


def check_yaml(path: str | Path) -> dict[str, Any]:
    """A configuration's content, if it cannot be misread.

    Raises:
        UserError: when the file is missing, no YAML, no mapping, or names a key twice.
    """

    class Strict(Loader):
        pass

    def mapping(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`, whose keys may be given again
                continue
            key = loader.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                line = f"line {key_node.start_mark.line + 1} of {path}"
                raise UserError("A key of the configuration must be a word or a number", f"{key!r} ({line})")
            if key in seen:
                raise UserError(f"duplicate key {key!r} (line {key_node.start_mark.line + 1} of {path})")
            seen.add(key)
        return loader.construct_mapping(node, deep=deep)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Strict)
    except OSError as error:
        raise UserError("The configuration file must be readable", f"{path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError("The configuration must be text in UTF-8", f"{path} ({error})") from error
    except yaml.YAMLError as error:
        raise UserError("The configuration must be YAML", f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(
            "The configuration must be a mapping from options to values",
            f"{path} with {'nothing' if content is None else type(content).__name__}",
        )
    return content
