"""What do page faults of the C library's allocator cost the bare forward pass?"""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks import measuring
from benchmarks.measuring import compare
from benchmarks.models import build_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings

_SETTINGS = {
    "as it comes": {},
    "freed memory kept": {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:"
        "glibc.malloc.trim_threshold=17179869184"
    },
}
"""Environment of each process; the second never gives memory back to the system."""


_FULL = Plan("small", 224, images=4 * 16, batch_size=16, rounds=3)
_TINY = Plan("tiny", 32, images=2 * 2, batch_size=2, rounds=2)


@dataclass(frozen=True)
class _Found:
    seconds: float
    system_seconds: float
    faults: float
    peak: float


def measure(settings: Settings) -> Section:
    """Seconds and page faults of forwards, with and without the allocator's settings."""
    plan = _TINY if settings.tiny else _FULL
    found: dict[str, list[_Found]] = {name: [] for name in _SETTINGS}
    for _ in range(plan.rounds):
        for name, environment in _SETTINGS.items():
            found[name].append(measuring.run_fresh(_run_forwards, plan, environment=environment))
    plain = [f.seconds for f in found["as it comes"]]
    rows = [
        [name, *_describe(each), str(compare([f.seconds for f in each], plain))]
        for name, each in found.items()
    ]
    variables = " ".join(f"`{k}={v}`" for e in _SETTINGS.values() for k, v in e.items())
    return Section(
        title="Page faults of the allocator",
        how=(
            f"The bare forward pass of dinov2-{plan.model}, batch {plan.batch_size} at "
            f"{plan.size} px. glibc returns large freed buffers to the system unless asked "
            f"to keep them, here by {variables}. {plan.rounds} rounds of {plan.num_batches} "
            "forward passes in fresh processes: the least of a round per forward pass, and the "
            "highest peak. *in the system* is processor time of the kernel."
        ),
        tables=[Table(_COLUMNS, rows)],
    )


_COLUMNS = (
    "allocator",
    "page faults",
    "in the system",
    "peak memory",
    "a forward",
    "seconds / as it comes",
)


def _describe(found: Sequence[_Found]) -> list[str]:
    return [
        f"{min(f.faults for f in found):.0f}",
        f"{1000 * min(f.system_seconds for f in found):.0f} ms",
        f"{max(f.peak for f in found):.0f} MiB",
        f"{1000 * min(f.seconds for f in found):.0f} ms",
    ]


def _run_forwards(plan: Plan) -> _Found:
    module = build_dinov2(plan.model)
    pixels = torch.rand(plan.batch_size, 3, plan.size, plan.size)
    with torch.inference_mode():
        for _ in range(2):
            module(pixels)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(plan.num_batches):
            module(pixels)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
    return _Found(
        seconds=seconds / plan.num_batches,
        system_seconds=(after.ru_stime - before.ru_stime) / plan.num_batches,
        faults=(after.ru_minflt - before.ru_minflt) / plan.num_batches,
        peak=measuring.read_peak(),
    )
