"""Shared by all tests: shapes and types are checked while they run, and tiny networks stand in for real ones."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from jaxtyping import config, install_import_hook

# Before anything imports the package. Every annotated function and dataclass of it then checks types and shapes.
install_import_hook(["vitdistill"], "type_checks.check")

from torch import nn  # noqa: E402

from golden_values import Golden  # noqa: E402
from tiny import FAMILIES, tiny  # noqa: E402

# Fixtures of runs: trained in a second, or written without training.
pytest_plugins = ["trained_runs", "written_runs", "colours", "stopped_commands", "robustness_sets"]

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*lightning_fabric.*")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family that has an adapter with tokens."""
    return request.param


@pytest.fixture
def net(family: str) -> nn.Module:
    """An untouched timm network of each family, in eval mode."""
    return tiny(family)


@pytest.fixture
def images() -> torch.Tensor:
    """Three normalised images of 32 x 32 pixels."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Reference values by case name, computed with the authors' implementation."""
    return Golden


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without type checks, as users run the package: what reaches its own checks of bad input."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
