"""Whether runs write their reports: drawing one costs more than a tiny training, so tests that read it ask for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vitdistill.verbs import job

WRITE = job.write_report


@contextmanager
def reports() -> Iterator[None]:
    """Runs that end in this context write report.html, as they do for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_report", WRITE)
        yield


@pytest.fixture
def report() -> Iterator[None]:
    """Runs of this test write report.html."""
    with reports():
        yield


@pytest.fixture(scope="session", autouse=True)
def no_report() -> Iterator[None]:
    """Other runs end without one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_report", lambda run: None)
        yield
