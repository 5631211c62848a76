"""Where the teacher works beside the student: a thread of its own on a CPU, streams of another GPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vitdistill.errors import UserError

Result = tuple[Any, ...]  # of each teacher, what it was shown (a tensor or None) and its `Output`
Work = Callable[..., Result]


def check_devices(home: str, away: str | None) -> None:
    """
    Args:
        home: where the student trains.
        away: the teacher's device; None for the same.

    Raises:
        UserError: when the teacher could not work beside the student there.
    """
    kinds = home.partition(":")[0], (away or home).partition(":")[0]
    if kinds != ("cpu", "cpu") and (away is None or kinds != ("cuda", "cuda")):
        raise UserError(
            "--pipeline needs student and teacher on two GPUs, or both on the CPU",
            f"the student on {home}, the teacher on {away or 'the same'}",
            "Name a second GPU with --teacher_device cuda:1, or leave out --pipeline",
        )


def lane(home: torch.device, away: torch.device | None) -> "ThreadLane | StreamLane":
    """The lane for a student on one device and a teacher on another (None: on the same).

    Raises:
        UserError: when the teacher could not work beside the student there.
    """
    check_devices(str(home), None if away is None else str(away))
    return ThreadLane() if away is None or away.type == "cpu" else StreamLane(home, away)


class ThreadLane:
    """A thread beside that of the student; each gets half of the threads that operators may use.

    PyTorch's operators release Python's lock, so both compute at once. What is local to a thread is taken along: no
    gradient, and the autocast of the student's thread.
    """

    def __enter__(self) -> "ThreadLane":
        self._threads = torch.get_num_threads()
        half = max(1, self._threads // 2)

        def begin() -> None:
            torch.set_num_threads(half)
            # All threads share what autocast has cast of the student's weights, and whoever leaves an outermost
            # autocast throws it away. Here that would happen in the middle of the student's passes, so that the
            # rounding of its gradients depended on which thread was faster; inside another one it does not.
            torch.autocast_increment_nesting()

        self._pool = ThreadPoolExecutor(1, "teacher", initializer=begin)
        torch.set_num_threads(half)
        return self

    def send(self, work: Work, *tensors: Tensor | None) -> Callable[[], Result]:
        """Have something done after all that was sent before; the function that is returned waits for the result.

        Args:
            work: gets the tensors, on the teacher's device.
            tensors: on the student's device; None is handed on.
        """
        enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

        def run() -> Result:
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=enabled):
                return work(*tensors)

        return self._pool.submit(run).result  # raises what was raised in there

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)


class StreamLane:
    """Another GPU of this process.

    Kernels are queued, so a loop in one thread keeps both devices busy, as long as nothing in it waits for a device.
    Tensors leave and come back on a stream of their own: torch has the streams of a copy between two devices wait for
    one another, for which the student's must not be one of them.
    """

    def __init__(self, home: torch.device, away: torch.device) -> None:
        self.home, self.away = home, away
        self._copies, self._work = torch.cuda.Stream(home), torch.cuda.Stream(away)

    def __enter__(self) -> "StreamLane":
        return self

    def send(self, work: Work, *tensors: Tensor | None) -> Callable[[], Result]:
        """As of `ThreadLane`; the host does not wait, the student's stream does."""
        ready = torch.cuda.current_stream(self.home).record_event()
        with torch.cuda.stream(self._copies), torch.cuda.stream(self._work):
            self._copies.wait_event(ready)
            self._work.wait_event(ready)
            moved = [None if tensor is None else self._moved(tensor) for tensor in tensors]
            with torch.no_grad():
                result = work(*moved)
            # What was only shown need not come back.
            origin = {id(there): here for there, here in zip(moved, tensors, strict=True) if there is not None}
            back = tuple(
                (
                    None if seen is None else self._returned(seen, origin),
                    output.map(lambda tensor: self._returned(tensor, origin)),
                )
                for seen, output in result
            )
            done = self._copies.record_event() if self.home != self.away else self._work.record_event()

        def wait() -> Result:
            stream = torch.cuda.current_stream(self.home)
            stream.wait_event(done)
            for seen, output in back:
                for tensor in () if seen is None else (seen,):
                    tensor.record_stream(stream)
                output.map(lambda tensor: (tensor.record_stream(stream), tensor)[1])
            return back

        return wait

    def _moved(self, tensor: Tensor) -> Tensor:
        tensor.record_stream(self._copies)
        moved = tensor.to(self.away, non_blocking=True)
        moved.record_stream(self._work)
        return moved

    def _returned(self, tensor: Tensor, origin: dict[int, Any]) -> Tensor:
        return origin[id(tensor)] if id(tensor) in origin else tensor.to(self.home, non_blocking=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing runs here for which the host would have to wait."""
