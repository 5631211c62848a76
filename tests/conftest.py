"""Shared by all tests: shapes and types are checked while they run, and tiny networks stand in for real ones."""

import os
import warnings

import pytest
from jaxtyping import install_import_hook

# Before anything imports the package. Every annotated function and dataclass of it then checks types and shapes.
install_import_hook(["vitdistill"], "type_checks.check")

# Fixtures: of networks, of runs trained in a second or written without training, and of what such runs need.
FIXTURES = (
    *("networks", "trained_runs", "written_runs", "colours", "stopped_commands", "run_reports", "few_digits"),
    "robustness_sets",
)

warnings.filterwarnings("ignore", message=".*lightning_fabric.*")


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands out tests (`-n 2`) runs none: the others need not wait until it has imported torch."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)
