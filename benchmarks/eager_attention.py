"""What does an audit cost compared with transformers' eager attention with `output_attentions`?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.audits import bare_forward, make_config, run_audit, time_audit
from benchmarks.images import decoded_images
from benchmarks.measuring import Memory, compare, measure_memory
from benchmarks.models import build_dinov2, load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings

_FULL = [Plan("small", size, images=7 * 4, batch_size=4) for size in (224, 518)]
_TINY = [Plan("tiny", 32, images=2 * 2, batch_size=2)]


def measure(settings: Settings) -> Section:
    """Time and memory of the bare forward, the audit and eager attention."""
    plans = _TINY if settings.tiny else _FULL
    tables = []
    for plan in plans:
        ratios = _time(plan, settings.images)
        few = replace(plan, images=2 * plan.batch_size)
        memory = {
            name: measure_memory(prepare, few, settings.images)
            for name, prepare in _PREPARE.items()
        }
        tables.append(Table((f"{plan.size} px", *_COLUMNS), list(_rows(ratios, memory))))
    return Section(
        title="An audit compared with eager attention (output_attentions)",
        how=(
            f"transformers' Dinov2Model, dinov2-{plan.model}, batches of {plan.batch_size}, "
            f"{plan.num_batches - 1} rounds: an audit of the last layer against the bare forward "
            'pass (sdpa) and against `attn_implementation="eager"` with `output_attentions=True`, '
            "which returns tokens × tokens numbers for every head of every layer. In a plain loop, "
            "`output = model(…)`, those of the last batch are still held while the next is "
            "computed. Memory is of two batches, for the audit up to the written result."
        ),
        tables=tables,
    )


_COLUMNS = ("seconds / audit's", "peak / audit's", "peak, MiB")


def _rows(ratios: dict[str, str], memory: dict[str, Memory]) -> Iterator[list[str]]:
    audit = memory["audit"]
    for name, found in memory.items():
        yield [name, ratios[name], f"{found.peak / audit.peak:.2f}", f"{found.peak:.0f}"]


def _time(plan: Plan, sources: Sequence[Path]) -> dict[str, str]:
    vit = load_dinov2(plan.model)
    others = {
        "bare forward": bare_forward(build_dinov2(plan.model)),
        "eager attention": bare_forward(partial(build_dinov2(plan.model, "eager"), **_WANTED)),
    }
    with decoded_images(vit, plan, sources) as images:
        times = time_audit(vit, images, make_config(plan.batch_size), others)
    ratios = {
        name: str(compare(seconds[1:], times.audit[1:])) for name, seconds in times.others.items()
    }
    return ratios | {"audit": "1", _LOOP: "as above"}


_WANTED = {"output_attentions": True}
_LOOP = "eager attention, plain loop"


def _prepare_audit(plan: Plan, sources: Sequence[Path]) -> Callable[[], None]:
    vit = load_dinov2(plan.model)
    with decoded_images(vit, plan, sources) as images:
        return partial(run_audit, vit, images, make_config(plan.batch_size))


def _prepare_forward(
    plan: Plan, sources: Sequence[Path], *, attention: str, loop: bool
) -> Callable[[], None]:
    vit = load_dinov2(plan.model, attention)
    with decoded_images(vit, plan, sources) as images:
        batches = images.batches
    options = _WANTED if attention == "eager" else {}
    output = None

    def work() -> None:
        nonlocal output
        for batch in batches:
            if not loop:
                output = None
            with torch.inference_mode():
                output = vit.module(batch.pixels, **options)

    return work


_PREPARE: dict[str, Callable[..., Callable[[], None]]] = {
    "audit": _prepare_audit,
    "bare forward": partial(_prepare_forward, attention="sdpa", loop=False),
    "eager attention": partial(_prepare_forward, attention="eager", loop=False),
    _LOOP: partial(_prepare_forward, attention="eager", loop=True),
}
