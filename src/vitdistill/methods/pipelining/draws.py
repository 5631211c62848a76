"""Drop path and dropout of a batch whose pass comes in parts: the numbers that one pass over all of it would draw."""

from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network


class Drawn(NamedTuple):
    """One draw of a pass.

    Attributes:
        module: that draws.
        like: an empty tensor of the number format and device of what it is applied to.
        dims: dimensions of that.
    """

    module: nn.Module
    like: Tensor
    dims: int


class Order(NamedTuple):
    """The draws of a pass, in the order in which they are made.

    Attributes:
        key: of the network's state in which they are made so.
        drawn: the draws.
    """

    key: tuple[Any, ...]
    drawn: tuple[Drawn, ...]


class Draws:
    """A context in which a network's drop path and dropout decide for a whole batch and are applied part by part.

    timm's modules draw for the rows that they are given. Here the first part's pass draws for all rows of the batch,
    from the same generator and in the same order as a pass over all of it, and every part takes its own rows. Once the
    order is known from an earlier step, drop path can also be drawn ahead of the pass.

    Blocks that are compiled, or computed again in the backward pass (gradient checkpointing), draw for themselves, part
    by part. So does dropout inside fused attention.
    """

    def __init__(self, network: Network, batch: int, order: Order | None = None) -> None:
        """
        Args:
            network: in training.
            batch: its rows.
            order: of an earlier step.
        """
        self.batch = batch
        self._modules = _drawing(network)
        self._key = _key(self._modules)
        self._order = order if order is not None and order.key == self._key else None
        self._decided: list[Tensor] = []
        self._found: list[Drawn] = []
        self._next = 0
        self._rows = slice(0)

    @property
    def order(self) -> Order | None:
        """For the next step; None while nothing was drawn."""
        return Order(self._key, tuple(self._found)) if self._found else self._order

    @property
    def foreseen(self) -> bool:
        """Whether all draws can be made before the pass: there are none, or their order and shapes are known."""
        only_paths = all(isinstance(module, DropPath) for module in self._modules)
        return not self._modules or (only_paths and self._order is not None)

    def ahead(self) -> None:
        """Make all draws now; they must be foreseen."""
        for module, like, dims in () if self._order is None else self._order.drawn:
            self._decided.append(_decide(module, like.new_empty((self.batch, *[1] * (dims - 1)))))
            self._found.append(Drawn(module, like, dims))

    def part(self, rows: slice) -> None:
        """The pass over these rows begins."""
        self._rows, self._next = rows, 0

    def __enter__(self) -> "Draws":
        for module in self._modules:
            module.forward = partial(self._forward, module)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._modules:
            del module.forward

    def _forward(self, module: nn.Module, x: Tensor) -> Tensor:
        if self._next == len(self._decided):
            self._decided.append(_decide(module, _empty(module, x, self.batch)))
            self._found.append(Drawn(module, x.new_empty(0), x.ndim))
        assert self._found[self._next].module is module, "the network's passes draw in different orders"
        decided = self._decided[self._next][self._rows]
        self._next += 1
        return x * decided


def _drawing(network: Network) -> list[nn.Module]:
    """The modules that draw for a batch in training, where they can be told what was drawn."""
    if isinstance(network, Backbone):
        compiled = any(getattr(block, "_compiled_call_impl", None) is not None for block in network.blocks)
        if compiled or getattr(network.net, "grad_checkpointing", False):
            return []
    return [module for module in network.modules() if module.training and _rate(module) > 0]


def _empty(module: nn.Module, x: Tensor, batch: int) -> Tensor:
    """For what is drawn, laid out in memory as timm and torch do it, since numbers are drawn in that order."""
    if isinstance(module, DropPath):
        return x.new_empty((batch, *[1] * (x.ndim - 1)))
    strides = x.stride()
    layout = sorted(range(x.ndim), key=lambda dim: -strides[dim])
    return torch.empty_permuted((batch, *x.shape[1:]), layout, dtype=x.dtype, device=x.device)


def _rate(module: nn.Module) -> float:
    if isinstance(module, DropPath):
        return float(module.drop_prob or 0)
    return float(module.p) if type(module) is nn.Dropout else 0.0


def _key(modules: list[nn.Module]) -> tuple[Any, ...]:
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return (*((id(module), _rate(module)) for module in modules), *autocast)


def _decide(module: nn.Module, empty: Tensor) -> Tensor:
    """What is multiplied with the rows, drawn as timm's `drop_path` and torch's dropout (on a CPU) draw it."""
    kept = 1 - _rate(module)
    decided = empty.bernoulli_(kept)
    scales = module.scale_by_keep if isinstance(module, DropPath) else True
    return decided.div_(kept) if scales and kept > 0 else decided
