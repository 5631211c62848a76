"""Processes that do one piece of work after the other, so that torch is imported once in each and not once per run.

`concurrent.futures` will not do: there one worker that dies takes all others with it, and no worker can be asked to
stop after its present step.
"""

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from vitdistill.errors import UserError, error_words
from vitdistill.signals import SIGNALS, stopping

PATIENCE = 600.0  # seconds for a worker that was asked to end


class Outcome(NamedTuple):
    """How a piece of work ended.

    Attributes:
        key: which it was.
        problem: what went wrong, in one line; None where nothing did.
        stopped: whether it ended since it was asked to.
    """

    key: Any
    problem: str | None = None
    stopped: bool = False


class Workers:
    """Up to `count` processes with one thread each, started when there is work for them.

    Example:
        with Workers(2, work) as workers:
            workers.submit("a", payload, Path("a.log"))
            outcomes = workers.wait(timeout=1)
    """

    def __init__(self, count: int, work: Callable[[Any], None]) -> None:
        """
        Args:
            count: of processes.
            work: what they do with what is submitted; a function of a module.
        """
        self._count, self._work = count, work
        self._all: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.end()
        self._all = []

    @property
    def free(self) -> int:
        """How many more pieces of work can be taken."""
        return self._count - self.busy

    @property
    def busy(self) -> int:
        """How many pieces of work are under way."""
        return sum(worker.key is not None for worker in self._all)

    def submit(self, key: Any, payload: Any, log: Path) -> None:
        """Give a free worker something to do.

        Args:
            key: what it will be called in its outcome; not None.
            payload: for `work`.
            log: file for what it prints.
        """
        worker = next((each for each in self._all if each.key is None), None)
        if worker is None:
            worker = _Worker(self._work)
            self._all.append(worker)
        worker.give(key, payload, log)

    def wait(self, timeout: float) -> list[Outcome]:
        """What has ended; after so many seconds perhaps nothing."""
        busy = [worker for worker in self._all if worker.key is not None]
        ready = wait([part for worker in busy for part in (worker.connection, worker.process.sentinel)], timeout)
        outcomes = []
        for worker in busy:
            if worker.connection in ready or worker.process.sentinel in ready:
                outcomes += worker.answer()
        for worker in [worker for worker in self._all if worker.gone]:
            self._all.remove(worker)
            worker.end()
        return outcomes

    def stop(self) -> None:
        """Ask all workers to stop as Ctrl-C does; those with nothing to do end."""
        for worker in self._all:
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGTERM)


class _Worker:
    def __init__(self, work: Callable[[Any], None]) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        with _ignored_signals():  # which the process inherits, until it knows what to do with them
            self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work))
            self.process.start()
        theirs.close()
        self.key: Any = None
        self._next: Any = None  # what it is given when it is ready
        self._ready = self.gone = False

    def give(self, key: Any, payload: Any, log: Path) -> None:
        self.key, self._next = key, (payload, str(log))
        self._hand_over()

    def answer(self) -> list[Outcome]:
        """The outcome of its work; nothing where it has only become ready."""
        key = self.key
        try:
            kind, words = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            self.gone, self.key = True, None
            return [Outcome(key, f"its process died ({_how(self.process.exitcode)})")]
        if kind == "ready":
            self._ready = True
            self._hand_over()
            return []
        self.gone, self.key = kind == "stopped", None
        return [Outcome(key, words if kind == "failed" else None, kind == "stopped")]

    def _hand_over(self) -> None:
        if self._ready and self._next is not None:
            with suppress(OSError):  # it died, of which `answer` tells
                self.connection.send(self._next)
            self._next = None

    def end(self) -> None:
        self.connection.close()
        if self.key is not None and self.process.is_alive():
            self.process.terminate()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextmanager
def _ignored_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name
    return f"exit status {code}"


def _serve(connection: Connection, work: Callable[[Any], None]) -> None:
    """What a worker does until there is nothing more to do."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch is imported behind this
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # what was said is in the log also of a process that dies
    try:
        with stopping():
            connection.send(("ready", None))
            while True:
                payload, log = connection.recv()
                connection.send(_done(work, payload, Path(log)))
    except KeyboardInterrupt:
        with suppress(OSError):
            connection.send(("stopped", None))
    except (EOFError, OSError):
        pass  # there is nothing more to do, or nobody to tell


def _done(work: Callable[[Any], None], payload: Any, log: Path) -> tuple[str, str | None]:
    try:
        with _printing_to(log):
            return _told(work, payload)
    except OSError as error:  # of the log
        return "failed", f"{type(error).__name__}: {error_words(error)}"


def _told(work: Callable[[Any], None], payload: Any) -> tuple[str, str | None]:
    try:
        work(payload)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error_words(error)}"
    return "done", None


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Whatever is printed goes to a file, also by libraries, and as the process dies."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(number) for number in (1, 2)]
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.close(file)
