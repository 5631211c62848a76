"""The examples in the docstrings of pure functions run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import vitdistill.losses
import vitdistill.tokens

MODULES = [
    importlib.import_module(found.name)
    for package in (vitdistill.losses, vitdistill.tokens)
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]
# Not through `doctest.testmod`, which overlooks functions that the type checker of the tests wraps.
EXAMPLES = {
    f"{module.__name__}.{name}": (module, value.__doc__)
    for module in MODULES
    for name, value in vars(module).items()
    if getattr(value, "__module__", None) == module.__name__ and ">>>" in (value.__doc__ or "")
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str) -> None:
    module, text = EXAMPLES[name]
    example = doctest.DocTestParser().get_doctest(text, {"torch": torch, **vars(module)}, name, module.__file__, 0)
    report: list[str] = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
    assert example.examples


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 11
