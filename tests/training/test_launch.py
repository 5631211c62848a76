"""Who started the processes of a run, and which of them writes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vitdistill.cli import main
from vitdistill.errors import UserError
from vitdistill.files import is_first_process
from vitdistill.training.launch import Launch, devices_and_nodes, launched, sharing_cores

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "8", "LOCAL_RANK": "0"}
SLURM = {
    **{"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8"},
    **{"SLURM_NNODES": "2", "SLURM_PROCID": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"},
}


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        # Lightning, started by hand on every node.
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({**TORCHRUN, "RANK": "0"}, True),
        ({**TORCHRUN}, False),
        ({**SLURM, "SLURM_PROCID": "0"}, True),
        ({**SLURM}, False),
        ({**SLURM, "LOCAL_RANK": "0"}, False),
        # A shell of `srun --pty bash` is no task of a run.
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, True),
        # torchrun as one task a node: it may number the nodes otherwise.
        ({**SLURM, **TORCHRUN, "RANK": "0", "SLURM_PROCID": "1"}, True),
        ({**SLURM, **TORCHRUN, "SLURM_PROCID": "0"}, False),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else None,
)
def test_the_first_process_is_the_innermost_launcher_s(environment: dict[str, str], first: bool) -> None:
    assert is_first_process(environment) is first


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1"}, None),
        (TORCHRUN, Launch("torchrun", 2, 8)),
        (SLURM, Launch("SLURM", 2, 8)),
        ({"SLURM_NTASKS": "1"}, Launch("SLURM", 1, 1)),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, None),
        ({**SLURM, **TORCHRUN, "WORLD_SIZE": "8"}, Launch("torchrun", 1, 8)),
    ],
    ids=str,
)
def test_launchers_say_how_many_processes_there_are(environment: dict[str, str], launch: Launch | None) -> None:
    assert launched(environment) == launch
    expected = {} if launch is None else {"devices": launch.per_node, "num_nodes": launch.nodes}
    assert devices_and_nodes({}, environment) == devices_and_nodes({"devices": "auto"}, environment) == expected


@pytest.mark.parametrize(
    ("environment", "arguments", "words"),
    [
        (
            TORCHRUN,
            {"devices": 4},
            "devices must be 8, since torchrun started 8 processes on 2 nodes; got 4",
        ),
        (SLURM, {"devices": 8, "num_nodes": 4}, "num_nodes must be 2, since SLURM started.*got 4.*--ntasks-per-node"),
        (SLURM, {"devices": "0,1"}, "got 0,1"),
        (SLURM, {"devices": [0, 1]}, r"got \[0, 1\]"),
        ({"SLURM_NTASKS": "1"}, {"devices": 8}, "must be 1, since SLURM started 1 process on 1 node; got 8"),
        ({"SLURM_NTASKS": "16", "SLURM_NNODES": "2"}, {}, "Add #SBATCH --ntasks-per-node=8"),
        ({**SLURM, "SLURM_NTASKS": "12"}, {}, "as many processes on every node; got 12 after 8 on each of 2 nodes"),
        ({**TORCHRUN, "WORLD_SIZE": "12"}, {}, "as many processes on every node"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_other_numbers_than_the_launcher_s_are_refused(
    environment: dict[str, str], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        devices_and_nodes(arguments, environment)
    assert "\n" not in str(error.value) and error.value.everywhere


def test_devices_that_are_named_stay_those() -> None:
    assert devices_and_nodes({"devices": list(range(8))}, TORCHRUN) == {"num_nodes": 2}


@pytest.mark.parametrize("number", [0, 1], ids=["first", "second"])
def test_the_first_process_says_that_the_numbers_are_others(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**SLURM, "SLURM_PROCID": str(number)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    command = ["supervised", "--student", "digits_vit_small", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*command, "--trainer.devices", "2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == (number == 0) and ("must be 8, since SLURM started" in said) == (number == 0)
    assert not (tmp_path / "run").exists()


def test_cores_are_shared_unless_slurm_gave_each_task_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert sharing_cores(4, {}) == sharing_cores(4, {**SLURM}) == 4
    assert sharing_cores(4, {**SLURM, "SLURM_CPUS_PER_TASK": "8"}) == 1
    assert sharing_cores(4, {**SLURM, "SLURM_CPUS_PER_TASK": "2"}) == 4  # not bound
