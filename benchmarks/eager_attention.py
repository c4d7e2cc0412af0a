"""What does an audit cost compared with transformers' eager attention with `output_attentions`?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.audits import bare_forward, make_config, run_audit, time_audit
from benchmarks.images import Decoded, decoded_images
from benchmarks.measuring import Memory, compare, measure_memory
from benchmarks.models import build_dinov2, load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Settings
from vitscope.models.base import ViTAdapter


@dataclass(frozen=True)
class _Plan:
    model: str
    sizes: tuple[int, ...]
    batch_size: int
    batches: int


_FULL = _Plan(model="small", sizes=(224, 518), batch_size=4, batches=7)
_TINY = _Plan(model="tiny", sizes=(32,), batch_size=2, batches=2)


def measure(settings: Settings) -> Section:
    """Time and memory of the bare forward, the audit and eager attention.

    Args:
        settings: The run's settings.

    Returns:
        A table for each input size.
    """
    plan = _TINY if settings.tiny else _FULL
    tables = []
    for size in plan.sizes:
        ratios = _time(plan, size, settings.images)
        memory = {
            name: measure_memory(prepare, plan.model, size, plan.batch_size, settings.images)
            for name, prepare in _PREPARE.items()
        }
        tables.append(
            Table(
                (f"{size} px", *_COLUMNS),
                list(_rows(ratios, memory)),
            )
        )
    return Section(
        title="An audit compared with eager attention (output_attentions)",
        how=(
            f"transformers' Dinov2Model, dinov2-{plan.model}, batches of {plan.batch_size}, "
            f"{plan.batches - 1} rounds: an audit of the last layer against the bare forward pass "
            '(sdpa) and against `attn_implementation="eager"` with `output_attentions=True`, which '
            "returns tokens × tokens numbers for every head of every layer. In a plain loop, "
            "`output = model(…)`, those of the last batch are still held while the next is "
            "computed. Memory is of two batches, for the audit up to the written result."
        ),
        tables=tables,
    )


_COLUMNS = ("seconds / audit's", "peak / audit's", "peak, MiB")


def _rows(ratios: dict[str, str], memory: dict[str, Memory]) -> Iterator[list[str]]:
    audit = memory["audit"]
    for name, found in memory.items():
        yield [
            name,
            ratios[name],
            f"{found.peak / audit.peak:.2f}",
            f"{found.peak:.0f}",
        ]


def _time(plan: _Plan, size: int, sources: Sequence[Path]) -> dict[str, str]:
    vit = load_dinov2(plan.model)
    others = {
        "bare forward": bare_forward(build_dinov2(plan.model)),
        "eager attention": bare_forward(partial(build_dinov2(plan.model, "eager"), **_WANTED)),
    }
    count = plan.batches * plan.batch_size
    with decoded_images(
        vit, count, size=size, batch_size=plan.batch_size, sources=sources
    ) as images:
        times = time_audit(vit, images, make_config(plan.batch_size), others)
    ratios = {
        name: str(compare(seconds[1:], times.audit[1:])) for name, seconds in times.others.items()
    }
    return ratios | {"audit": "1", _LOOP: "as above"}


_WANTED = {"output_attentions": True}
_LOOP = "eager attention, plain loop"


def _prepare_audit(
    model: str, size: int, batch_size: int, sources: Sequence[Path]
) -> Callable[[], None]:
    vit = load_dinov2(model)
    images = _decode(vit, size, batch_size, sources)
    return partial(run_audit, vit, images, make_config(batch_size))


def _prepare_forward(
    model: str, size: int, batch_size: int, sources: Sequence[Path], *, attention: str, loop: bool
) -> Callable[[], None]:
    vit = load_dinov2(model, attention)
    batches = _decode(vit, size, batch_size, sources).batches
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


def _decode(vit: ViTAdapter, size: int, batch_size: int, sources: Sequence[Path]) -> Decoded:
    count = 2 * batch_size
    with decoded_images(vit, count, size=size, batch_size=batch_size, sources=sources) as images:
        return images


_PREPARE: dict[str, Callable[..., Callable[[], None]]] = {
    "audit": _prepare_audit,
    "bare forward": partial(_prepare_forward, attention="sdpa", loop=False),
    "eager attention": partial(_prepare_forward, attention="eager", loop=False),
    _LOOP: partial(_prepare_forward, attention="eager", loop=True),
}
