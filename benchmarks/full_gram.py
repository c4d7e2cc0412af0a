"""What does streamed CKA cost compared with the full n x n matrices?"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.features import make_batches, stream_cka
from benchmarks.gram_cka import biased_cka
from benchmarks.measuring import alternate, compare, measure_memory
from benchmarks.page import Section, Table
from benchmarks.settings import Settings


@dataclass(frozen=True)
class _Plan:
    counts: tuple[int, ...] = (1000, 4000, 10000)
    width: int = 384
    rounds: int = 3


_TINY = _Plan(counts=(60,), width=8, rounds=2)


def measure(settings: Settings) -> Section:
    """Time and memory of both at several n."""
    plan = _TINY if settings.tiny else _Plan()
    columns = (
        "images",
        "full / streamed",
        "streamed",
        "memory added: full, MiB",
        "streamed, MiB",
        "differ by",
    )
    return Section(
        title="Streamed CKA compared with the full n × n matrices",
        how=(
            f"Two random features of width {plan.width}, {plan.rounds} rounds. Full: two centred "
            "Gram matrices in float64 numpy and the biased estimate. Streamed: batches of 32 into "
            "the audit's sums, both estimates and the jackknife interval. A Gram matrix of n "
            "images takes 8 n² bytes, 20 GB at 50,000."
        ),
        tables=[Table(columns, list(_rows(plan)))],
    )


def _rows(plan: _Plan) -> Iterator[list[str]]:
    for count in plan.counts:
        batches = list(make_batches(count, plan.width))
        seconds = alternate(
            {name: partial(run, batches) for name, run in _FORMS.items()}, plan.rounds
        )
        full, streamed = (
            measure_memory(_prepare, name, count, plan.width).added for name in _FORMS
        )
        yield [
            str(count),
            str(compare(seconds["full"], seconds["streamed"])),
            f"{min(seconds['streamed']):.2f} s",
            f"{full:.0f}",
            f"{streamed:.0f}",
            f"{abs(_run_full(batches) - _run_streamed(batches)):.0e}",
        ]


def _prepare(name: str, count: int, width: int) -> Callable[[], object]:
    _FORMS[name](make_batches(8, width))  # what is loaded on first use
    return partial(_FORMS[name], make_batches(count, width))


def _run_full(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    x, y = map(torch.cat, zip(*batches, strict=True))
    return biased_cka(x.numpy(), y.numpy())


def _run_streamed(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    return stream_cka(batches).biased


_FORMS: dict[str, Callable[[Iterable[tuple[Tensor, Tensor]]], float]] = {
    "full": _run_full,
    "streamed": _run_streamed,
}
