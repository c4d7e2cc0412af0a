"""How many images a second, in how much memory, over batch size, input size and model size?"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measuring
from benchmarks.audits import bare_forward, make_config, time_audit
from benchmarks.images import decoded_images
from benchmarks.measuring import Spread, read_peak
from benchmarks.models import build_dinov2, load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings


@dataclass(frozen=True)
class _Found:
    images_per_second: float
    ratio: Spread
    after_forward: float
    peak: float


_FULL = (
    *(("small", 224, batch_size) for batch_size in (1, 4, 16, 64)),
    *(("small", 518, batch_size) for batch_size in (1, 4)),
    *((model, 224, 4) for model in ("base", "large")),
    *((model, 518, 1) for model in ("base", "large")),
)
_TINY = (("tiny", 32, 1), ("tiny", 48, 4))
"""Model, input size in pixels and batch size."""
_BATCHES = 3


def measure(settings: Settings) -> Section:
    """Audit two batches in a fresh process for each choice."""
    plans = [
        Plan(model, size, images=_BATCHES * batch_size, batch_size=batch_size)
        for model, size, batch_size in (_TINY if settings.tiny else _FULL)
    ]
    rows = [
        _describe(plan, measuring.run_fresh(_measure_plan, plan, settings.images)) for plan in plans
    ]
    columns = (
        "model",
        "px",
        "batch",
        "images / s",
        "audit / forward",
        "peak: forward, MiB",
        "audit, MiB",
    )
    return Section(
        title="Images per second and peak memory",
        how=(
            f"Audits of the last layer of transformers' DINOv2, without what happens once per run: "
            f"{_BATCHES - 1} batches after one that is not counted. Peaks are those of one "
            "process, first after a bare forward pass of a whole batch, then after the audit, "
            "which splits batches into passes."
        ),
        tables=[Table(columns, rows)],
    )


def _measure_plan(plan: Plan, sources: Sequence[Path]) -> _Found:
    vit, module = load_dinov2(plan.model), build_dinov2(plan.model)
    forward = bare_forward(module)
    with decoded_images(vit, plan, sources) as images:
        forward(images.batches[0])
        after_forward = read_peak()
        times = time_audit(vit, images, make_config(plan.batch_size), {"forward": forward})
        peak = read_peak()
    return _Found(
        images_per_second=plan.batch_size / statistics.median(times.audit[1:]),
        ratio=times.ratio("forward"),
        after_forward=after_forward,
        peak=peak,
    )


def _describe(plan: Plan, found: _Found) -> list[str]:
    return [
        f"dinov2-{plan.model}",
        str(plan.size),
        str(plan.batch_size),
        f"{found.images_per_second:.1f}",
        f"{found.ratio.median:.3f}",
        *(f"{mib:.0f}" for mib in (found.after_forward, found.peak)),
    ]
