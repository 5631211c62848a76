"""Where a step's time goes: data, teacher, and the rest, without synchronising the device."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up milliseconds per named part.

    On a GPU the parts are marked with events on the stream and read in `totals`, long after the work is done; on a
    CPU with the wall clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._milliseconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block towards `name`."""
        if not self._cuda:
            start = time.perf_counter()
            yield
            self._milliseconds[name] += (time.perf_counter() - start) * 1e3
            return
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        yield
        end_event.record()
        self._events.append((name, start_event, end_event))
        if len(self._events) > 4096:
            self._drain(wait=False)

    def add(self, name: str, milliseconds: float) -> None:
        """Count time measured elsewhere (waiting for data, on the host)."""
        self._milliseconds[name] += milliseconds

    def totals(self) -> dict[str, float]:
        """Milliseconds per part so far."""
        self._drain(wait=True)
        return dict(self._milliseconds)

    def reset(self) -> None:
        """Forget everything counted so far."""
        self._milliseconds.clear()
        self._events.clear()

    def _drain(self, wait: bool) -> None:
        if wait and self._events:
            torch.cuda.synchronize()
        pending = []
        for name, start, end in self._events:
            if end.query():
                self._milliseconds[name] += start.elapsed_time(end)
            else:
                pending.append((name, start, end))
        self._events = pending
