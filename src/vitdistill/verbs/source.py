"""Python source, read without running it: the names of a module, and what its docstrings say of arguments."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import vitdistill

ROOT = Path(vitdistill.__file__).parent
PRESENT = {"dataclasses", "functools", "pathlib", "collections.abc", "types", "typing"}  # modules with types of options


class _Nothing(type):
    """Attributes and parts of a type that is not there are not there either."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: object) -> Any:
        return cls


class OnlyInPython(metaclass=_Nothing):
    """Stands for a type of which no value can be written as text, such as a network."""


class Source(Mapping[str, Any]):
    """The names at the top of a module, resolved without running it."""

    def __init__(self, module: str) -> None:
        path = ROOT.parent.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.module, self.file = module, str(file)
        self._nodes = dict(names_of(ast.parse(file.read_text(encoding="utf-8")).body))

    @classmethod
    @cache
    def of(cls, module: str) -> "Source":
        return cls(module)

    def definition(self, name: str) -> ast.stmt:
        """The statement that binds a name, in this module or in that from which it is imported."""
        node = self._nodes[name]
        if isinstance(node, ast.ImportFrom):
            return Source.of(node.module or "").definition(_original(node, name))
        return node

    def home(self, name: str) -> "Source":
        """The module in which a name is defined."""
        node = self._nodes[name]
        return Source.of(node.module or "").home(_original(node, name)) if isinstance(node, ast.ImportFrom) else self

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an expression of this module."""
        return eval(compile(ast.Expression(node), self.file, "eval"), {}, self)

    def annotation(self, node: ast.expr | None) -> Any:
        """The type that an annotation names."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        return Any if node is None else self.evaluate(node)

    def __getitem__(self, name: str) -> Any:
        node = self._nodes[name]  # a KeyError sends Python on to the builtins
        match node:
            case ast.ImportFrom(module=module):
                if module in PRESENT:
                    return getattr(import_module(str(module)), _original(node, name))
                if str(module).startswith("vitdistill"):
                    return Source.of(str(module))[_original(node, name)]
                return OnlyInPython
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                return self.evaluate(value)
            case ast.ClassDef() if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
                return getattr(import_module(self.module), name)
            case ast.FunctionDef():
                return getattr(import_module(self.module), name)
        return OnlyInPython

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def names_of(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Each name that is bound, with the statement that does it; those under `if TYPE_CHECKING` as well."""
    for statement in statements:
        match statement:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((alias.asname or alias.name, statement) for alias in names)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name, statement
            case ast.If(body=body):
                yield from names_of(body)


def _original(node: ast.ImportFrom, name: str) -> str:
    """The name in the module from which it is imported."""
    return next(alias.name for alias in node.names if (alias.asname or alias.name) == name)


def arguments_in(docstring: str) -> dict[str, str]:
    """What the section `Args:` of a docstring says of each argument, in one line each."""
    lines = docstring.splitlines()
    if "Args:" not in lines:
        return {}
    texts: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            texts[name.removesuffix(":")] = text
        elif line.strip():
            texts[name] += f" {line.strip()}"
    return texts
