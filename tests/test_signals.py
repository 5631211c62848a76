"""What a command does when it is asked to stop."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

import vitdistill.cli
from vitdistill import signals
from vitdistill.cli import main
from vitdistill.signals import Interrupted, asked, stop_after, stop_now, stopping

Clock = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Lets time pass that is not waited for."""
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@stopping()
def stopped_in(inside: Callable[[], None]) -> None:
    inside()
    raise AssertionError("a signal must have come")


@pytest.mark.parametrize("number", signals.SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_what_is_inside(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="^stopped$"):
        stopped_in(lambda: send(number))
    assert signal.getsignal(number) is before and not asked()


def test_what_is_under_way_is_finished_first(capfd: pytest.CaptureFixture[str]) -> None:
    done = []

    def inside() -> None:
        stop_after("this step")
        send()
        assert asked()
        assert capfd.readouterr().err == "stopping after this step; a second signal stops at once\n"
        done.append("step")
        stop_now("stopped; all is well")
        done.append("more")

    with pytest.raises(KeyboardInterrupt, match="^stopped; all is well$"):
        stopped_in(inside)
    assert done == ["step"]


def test_a_signal_that_comes_twice_at_once_is_one(wait: Clock) -> None:
    with stopping():
        stop_after("this step")
        send()
        wait(signals.AGAIN - 0.1)
        send()
        send(signal.SIGINT)
        wait(0.1)
        with pytest.raises(Interrupted, match="^stopped at once$"):
            send()


def test_a_second_signal_ends_a_command_on_the_spot(
    wait: Clock, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int | str] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        with stopping(leave=True):
            signals.end_with(lambda: ended.append("others"))
            stop_after("this step")
            send()
            wait(1)
            send()
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]  # nothing interrupts the way out
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signals._stop.reset()
    assert ended == ["others", 130]
    assert capfd.readouterr().err.splitlines()[1:] == ["stopped at once"]


def test_a_process_that_another_one_started_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with stopping():
        send()  # before there is anything to finish
        stop_now()
        stop_after("this step")
        assert asked()
    assert capfd.readouterr().err == ""


def test_one_inside_another_has_no_effect() -> None:
    def inside() -> None:
        handler = signal.getsignal(signal.SIGTERM)
        with stopping():
            pass
        assert signal.getsignal(signal.SIGTERM) == handler
        send()

    with pytest.raises(KeyboardInterrupt, match="^stopped$"):
        stopped_in(inside)


def test_other_threads_leave_signals_alone() -> None:
    seen: list[object] = []

    def run() -> None:
        with stopping():
            stop_after("this step")
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert seen == [before]
    with pytest.raises(KeyboardInterrupt):  # what it said is forgotten
        stopped_in(send)


@pytest.mark.parametrize("number", signals.SIGNALS, ids=["SIGINT", "SIGTERM"])
def test_any_command_ends_with_one_line_and_the_status(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vitdistill.cli, "run_verb", lambda name, words: send(number))
    assert main(["evaluate", "a"]) == 130
    assert capsys.readouterr().err == "stopped\n"
