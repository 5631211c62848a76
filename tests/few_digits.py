"""A sixth of the bundled digits: for modules that look at what a run does, not at what is learnt from 1437 images."""

from collections.abc import Iterator

import pytest

from vitdistill.data.bundled import digits, moving_digits

SHARE = 6
VARIABLE = "FEW_DIGITS"  # tells processes that are started, see `killed_runs`
split = digits.split


def take_few() -> None:
    """From here on there are 240 digits, and clips of digits, to train on and 60 to validate on."""
    digits.split = lambda labels: tuple(part[::SHARE] for part in split(labels))
    forget()


def forget() -> None:
    """What is open already is opened anew."""
    digits.digits.cache_clear()
    moving_digits.moving_digits.cache_clear()


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """For a whole module: `pytestmark = pytest.mark.usefixtures("few_digits")`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "split", split)  # put back at the end
        patch.setenv(VARIABLE, "1")
        take_few()
        yield
    forget()


@pytest.fixture
def all_digits(few_digits: None) -> Iterator[None]:
    """For one test of such a module: all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "split", split)
        patch.delenv(VARIABLE)
        forget()
        yield
    forget()
