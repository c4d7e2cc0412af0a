"""An audit timed batch by batch beside other things done with the same batch."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.images import Decoded
from benchmarks.measuring import Spread, compare
from vitscope import AuditConfig
from vitscope.images.image_set import ImageBatch
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.runs.audit_loop import AuditRun


@dataclass(frozen=True)
class AuditTimes:
    """Seconds of an audit and of what ran between its batches."""

    audit: list[float]  # per batch
    others: dict[str, list[float]]  # of each other contender, per batch
    # before the first and after the last batch, however many images come: digest, summary
    once: float

    def ratio(self, other: str) -> Spread:
        """The audit over a contender, batch by batch past the first."""
        # Which always proves the ledger and so runs the last block whole; among few batches it
        # would weigh more than it does among many.
        return compare(self.audit[1:], self.others[other][1:])

    def whole_run(self, other: str) -> float:
        """The whole audit over a contender, once-per-run costs counted in."""
        return (sum(self.audit) + self.once) / sum(self.others[other])


def make_config(batch_size: int, **settings: Any) -> AuditConfig:
    """Settings of an audit of a few batches: no gallery, proofs in the first batch alone."""
    fixed = {"device": "cpu", "gallery": 0, "verified": 0.0}
    return AuditConfig(batch_size=batch_size, **(fixed | settings))


def run_audit(vit: ViTAdapter, images: Decoded, config: AuditConfig) -> None:
    """Audit decoded images and throw the result away."""
    _execute(vit, images, config, iter(images.batches))


def time_audit(
    vit: ViTAdapter,
    images: Decoded,
    config: AuditConfig,
    others: Mapping[str, Callable[[ImageBatch], object]],
) -> AuditTimes:
    """Audit decoded images; before each batch the others, which must not touch `vit`, run."""
    # Untimed: what is loaded on first use.
    first = Decoded(images.images, images.batches[:1])
    _execute(vit, first, config, _alternate(first.batches, others, _Clock(others)))
    clock = _Clock(others)
    start = _now()
    _execute(vit, images, config, _alternate(images.batches, others, clock))
    end = _now()
    return AuditTimes(
        audit=[a - g for a, g in zip(clock.asked[1:], clock.given, strict=True)],
        others=clock.others,
        once=(clock.asked[0] - start) + (end - clock.asked[-1]),
    )


class _Clock:
    """When the audit asked for each batch, when it was given it, and what ran in between."""

    def __init__(self, others: Iterable[str]) -> None:
        self.asked: list[float] = []
        self.given: list[float] = []
        self.others: dict[str, list[float]] = {name: [] for name in others}


def _alternate(
    batches: Sequence[ImageBatch],
    others: Mapping[str, Callable[[ImageBatch], object]],
    clock: _Clock,
) -> Iterator[ImageBatch]:
    for batch in batches:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("batches are asked for beside the audit, so nothing alternates")
        clock.asked.append(_now())
        for name, run in others.items():
            begin = _now()
            run(batch)
            clock.others[name].append(_now() - begin)
        clock.given.append(_now())
        yield batch
    clock.asked.append(_now())


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _execute(
    vit: ViTAdapter, images: Decoded, config: AuditConfig, batches: Iterator[ImageBatch]
) -> None:
    with TemporaryDirectory() as folder:
        AuditRun(vit, images.images, config).execute(Path(folder), batches=batches)


def bare_forward(
    run: Callable[[Pixels], Any], device: str = "cpu", pass_size: int | None = None
) -> Callable[[ImageBatch], None]:
    """The model alone: inference mode, nothing kept, in passes of a size or whole batches."""

    def forward(batch: ImageBatch) -> None:
        with torch.inference_mode():
            for pixels in batch.pixels.split(pass_size or len(batch.pixels)):
                run(pixels.to(device))

    return forward


def sum_rounds(seconds: Sequence[float], rounds: int) -> list[float]:
    """Sums of consecutive stretches of batches of equal length; a rest at the end is left out."""
    length = len(seconds) // rounds
    return [sum(seconds[i * length : (i + 1) * length]) for i in range(rounds)]
