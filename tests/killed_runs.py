"""Training runs in processes of their own that are killed in the middle, without a chance to save anything."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from vitdistill.runs.directory import plain

SCRIPT = """
import json, os, signal, sys
import torch
if os.environ.get("FEW_DIGITS"):
    sys.path.insert(0, sys.argv[4])
    from few_digits import take_few
    take_few()
from vitdistill.training.module import TrainingModule
from vitdistill.verbs.parser import parse_config
from vitdistill.verbs.table import verb

name, arguments, last = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
done, original = 0, TrainingModule.training_step

def step_then_die(self, batch, batch_idx):
    global done
    loss = original(self, batch, batch_idx)
    done += 1
    if done == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss

TrainingModule.training_step = step_then_die
torch.set_num_threads(1)
verb(name)(**parse_config(name, arguments))
"""


def kill(verb: str, arguments: dict[str, Any], step: int) -> None:
    """Begin a run and kill it behind the forward pass of a step, counted from 1.

    Args:
        verb: its name.
        arguments: of it, `out` among them.
        step: in which the process dies.
    """
    command = [sys.executable, "-c", SCRIPT, verb, json.dumps(plain(arguments)), str(step)]
    command.append(str(Path(__file__).parent))
    process = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-500:]
