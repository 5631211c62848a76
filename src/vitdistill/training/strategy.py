"""`--trainer.strategy fsdp`: every process holds a share of the student's weights, gradients and optimizer state."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vitdistill.errors import UserError
from vitdistill.methods.method import Method
from vitdistill.training.settings import Settings
from vitdistill.training.sharding import shard


class FullySharded(ModelParallelStrategy):
    """Fully sharded data parallel by torch's `fully_shard` (FSDP2): one shard group a block, one for the rest.

    Lightning's own `fsdp` is not used. It runs on GPUs only, so that no test can hold it to one process; it makes the
    whole student one group, which every process then gathers at once; it cannot clip by the norm; and it flattens
    weights, which changes what optimizers that look at their shape or norm (LAMB, Muon) compute.

    Checkpoints are whole files, written by the first process, with the content that one process would write: an
    interrupted run can go on under another strategy. Teachers are no modules of the method (see
    `Teacher`), so they are not sharded.

    Example:
        >>> pl.Trainer(strategy=FullySharded(), devices=8)
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        # Lightning's defaults would split the layers themselves within a node (tensor parallelism).
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, method: Method) -> None:
        """Replace the method's parameters by this process's shares; called once all processes are known."""
        shard(method, self.device_mesh["data_parallel"])

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's whole state, its parameters numbered as by any optimizer; collective, and empty elsewhere.

        Lightning numbers them in the order of the module, so that no other strategy could go on with them.
        """
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        found = optimizer.state_dict()
        state = {
            number: {name: self._whole(value) for name, value in values.items()}
            for number, values in found["state"].items()
        }
        return {**found, "state": state} if self.is_global_zero else {}

    def _whole(self, value: Any) -> Any:
        """A tensor as one, in the first process's memory; the others help to gather it and keep nothing."""
        if not isinstance(value, DTensor):
            return value.cpu() if isinstance(value, Tensor) else value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Take up this process's shares of a whole checkpoint.

        Raises:
            RuntimeError: when it is of another network, as `load_state_dict` says it.
        """
        path = Path(self.broadcast(checkpoint_path))
        # Mapped, so that the processes of one machine do not each hold all of it.
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        assert isinstance(self.model, nn.Module)
        weights = self.model.state_dict()
        self.model.load_state_dict(
            {name: _share(value, weights.get(name)) for name, value in content.pop("state_dict").items()}
        )
        for optimizer, state in zip(self.optimizers, content.pop("optimizer_states", ()), strict=True):
            parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
            state["state"] = {
                number: {name: _share(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict(state)
        return content


def _share(value: Any, like: Tensor | None) -> Any:
    """This process's share of a whole tensor of the shape of `like`, a sharded one; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def strategy_of(strategy: Any, settings: Settings) -> Any:
    """What Lightning's trainer gets for `--trainer.strategy`: its own strategies as they are, `fsdp` as ours.

    Args:
        strategy: a name, or a strategy object.
        settings: of the run.

    Raises:
        UserError: for options that sharded weights do not allow.
    """
    if "fsdp" not in str(strategy).lower():
        return strategy
    if str(strategy).lower() not in ("fsdp", "fsdp_cpu_offload"):
        return strategy
    if str(strategy).lower() != "fsdp":
        raise UserError("--trainer.strategy fsdp keeps its shares on the devices", strategy, "Use fsdp")
    for option, given in (("--optim.ema", settings.optim.ema is not None), ("--compile", settings.compile)):
        if given:
            raise UserError(f"{option} is not available with --trainer.strategy fsdp", remedy="Leave out one of them")
    return FullySharded()
