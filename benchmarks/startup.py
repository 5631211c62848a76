"""Wall time from the command to the answer: help, refusals, `cost`, and the first training step.

    python benchmarks/startup.py            # two minutes; writes benchmarks/results/startup_<machine>.{json,md}
    python benchmarks/startup.py --smoke    # once each, writes nothing

Whole processes, with compiled bytecode, taking turns; medians of several rounds. The last command ends its process as
its first training step is done, of a tiny run on the bundled digits. The time that `import torch` takes alone is
measured beside them, since nothing that computes can begin before it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import timm
import torch

from common import machine_name, met, parser_of, write
from vitdistill.costing.measure import hardware

CLI = [sys.executable, "-m", "vitdistill"]
TINY = ["--student", "digits_vit_small", "--data", "digits"]
QUICK, WORKS = 0.5, 2.0  # seconds: what needs no torch; what begins to compute, behind the import of torch

# Ends its process when the first optimizer step is done, which is when the second batch comes.
FIRST_STEP = """
import os, sys, time
from vitdistill.cli import main
from vitdistill.verbs import job

call = job._call

def then_watch(function, one):
    method = call(function, one)
    from vitdistill.training.module import TrainingModule
    step, steps = TrainingModule.training_step, []

    def watched(self, batch, batch_idx):
        if steps:
            print(time.time(), flush=True)
            os._exit(0)
        steps.append(batch_idx)
        return step(self, batch, batch_idx)

    TrainingModule.training_step = watched
    return method

job._call = then_watch
sys.exit(main(sys.argv[1:]))
"""


def commands(out: Path) -> dict[str, tuple[list[str], int, bool]]:
    """Per row of the table: the process, its exit status, and whether it should do without torch."""
    train = ["supervised", *TINY, "--out", str(out), "--overwrite", "--epochs", "1", "--batch_size", "64"]
    return {
        "`--help`": ([*CLI, "--help"], 0, True),
        "`maskedkd --help`": ([*CLI, "maskedkd", "--help"], 0, True),
        "a refused option, `maskedkd --kep 0.5`": (
            [*CLI, "maskedkd", *TINY, "--out", str(out), "--kep", "0.5"],
            2,
            True,
        ),
        "a refused value, `maskedkd --keep nan`": (
            [*CLI, "maskedkd", *TINY, "--out", str(out), "--keep", "nan"],
            2,
            True,
        ),
        "an unknown model, `cost --teacher deit_smal_patch16_224`": (
            [*CLI, "cost", "--teacher", "deit_smal_patch16_224"],
            2,
            True,
        ),
        "`import torch`, for comparison": ([sys.executable, "-c", "import torch"], 0, False),
        "`import timm`, for comparison": ([sys.executable, "-c", "import timm"], 0, False),
        "`cost --teacher deit_small_patch16_224`": ([*CLI, "cost", "--teacher", "deit_small_patch16_224"], 0, False),
        "first training step, `supervised` on digits": ([sys.executable, "-c", FIRST_STEP, *train], 0, False),
    }


def seconds(command: list[str], status: int) -> float:
    """Wall time of a process, or until the moment that it prints, when it measures itself."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    ended = time.time()
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command[:6])} ended with {done.returncode}: {done.stderr[-500:]}")
    return (float(done.stdout.split()[-1]) if FIRST_STEP in command else ended) - began


def measure(rounds: int, warm: Callable[[str], None] = print) -> dict[str, Any]:
    """Medians and spreads, in seconds; a first round compiles bytecode and is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        todo = commands(Path(folder) / "run")
        times: dict[str, list[float]] = {name: [] for name in todo}
        for number in range(rounds + 1):
            for name, (command, status, _) in todo.items():
                took = seconds(command, status)
                if number:
                    times[name].append(took)
            warm(f"round {number} of {rounds}")
    return {
        name: {
            "median_s": round(median(found), 3),
            "spread_s": round(_spread(found), 3),
            "without_torch": todo[name][2],
        }
        for name, found in times.items()
    }


def _spread(times: list[float]) -> float:
    """Between quartiles."""
    if len(times) < 2:
        return 0.0
    low, _, high = quantiles(times, n=4)
    return high - low


def markdown(result: dict[str, Any]) -> str:
    """The results as a page."""
    facts, rows = result["hardware"], result["commands"]
    quick = max(row["median_s"] for row in rows.values() if row["without_torch"])
    behind = rows["first training step, `supervised` on digits"]["median_s"]
    behind -= rows["`import torch`, for comparison"]["median_s"]
    lines = [
        f"# Start-up on {result['machine']}",
        "",
        f"`python benchmarks/startup.py`. {facts['cpu']}, {facts['cpu_cores']} cores; Python {result['python']}, torch "
        f"{facts['torch']}, timm {result['timm']}. Whole processes with compiled bytecode; medians of "
        f"{result['rounds']} rounds in which the commands take turns; spread is between quartiles.",
        "",
        "| command | seconds | spread |",
        "|---|---:|---:|",
        *(f"| {name} | {row['median_s']:.2f} | {row['spread_s']:.2f} |" for name, row in rows.items()),
        "",
        f"- {met(quick < QUICK)}: what text decides takes less than {QUICK} s (slowest {quick:.2f} s).",
        f"- {met(behind < WORKS)}: the first step is done within {WORKS:.0f} s of importing torch ({behind:.2f} s).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = parser_of(__doc__, smoke="each command once", device=False)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    options = parser.parse_args()
    rounds = 1 if options.smoke else options.rounds
    result = {
        "machine": options.machine or machine_name(torch.device("cpu")),
        "hardware": hardware(),
        "python": sys.version.split()[0],
        "timm": timm.__version__,
        "rounds": rounds,
        "commands": measure(rounds),
    }
    print(markdown(result))
    if not options.smoke:
        write(options.out, "startup", result, markdown(result))


if __name__ == "__main__":
    main()
