"""Measuring time and memory so that the figures survive a shared machine.

Candidates that are to be compared run in turns within one loop (`compare`), and a speed-up is the median of the
ratios of neighbouring runs: a machine that slows down for a while slows every candidate.
"""

import os
import platform
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Repeated timings of one piece of work, in the order in which they were taken, in milliseconds."""

    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median in milliseconds."""
        return median(self.samples_ms)

    @property
    def spread_ms(self) -> float:
        """Distance between the quartiles in milliseconds; 0 for a single run."""
        if len(self.samples_ms) < 2:
            return 0.0
        low, _, high = quantiles(self.samples_ms, n=4, method="inclusive")
        return high - low

    def as_dict(self, items: int = 1) -> dict[str, float]:
        """Median and spread per run, and what follows for `items` (images) per run."""
        return {
            "median_ms": self.median_ms,
            "spread_ms": self.spread_ms,
            "ms_per_image": self.median_ms / items,
            "images_per_s": 1000 * items / self.median_ms,
        }


def time_ms(fn: Work, repeats: int = 10, warmup: int = 3, device: torch.device | str = "cpu") -> Timing:
    """Time one piece of work.

    Args:
        fn: the work; what it returns is dropped.
        repeats: timed runs.
        warmup: runs before them (allocator, caches, compilation, cuDNN's search).
        device: where the work runs. CUDA events time it on a GPU, the wall clock elsewhere.

    Raises:
        ValueError: when `repeats` is below 1.
    """
    return compare({"work": fn}, repeats, warmup, device)["work"]


class Comparison(dict[str, Timing]):
    """Timings of candidates that took turns; round i of one ran next to round i of every other."""

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long `slow` takes as `fast`: median over the rounds of their ratio."""
        pairs = zip(self[slow].samples_ms, self[fast].samples_ms, strict=True)
        return median(a / b for a, b in pairs)


def compare(
    fns: Mapping[str, Work], repeats: int = 10, warmup: int = 3, device: torch.device | str = "cpu"
) -> Comparison:
    """Time several pieces of work in turns, each round beginning with another one.

    Args:
        fns: the candidates by name.
        repeats: rounds, in each of which every candidate runs once.
        warmup: rounds before them, not timed.
        device: where the work runs.

    Raises:
        ValueError: when `repeats` is below 1 or there is no candidate.
    """
    if repeats < 1 or not fns:
        raise ValueError(f"nothing to time: {len(fns)} candidates, {repeats} repeats")
    names, timer = list(fns), _timer(torch.device(device))
    for _ in range(warmup):
        for name in names:
            fns[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        start = turn % len(names)
        for name in chain(names[start:], names[:start]):
            samples[name].append(timer(fns[name]))
    return Comparison({name: Timing(tuple(values)) for name, values in samples.items()})


def _timer(device: torch.device) -> Callable[[Work], float]:
    return _cuda_ms if device.type == "cuda" else _wall_ms


def _wall_ms(fn: Work) -> float:
    start = time.perf_counter()
    fn()
    return 1000 * (time.perf_counter() - start)


def _cuda_ms(fn: Work) -> float:
    """From an idle device to an idle device, so that launch overhead counts as it does in training."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    fn()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


# --- memory ------------------------------------------------------------------------------------------------------


def peak_memory_bytes(fn: Work, device: torch.device | str = "cpu") -> int:
    """The most tensor memory that `fn` holds at any time, above what was allocated before it: activations, not weights.

    On a GPU this is the CUDA allocator's own peak. On the CPU it is the sum of the storages that operators called by
    `fn` return and that are still alive, backward pass included; scratch buffers inside an operator are not seen.
    Compiled code hides its operators, so measure it eagerly there.

    Args:
        fn: the work. Run it once before, so that lazily created state (optimizer moments, say) is not counted.
        device: where it runs.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fn()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _LiveStorages() as live:
        fn()
    return live.peak


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in chain(module.parameters(), module.buffers()))


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that appear while the mode is on, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        # Values are the callbacks that take a storage off the count; they go with the storage.
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in before and id(storage) not in self._known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self._known[key] = weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


# --- the machine -------------------------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, threads, GPU, and the versions that matter."""
    gpu = torch.cuda.is_available()
    return {
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
