"""SIGINT (Ctrl-C) and SIGTERM: a command ends at once, unless it is at something that it finishes first.

What is under way says so with `stop_after` and `stop_now`; `stopping` puts the handler in place. This file is imported
by the command line before all else, so it imports nothing heavy.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from vitdistill.files import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which further signals are the same one: `timeout` and others signal the process and then its whole group.
AGAIN = 0.5
STATUS = 130  # of a command that was stopped


class Interrupted(BaseException):
    """Raised after a signal, where the command ends; not a `KeyboardInterrupt`, which Lightning turns into an exit.

    Its text is what the command says at its end.
    """


class _Stop:
    """Whether this process was asked to stop, and what it is at; signals are of the process, so there is one."""

    def __init__(self) -> None:
        self.installed: dict[int, Any] = {}  # the handlers that were there before
        self.leave = False
        self.pid = 0
        self.reset()

    def reset(self) -> None:
        self.asked_at: float | None = None
        self.finishing: str | None = None
        self.words = "stopped"
        self.others: Callable[[], None] | None = None  # ends the processes that this one has started

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return  # of a process that was forked a moment ago; whoever forked it decides
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            if self.finishing is not None:
                _say(f"stopping after {self.finishing}; a second signal stops at once")
            elif not _is_launched():  # such a process would take the first one down with an error; that one asks it
                raise Interrupted(self.words)
        elif now - self.asked_at >= AGAIN:
            self.end_at_once()

    def end_at_once(self) -> None:
        """Without finishing or saving anything. Nothing is raised in a command, whose own end could take long."""
        if not self.leave:
            raise Interrupted("stopped at once")
        _say("stopped at once", cursor=True)
        if self.others is not None:
            self.others()
        if "multiprocessing" in sys.modules:
            from multiprocessing import active_children

            for child in active_children():
                child.kill()
        os._exit(STATUS)


_stop = _Stop()


@contextmanager
def stopping(*, leave: bool = False) -> Iterator[None]:
    """Handle SIGINT and SIGTERM in what is inside; has no effect within another one, or outside of the main thread.

    Args:
        leave: whether the process ends after what is inside. Then a second signal ends it on the spot, and after a
            first one the handler stays in place, so that nothing is interrupted on the way out.

    Raises:
        KeyboardInterrupt: when what is inside was interrupted.

    Example:
        with stopping():
            stop_after("the file")
            write(file)
            stop_now("stopped; the file is written")
    """
    if _stop.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop.reset()
    _stop.leave, _stop.pid = leave, os.getpid()
    _stop.installed = {number: signal.getsignal(number) for number in SIGNALS}
    install()
    try:
        yield
    except Interrupted as stop:
        raise KeyboardInterrupt(str(stop)) from None
    finally:
        if not (leave and asked()):
            for number, handler in _stop.installed.items():
                signal.signal(number, handler)
            _stop.reset()
        _stop.installed = {}


def install() -> None:
    """Put the handlers of `stopping` in place again, where a library has put its own there."""
    if _stop.installed:
        for number in SIGNALS:
            signal.signal(number, _stop.on_signal)


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _stop.asked_at is not None


def stop_after(what: str) -> None:
    """From here on a signal is only taken note of, for `asked`, and the command says that it stops after `what`."""
    _stop.finishing = what


def stop_now(words: str = "stopped") -> None:
    """From here on a signal ends the command at once, saying `words`.

    Raises:
        Interrupted: when there was a signal since `stop_after`.
    """
    _stop.finishing, _stop.words = None, words
    if asked() and not _is_launched():
        raise Interrupted(words)


def end_with(others: Callable[[], None] | None) -> None:
    """What to call when this process ends on the spot: it ends the processes that this one has started."""
    _stop.others = others


def _is_launched() -> bool:
    """Whether the first process of the training has started this one, and watches it (see Lightning's launcher)."""
    by_cluster = any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID"))
    return not by_cluster and int(os.environ.get("LOCAL_RANK") or 0) > 0


def _say(text: str, cursor: bool = False) -> None:
    """One line, by a single write: the signal may have come in the middle of another one.

    Args:
        text: the line.
        cursor: show a terminal's cursor again, which a progress bar may have hidden.
    """
    if not is_first_process():
        return
    terminal = sys.stderr is not None and sys.stderr.isatty()
    line = f"\r\x1b[2K{text}\n" if terminal else f"{text}\n"  # in place of a progress bar, which comes again below
    if terminal and cursor:
        line += "\x1b[?25h"
    try:
        os.write(sys.stderr.fileno(), line.encode())
    except (AttributeError, OSError, ValueError):  # a notebook's
        with suppress(Exception):
            sys.stderr.write(line)
