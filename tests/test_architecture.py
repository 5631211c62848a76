"""Who may import whom, and that no files import each other in a circle.

Imports inside functions count; imports for type checkers alone do not.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

import vitdistill

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "vitdistill"
GROUND = {"types", "errors", "files", "tokens", "losses"}

# Folder (or file) of the package -> what it must not import.
FORBIDDEN = {
    "data": {"models", "methods", "tasks", "training", "evaluation", "reporting", "runs", "verbs", "studies"},
    "models": {"methods", "tasks", "data", "training", "evaluation", "reporting", "runs", "verbs", "studies"},
    "tasks": {"methods", "training", "evaluation", "reporting", "verbs", "studies"},
    "methods": {"data", "training", "evaluation", "reporting", "runs", "verbs", "studies"},
    "training": {"reporting", "evaluation", "verbs", "studies"},
    "evaluation": {"reporting", "verbs", "studies"},
    "exporting": {"reporting", "verbs", "studies"},
    "reporting": {"verbs", "studies"},
    "runs": {"reporting", "evaluation", "studies"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if for_type_checkers(node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` imports the module, `from module import name` the module it names.
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES) or {node.module}
        todo.extend(ast.iter_child_nodes(node))
    return found & set(MODULES)


@cache
def all_imports() -> dict[str, set[str]]:
    """Of every module. Read by the first test that asks: not by every process that collects the tests."""
    return {name: imports(path) for name, path in MODULES.items()}


def room(module: str) -> str:
    """The folder or file of the package in which a module lives."""
    return module.removeprefix(f"{PACKAGE}.").partition(".")[0]


def test_the_ground_floor_imports_nothing_above_it() -> None:
    above = {
        f"{name} imports {wanted}"
        for name, found in all_imports().items()
        if room(name) in GROUND
        for wanted in found
        if room(wanted) not in GROUND
    }
    assert not above


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_import_rules(folder: str) -> None:
    assert any(room(name) == folder for name in MODULES)
    broken = {
        f"{name} imports {wanted}"
        for name, found in all_imports().items()
        if room(name) == folder
        for wanted in found
        if room(wanted) in FORBIDDEN[folder]
    }
    assert not broken


def test_no_files_import_each_other_in_a_circle() -> None:
    circles, state, path = set(), dict.fromkeys(all_imports(), "new"), []

    def visit(name: str) -> None:
        state[name] = "open"
        path.append(name)
        for wanted in sorted(all_imports()[name]):
            if state[wanted] == "open":
                circles.add(" -> ".join([*path[path.index(wanted) :], wanted]))
            elif state[wanted] == "new":
                visit(wanted)
        path.pop()
        state[name] = "done"

    for name in all_imports():
        if state[name] == "new":
            visit(name)
    assert not circles


def test_every_public_name_is_where_the_package_says() -> None:
    for name in vitdistill.__all__:
        assert getattr(vitdistill, name).__name__ == name
