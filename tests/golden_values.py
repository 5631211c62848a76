"""Reference values: tiny networks and what the authors' implementation computed from them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """One case: `hyper` parameters, `inputs`, `weights` of each network, and expected values to `check` against."""

    def __init__(self, name: str) -> None:
        description = json.loads((FOLDER / f"{name}.json").read_text())
        self.hyper: dict[str, Any] = description["hyperparameters"]
        self.tolerance: dict[str, float | str] = description["suggested_tolerance"]["per_tensor"]
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        self.inputs = self.part("input")
        self.expected = self.part("expect")
        self.checked: set[str] = set()

    def part(self, role: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a role ("input", "expect", "student", "teacher"), without it."""
        return {name.partition(".")[2]: t for name, t in self.tensors.items() if name.partition(".")[0] == role}

    def load(self, net: nn.Module, role: str) -> nn.Module:
        """The network with the weights of a role, loaded strictly."""
        net.load_state_dict(self.part(role))
        return net.eval()

    def check(self, name: str, got: Tensor) -> None:
        """Hold a value to its reference: `max|got - expect| <= tolerance * max|expect|`, integers exactly."""
        expect, tolerance = self.expected[name], self.tolerance[name]
        self.checked.add(name)
        assert got.shape == expect.shape, f"{name}: {tuple(got.shape)} instead of {tuple(expect.shape)}"
        if tolerance == "exact":
            assert torch.equal(got, expect), name
            return
        error, scale = float((got.detach() - expect).abs().max()), float(expect.abs().max())
        assert error <= float(tolerance) * scale, f"{name}: error {error:.1e} above {tolerance} of {scale:.1e}"
