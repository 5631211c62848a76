"""The command line, generated from the verbs' signatures and docstrings by jsonargparse."""

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vitdistill.data.open import check_there
from vitdistill.errors import UserError, near

# One verb = one function of the same name in one module of `vitdistill.verbs`, with what `--help` says of it.
VERBS: dict[str, str] = {
    "maskedkd": "Distil a teacher that sees only the patches to which the student attends.",
    "supervised": "Train a network on labels alone: a baseline, or a teacher of your own.",
    "tinymim": "Distil a masked-image-modelling teacher, without labels, through token relations.",
    "mae": "Pre-train a teacher, without labels, by predicting masked pixels.",
    "videomae": "Pre-train a video teacher, without labels, by predicting masked pixels.",
    "mvd": "Distil image and video teachers into a video student that sees a tenth of each clip.",
    "finetune": "Fine-tune a pre-trained network on labels, or on who does what, where and when (AVA).",
    "probe": "Linear probe: how well a linear classifier does on frozen features.",
    "knn": "k-nearest-neighbour accuracy of frozen features.",
    "chain": "Several runs that build on each other, from one recipe; resumes in the middle.",
    "resume": "Continue an interrupted run, exactly where it was.",
    "evaluate": "Top-1 and top-5 accuracy of a run or a model, or a run's frame mAP (AVA).",
    "export": "A run's student as safetensors for timm, or as ONNX, checked.",
    "cost": "What a distillation will cost, before spending anything.",
    "bench": "Measured speed and memory of teacher and student on this machine.",
    "masks": "Pictures of what the teacher saw.",
    "similarity": "How alike the frames of a clip are to teachers and students.",
    "report": "One self-contained HTML page over one or more runs.",
    "demo": "A complete small study on real handwritten digits, offline, in a few minutes.",
}


# Earlier verbs, and what does their work now.
MOVED = {
    "detect": "`vitdistill finetune --task actions`, with --data for --videos and --actions.val for --val",
    "frame_map": "`vitdistill evaluate`, with --data for --videos and --actions.val for --val",
}


def verb(name: str) -> Callable[..., Any]:
    """The function behind a verb.

    Raises:
        UserError: for an earlier verb, naming what does its work now.
    """
    if name in MOVED:
        raise UserError(f"`{name}` is no verb any more", remedy=f"Use {MOVED[name]}")
    return getattr(import_module(f"vitdistill.verbs.{name}"), name)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    # Before torch loads OpenMP. Threads that spin while they wait starve each other as soon as anything else runs:
    # on two shared cores the demo's steps took seven times as long. Has no effect where users set it themselves.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(f"vitdistill {version('vitdistill')}")
            return 0
        if arguments[0] in MOVED:
            verb(arguments[0])
        if arguments[0] not in VERBS:
            raise UserError("The first word must be a verb", repr(arguments[0]), near(arguments[0], VERBS) or usage())
        return run_verb(arguments[0], arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {name:<12}{text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            "usage: vitdistill VERB [options]",
            "",
            "Makes small Vision Transformers out of big ones.",
            "",
            *lines,
            "",
            "vitdistill VERB --help lists a verb's options. Every verb takes --config file.yaml, --print_config and",
            "dotted overrides such as --optim.lr 1e-3.",
        ]
    )


def run_verb(name: str, arguments: list[str]) -> int:
    """Parse a verb's arguments and call it.

    Raises:
        UserError: for unknown options (with near names), values of the wrong type, and unusable YAML files.
    """
    for data in given(arguments, "--data"):
        if data != "null":
            check_there(data)  # before torch is loaded, which takes seconds; what opens the data says the same
    function = verb(name)
    parser = make_parser(name, function)
    options = [string for action in parser._actions for string in action.option_strings]
    arguments = normalised(function, arguments, options)
    for path in given(arguments, "--config"):
        check_yaml(path)
    values = parser.parse_args(arguments)
    values = parser.instantiate_classes(values)
    values.pop("config", None)
    result = function(**values.as_dict())
    return int(result) if isinstance(result, bool) else 0


def make_parser(name: str, function: Callable[..., Any]) -> Any:
    """A parser whose options are the function's arguments."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UserError(_one_line(message, [s for a in self._actions for s in a.option_strings]))

    parser = Parser(prog=f"vitdistill {name}", description=VERBS[name], exit_on_error=True)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_function_arguments(_for_text(function), fail_untyped=False, sub_configs=False)
    return parser


def _for_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as the command line sees it: where Python takes a module object, text names a model."""
    hints = get_type_hints(function)
    signature = inspect.signature(function)
    text_only = {name: _without_modules(hints[name]) for name in signature.parameters}

    @wraps(function)
    def called(**arguments: Any) -> Any:
        return function(**arguments)

    parameters = [p.replace(annotation=text_only[name]) for name, p in signature.parameters.items()]
    called_any: Any = called
    called_any.__signature__ = signature.replace(parameters=parameters)
    called.__annotations__ = text_only
    del called.__wrapped__
    return called


def _without_modules(hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    kept = [option for option in options if not (inspect.isclass(option) and option.__module__.startswith("torch"))]
    return Union[tuple(kept)] if options else hint  # noqa: UP007  # built at run time


def _one_line(message: str, options: list[str]) -> str:
    """jsonargparse's complaint as one line, with near names for unknown options."""
    text = " ".join(str(message).split())
    for marker in ("Unrecognized arguments:", "unrecognized arguments:"):
        if marker in text:
            unknown = text.partition(marker)[2].split()[0].partition("=")[0]
            return f"There is no option {unknown}. {near(unknown, options)}".strip()
    refused = re.search(r"Option '([^']+)' is not accepted", text)
    if refused:
        unknown = refused.group(1)
        # The message names the last part only, so compare with the last part of every option.
        lasts = {option.lstrip("-").rpartition(".")[2]: option for option in options}
        hints = [repr(lasts[name]) for name in get_close_matches(unknown, lasts, n=3, cutoff=0.5)]
        return f"There is no option {unknown}. {'Did you mean ' + ' or '.join(hints) + '?' if hints else ''}".strip()
    if choice := re.search(r'Parser key "([^"]+)": .*typing\.Literal\[(.*?)\].*?Got value: (.*)$', text):
        name, values, got = choice.groups()
        known = [value.strip().strip("'\"") for value in values.split(",")]
        return f"{name} must be {', '.join(known[:-1])} or {known[-1]}; got {got!r}. {near(got, known)}".strip()
    return text


def normalised(function: Callable[..., Any], arguments: list[str], options: list[str]) -> list[str]:
    """Let flags stand alone (`--resume`), and let positional arguments fill the first list or required argument."""
    parameters = inspect.signature(function).parameters
    flags = {f"--{name}" for name, parameter in parameters.items() if parameter.annotation in (bool, "bool")}
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    result: list[str] = []
    loose: list[str] = []
    index = 0
    while index < len(arguments):
        word = arguments[index]
        following = arguments[index + 1] if index + 1 < len(arguments) else None
        if word in flags and (following is None or following.lower() not in ("true", "false")):
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
        raise UserError("Options start with --", repr(loose[0]), near(f"--{loose[0]}", options))
    if loose:
        first = positional[0]
        is_list = "list" in str(parameters[first].annotation)
        if not is_list and len(loose) > 1:
            raise UserError(f"One {first} may be given without its option's name", " ".join(loose))
        import json

        result += [f"--{first}", json.dumps(loose) if is_list else loose[0]]
    return result


def given(arguments: list[str], option: str) -> list[str]:
    """The values of an option, as far as they stand on the command line itself."""
    found = [following for word, following in pairwise(arguments) if word == option]
    return found + [word.partition("=")[2] for word in arguments if word.startswith(f"{option}=")]


def check_yaml(path: str | Path) -> None:
    """Refuse a configuration that would be misread.

    Raises:
        UserError: when the file is missing, no YAML, no mapping, or names a key twice.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = loader.construct_object(key_node, deep=deep)
            if key in seen:
                raise UserError(
                    "A key may stand only once in a configuration",
                    f"{key!r} again in line {key_node.start_mark.line + 1} of {path}",
                    "Remove one of them",
                )
            seen.add(key)
        return loader.construct_mapping(node, deep=deep)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        content = yaml.load(Path(path).read_text(), Strict)
    except OSError as error:
        raise UserError("The configuration file must be readable", f"{path} ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise UserError("The configuration must be YAML", f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(
            "The configuration must be a mapping from options to values",
            f"{path} with {'nothing' if content is None else type(content).__name__}",
        )


if __name__ == "__main__":
    sys.exit(main())
