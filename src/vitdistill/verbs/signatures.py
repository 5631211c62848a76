"""The options of a verb: names, types, defaults and help texts, read from the source without running it.

A method's options live in its constructor, which needs torch to be imported, and that takes seconds. Help and refusals
must not wait for it. So a verb's module and those of the methods are parsed here and never imported; only what has to
exist is (dataclasses of options, functions that check a value), which is why their modules must do without torch.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin

from vitdistill.tasks import TASKS, default_options
from vitdistill.verbs.arguments import Flat, Training
from vitdistill.verbs.source import OnlyInPython, Source, arguments_in, names_of
from vitdistill.verbs.table import TRAINING, function_of, module_of

REQUIRED = inspect.Parameter.empty
DECORATOR = "trains"


@dataclass(frozen=True)
class Option:
    """One option of a verb.

    Attributes:
        name: without its dashes.
        type: what text can give; where Python also takes a module object, that is left out.
        default: `REQUIRED` where there is none.
        help: what it does.
        positional: whether it may be given without its name.
        checks: functions that refuse a value, from `typing.Annotated`.
        handed_on: whether it is one of the `**options` that the verb hands on to its method.
    """

    name: str
    type: Any
    default: Any = REQUIRED
    help: str = ""
    positional: bool = False
    checks: tuple[Any, ...] = ()
    handed_on: bool = False


@cache
def options_of(verb: str) -> dict[str, Option]:
    """All options of a verb, by name, in the order of the help text.

    The function's own come first, each bundle (a `Flat` dataclass) unfolded where it stands. A keyword `**options`
    brings the keyword-only arguments of the class to which the function hands them on, except those that it sets
    itself. The decorator `trains` brings those that all training shares; its own keywords are defaults.
    """
    source = Source.of(module_of(verb))
    function = source.definition(function_of(verb))
    assert isinstance(function, ast.FunctionDef)
    found = {option.name: option for option in _parameters(source, function, skip=_given_by_decorator(function))}
    if function.args.kwarg is not None:
        followed = _followed(source, function, function.args.kwarg.arg)
        found |= {option.name: replace(option, handed_on=True) for option in followed if option.name not in found}
    if (decorator := _decorator(function)) is not None:
        for bundle in (*map(source.evaluate, decorator.args), Training):
            found |= {option.name: option for option in _fields(bundle) if option.name not in found}
        for keyword in decorator.keywords:
            if keyword.arg in found:
                found[keyword.arg] = replace(found[keyword.arg], default=source.evaluate(keyword.value))
    texts = arguments_in(ast.get_docstring(function) or "")
    found = {name: replace(option, help=texts.get(name, option.help)) for name, option in found.items()}
    return dict(sorted(found.items(), key=lambda item: not (item[1].positional or item[1].default is REQUIRED)))


def options_for(verb: str, said: Mapping[str, Any]) -> dict[str, Option]:
    """The options of a verb, with the defaults of the task and the data in question.

    Args:
        verb: any.
        said: values of options that are known; `task` and `data` count.
    """
    options = options_of(verb)
    if verb not in TRAINING or "task" not in options:
        return options
    task = said.get("task", options["task"].default)
    if not isinstance(task, str) or task not in TASKS:
        return options  # refused by whoever reads its value
    own = default_options(task, said.get("data"))
    return {
        name: replace(option, default=_over(option.default, own[name])) if name in own else option
        for name, option in options.items()
    }


def _over(default: Any, value: Any) -> Any:
    return replace(default, **value) if is_dataclass(default) and not isinstance(default, type) else value


def signature_of(verb: str, said: Mapping[str, Any] = MappingProxyType({})) -> inspect.Signature:
    """The signature of a verb as Python sees it, every option by itself.

    Args:
        verb: any.
        said: values of options that are known, on which defaults depend.
    """
    parameter = inspect.Parameter
    return inspect.Signature(
        [
            parameter(
                option.name,
                parameter.POSITIONAL_OR_KEYWORD if option.positional else parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=option.type,
            )
            for option in options_for(verb, said).values()
        ],
        return_annotation=dict[str, Any],
    )


def usage_of(verb: str) -> str:
    """How a verb is called: what may be given without its option's name, and what must be given."""
    words = []
    for option in options_of(verb).values():
        name, required = option.name.upper(), option.default is REQUIRED
        if option.positional:
            name += " ..." if "list" in str(option.type) else ""
            words.append(name if required else f"[{name}]")
        elif required:
            words.append(f"--{option.name} {name}")
    return f"vitdistill {' '.join([verb, *words, '[options]'])}"


def documentation(verb: str) -> str:
    """A verb's docstring with all of its options."""
    function = Source.of(module_of(verb)).definition(function_of(verb))
    before, _, after = (ast.get_docstring(function) or "").partition("\nArgs:\n")  # type: ignore[arg-type]
    behind = after[after.index("\n\n") :].rstrip() if "\n\n" in after else ""
    lines = "\n".join(f"    {option.name}: {option.help}" for option in options_of(verb).values())
    return f"{before.rstrip()}\n\nArgs:\n{lines}{behind}\n"


def text_type(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type as the command line sees it, and the functions in it that check a value.

    Where Python takes objects, text names them; where text is parsed into a dataclass, it is the text that is given.
    """
    checks: tuple[Any, ...] = ()
    kept = []
    for member in _members(hint):
        if get_origin(member) is Annotated:
            member, *found = get_args(member)
            checks += tuple(found)
        kept += [each for each in _members(member) if not _only_in_python(each)]
    if any(not is_dataclass(member) and member is not NoneType for member in kept):
        kept = [member for member in kept if not is_dataclass(member)]
    return Union[tuple(kept)] if kept else OnlyInPython, checks  # noqa: UP007  # built at run time


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _only_in_python(hint: Any) -> bool:
    of_torch = inspect.isclass(hint) and hint.__module__.startswith("torch")
    return hint is OnlyInPython or isinstance(hint, ForwardRef) or of_torch


# --- reading source ----------------------------------------------------------------------------------------------


def _decorator(function: ast.FunctionDef) -> ast.Call | None:
    for node in function.decorator_list:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == DECORATOR:
            return node
    return None


def _given_by_decorator(function: ast.FunctionDef) -> int:
    """How many of the first parameters the decorator fills in: the job."""
    return 0 if _decorator(function) is None else 1


def _parameters(source: Source, function: ast.FunctionDef, skip: int = 0) -> Iterator[Option]:
    """The options that a function declares, bundles unfolded."""
    arguments = function.args
    texts = arguments_in(ast.get_docstring(function) or "")
    positional, keyword_only = arguments.args[skip:], arguments.kwonlyargs
    defaults = [*[None] * (len(arguments.args) - len(arguments.defaults)), *arguments.defaults][skip:]
    pairs = [*zip(positional, defaults, strict=True), *zip(keyword_only, arguments.kw_defaults, strict=True)]
    for argument, default in pairs:
        hint = source.annotation(argument.annotation)
        if inspect.isclass(hint) and issubclass(hint, Flat):
            yield from _fields(hint)
            continue
        value = REQUIRED if default is None else source.evaluate(default)
        yield _option(argument.arg, hint, value, texts.get(argument.arg, ""), positional=argument in positional)


def _option(name: str, hint: Any, default: Any, text: str, positional: bool = False) -> Option:
    read, checks = text_type(hint)
    return Option(name, read, default, text, positional, checks)


def _followed(source: Source, function: ast.FunctionDef, keywords: str) -> Iterator[Option]:
    """The options of the class to which a function hands its `**keywords`, and of those to which that one hands its."""
    imported = dict(names_of(function.body))
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if not any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == keywords for k in node.keywords):
            continue
        where = imported.get(node.func.id)
        home = Source.of(where.module or "") if isinstance(where, ast.ImportFrom) else source
        home = home.home(node.func.id)
        cls = home.definition(node.func.id)
        assert isinstance(cls, ast.ClassDef)
        init = next(each for each in cls.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
        given = {each.arg for each in node.keywords}
        keyword_only = {each.arg for each in init.args.kwonlyargs}
        own = [option for option in _parameters(home, init, skip=len(init.args.args)) if option.name in keyword_only]
        handed_on = () if init.args.kwarg is None else _followed(home, init, init.args.kwarg.arg)
        yield from (option for option in (*own, *handed_on) if option.name not in given)
        return
    raise AssertionError(f"{source.module} hands its **{keywords} on to no class")


def _fields(cls: type[Any]) -> Iterator[Option]:
    """The fields of a bundle, with their docstrings."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        node = Source.of(base.__module__).definition(base.__name__)
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    texts[name] = " ".join(words.split())
    for each in fields(cls):
        default = each.default if each.default is not MISSING else REQUIRED
        yield _option(each.name, each.type, default, texts.get(each.name, ""))
