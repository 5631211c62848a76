"""Who started this process: torchrun and SLURM start all processes of a run themselves, and say so by variables.

Lightning finds these environments, but does not compare them with the trainer's `devices` and `num_nodes`: with other
numbers, processes train each for itself, or wait for others that nobody starts.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitdistill.errors import UserError, together
from vitdistill.files import started_by_slurm, started_by_torchrun


@dataclass(frozen=True)
class Launch:
    """The processes of a run that were started from outside.

    Attributes:
        by: torchrun or SLURM.
        nodes: machines.
        per_node: processes on each of them.
    """

    by: str
    nodes: int
    per_node: int

    def __str__(self) -> str:
        return f"{_counted(self.per_node, 'process')} on {_counted(self.nodes, 'node')}"


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What the environment says; None where processes are started by this one, or there is one alone.

    Raises:
        UserError: when the processes are not spread evenly, or SLURM does not say how many a node has.

    Example:
        >>> launched({"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"})
        Launch(by='SLURM', nodes=2, per_node=8)
    """
    if started_by_torchrun(environment):
        processes, per_node = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        if processes % per_node:
            raise UserError("torchrun must start as many processes on every node", f"{processes}, {per_node} here")
        return Launch("torchrun", processes // per_node, per_node)
    if not started_by_slurm(environment):
        return None
    tasks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES") or 1)
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise UserError(
            "SLURM must be told how many processes each node gets",
            f"{tasks} on {_counted(nodes, 'node')}, without --ntasks-per-node",
            f"Add #SBATCH --ntasks-per-node={max(1, tasks // nodes)}",
        )
    per_node = int(environment.get("SLURM_NTASKS_PER_NODE") or 1)
    if per_node * nodes != tasks:
        got = f"{tasks} after {per_node} on each of {_counted(nodes, 'node')}"
        raise UserError("SLURM must start as many processes on every node", got, "Leave out --ntasks")
    return Launch("SLURM", nodes, per_node)


def devices_and_nodes(arguments: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The trainer's `devices` and `num_nodes` where the environment says them; nothing elsewhere.

    Args:
        arguments: of the trainer, as they were given.
        environment: the process's variables.

    Raises:
        UserError: when others were given.
    """
    with together():  # every process has the same environment
        return _devices_and_nodes(arguments, launched(environment))


def _devices_and_nodes(arguments: Mapping[str, Any], launch: Launch | None) -> dict[str, int]:
    if launch is None:
        return {}
    found = {"devices": launch.per_node, "num_nodes": launch.nodes}
    given = {"devices": _count(arguments.get("devices")), "num_nodes": arguments.get("num_nodes")}
    for name, number in found.items():
        if given[name] not in (None, number):
            raise UserError(
                f"--trainer.{name} must be {number}, since {launch.by} started {launch}",
                arguments[name],
                f"Leave out --trainer.devices and --trainer.num_nodes, or start others ({_HOW[launch.by]})",
            )
    # Devices that were given by their numbers stay those.
    return {name: number for name, number in found.items() if given[name] is None}


_HOW = {
    "torchrun": "--nnodes and --nproc_per_node",
    "SLURM": "#SBATCH --nodes and --ntasks-per-node, and srun",
}


def _count(devices: Any) -> int | None:
    """How many devices an argument asks for; None where it leaves that open."""
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, list | tuple):
        return len(devices)
    return None if devices is None or str(devices) in ("auto", "-1") else int(devices)


def sharing_cores(processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Among how many processes the cores that this one may use are shared: SLURM binds each task to its own.

    Args:
        processes: on this node.
        environment: the process's variables.
    """
    own = int(environment.get("SLURM_CPUS_PER_TASK") or 0) if started_by_slurm(environment) else 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if usable <= own else processes


def lost_process(error: RuntimeError) -> str:
    """What an error of a collective says of another process that is no longer there; nothing for any other error.

    Example:
        >>> lost_process(RuntimeError("[pair.cc:545] Read error [127.0.0.1]:73: Connection reset by peer. This is"))
        'Connection reset by peer'
    """
    found = re.search(r"Connection (?:closed|reset) by peer|remote process exited", str(error))
    return found.group() if found else ""


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")
