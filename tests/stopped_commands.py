"""Commands in a process group of their own, which tests signal while they are at a given point."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Runs the command line, but holds it where a function was called for the given time, until a signal has come.
HELD = """
import importlib, os, signal, sys, time

where, number = os.environ["HOLD_AT"], int(os.environ["HOLD_CALL"])
module, _, name = where.partition(":")
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), 0

def held(*args, **kwargs):
    global calls
    calls += 1
    if calls == number:
        from vitdistill.signals import asked
        if os.environ.get("LOCAL_RANK", "0") == os.environ.get("HOLD_RANK", "0"):
            print(f"held {os.getpid()}", file=sys.stderr, flush=True)
            while not asked():
                time.sleep(0.01)
            time.sleep(float(os.environ.get("HOLD_LONGER", 0)))
    return original(*args, **kwargs)

setattr(owner, name, held)
from vitdistill.cli import main
sys.exit(main())
"""
TIMEOUT = 240


class Command:
    """A `vitdistill` command under way.

    Attributes:
        pid: of its first process, which is also the number of its group.
        lines: what it has written to stderr so far.
    """

    def __init__(self, folder: Path, words: list[str], hold: tuple[str, int] | None, environment: dict[str, str]):
        """
        Args:
            folder: for the script that holds it.
            words: its arguments.
            hold: "module:Class.function" and at which of its calls to wait for a signal.
            environment: further variables.
        """
        where = {} if hold is None else {"HOLD_AT": hold[0], "HOLD_CALL": str(hold[1])}
        script = folder / "held.py"
        script.write_text(HELD if hold else "import sys\nfrom vitdistill.cli import main\nsys.exit(main())\n")
        threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, str(script), *words],
            env={**os.environ, **threads, **where, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))

    def line(self, beginning: str) -> str:
        """The first line on stderr that begins so; waits for it."""
        return self._wait(lambda: next((line for line in self.lines if line.startswith(beginning)), ""))

    def held(self) -> int:
        """Wait until it is held; the number of the process that is."""
        return int(self.line("held ").split()[1])

    def _wait(self, found: Callable[[], str]) -> str:
        for _ in range(TIMEOUT * 50):
            if text := found():
                return text
            if not self._reader.is_alive():
                break
            time.sleep(0.02)
        if text := found():
            return text
        raise AssertionError("\n".join(self.lines))

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def signal_like_timeout(self) -> None:
        """As GNU timeout: the process, and then its whole group."""
        os.kill(self.pid, signal.SIGTERM)
        os.killpg(self.pid, signal.SIGTERM)

    def end(self) -> tuple[int, list[str]]:
        """Wait for its end: the exit status, and what it wrote to stderr, but for the epochs' lines."""
        status = self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)  # once all processes that write there have ended
        assert not self._reader.is_alive(), "a process is left behind"
        return status, [line for line in self.lines if line and not line.startswith(("held ", "epoch "))]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command: its words, and `hold=("module:Class.function", call)`; further keywords are variables."""
    started: list[Command] = []

    def start(*words: str, hold: tuple[str, int] | None = None, **environment: str) -> Command:
        started.append(Command(tmp_path, list(words), hold, environment))
        return started[-1]

    yield start
    for command in started:
        command.kill()


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise in two classes, 8 pixels each: 32 to train on and 16 to validate on."""
    folder, draws = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder
