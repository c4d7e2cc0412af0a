"""Seconds side by side, peak memory of a process of its own."""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True)
class Spread:
    """The middle of several rounds and how far they lie apart."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write it as `1.02 (1.01 to 1.04)`."""
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def compare(seconds: Sequence[float], against: Sequence[float]) -> Spread:
    """Ratios of what ran side by side, round by round."""
    ratios = [a / b for a, b in zip(seconds, against, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time contenders in turn, each once untimed first and every second round backwards."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            start = clock()
            contenders[name]()
            seconds[name].append(clock() - start)
    return seconds


@dataclass(frozen=True)
class Memory:
    """Peak memory of a process, in MiB."""

    before: float  # when everything was imported, loaded and decoded
    peak: float  # when the work was done

    @property
    def added(self) -> float:
        """What the work itself took."""
        return self.peak - self.before


def measure_memory(prepare: Callable[..., Callable[[], object]], *args: Any) -> Memory:
    """Peak memory of the work that `prepare` returns, in a process that does nothing else."""
    return run_fresh(_watch, prepare, args)


def _watch(prepare: Callable[..., Callable[[], object]], args: tuple[Any, ...]) -> Memory:
    work = prepare(*args)
    before = read_peak()
    work()
    return Memory(before, read_peak())


def read_peak() -> float:
    """Peak resident memory of this process so far, in MiB.

    On Linux `ru_maxrss` starts with the peak of the process that started this one; the kernel's
    own mark of this address space does not.
    """
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where ru_maxrss counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def run_fresh(
    function: Callable[..., Any], *args: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """Call a function in a new process; what it raises is raised here, its death as well."""
    context = multiprocessing.get_context("spawn")
    with (
        patch.dict(os.environ, environment or {}),
        ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(function, *args).result()
