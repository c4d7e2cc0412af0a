"""Pairs of terms: the Gram ledger, and directions of variance."""

from collections.abc import Iterable, Iterator
from itertools import combinations

from vitscope.figures.description import FigureData, NothingToDrawError, Point, select
from vitscope.figures.intervals import Interval, make_interval
from vitscope.figures.saved import ModelResult
from vitscope.results.choices import LAYER, count_cls
from vitscope.results.vocabulary import SOURCES, name_term, order_terms

TOTALS = ("attention", "residual")
ANGLES, SHARED, CHANCE, RANKS = (
    "principal_angles_deg",
    "shared_variance",
    "shared_variance_if_unrelated",
    "effective_rank",
)
"""Panels of the figure of directions; the third is written into the cells of the second."""


def describe_gram_ledger(results: Iterable[ModelResult]) -> FigureData:
    """One model's Gram ledger (paper eq. 5)."""
    selection = select(results, _read_ledgers, choices=[count_cls(*SOURCES), LAYER])
    notes = (
        "Unbiased estimates of ⟨G, G_ab⟩ / ⟨G, G⟩ over ordered pairs of terms, centred over "
        "images: all cells of a panel sum to 1. In brackets the biased estimate. At "
        f"{selection.block}, {selection.n}; ±: half of a 95 % "
        "interval.",
    )
    return selection.describe(
        selection.points,
        notes,
        heading="Gram ledger",
        titles={total: name_term(f"{total}_total") for total in TOTALS},
        axis="part of the similarities between images",
    )


def describe_directions(results: Iterable[ModelResult]) -> FigureData:
    """One model's directions of variance: principal angles, shared variance, effective rank."""
    selection = select(results, _read_directions, choices=[count_cls(*SOURCES), LAYER])
    ((result, points),) = selection.found
    notes = (
        f"Leading {result.audit.last.directions.num_directions} directions of each term's variance "
        f"over images at {selection.block}, {selection.n}. Shared "
        "variance: part of the row's variance within the span of the column's directions; in "
        "brackets what unrelated directions would share. Effective rank: (tr Σ)² / tr Σ².",
    )
    titles = {
        ANGLES: "angles between spans",
        SHARED: "variance of row in span of column",
        RANKS: "effective rank",
    }
    return selection.describe(points, notes, heading="Directions of variance", titles=titles)


def _read_ledgers(result: ModelResult) -> list[Point]:
    ledgers = {total: _read_ledger(result, total) for total in TOTALS}
    if not any(ledgers.values()):
        raise NothingToDrawError("it has no Gram ledger")
    # A single cell is always 1.
    found = [points for points in ledgers.values() if len(points) > 1]
    if not found:
        raise NothingToDrawError("its output has a single source, so there are no pairs to compare")
    return [point for points in found for point in points]


def _read_ledger(result: ModelResult, total: str) -> list[Point]:
    ledger = result.audit.last.gram_ledger.get(total, {})
    return [
        Point(model=result, panel=total, term=a, other=b, number=cell)
        for a in order_terms(ledger)
        for b in order_terms(ledger[a])
        for share in [ledger[a][b]]
        if (cell := make_interval(share.unbiased, share.ci95, biased=share.biased)) is not None
    ]


def _read_directions(result: ModelResult) -> list[Point]:
    panels = [_read_angles(result), _read_shared(result), _read_ranks(result)]
    found = [[*points] for points in panels]
    if not all(found):
        raise NothingToDrawError(
            "its directions cannot be compared (too few images, or a single source)"
        )
    return [point for points in found for point in points]


def _read_angles(result: ModelResult) -> Iterator[Point]:
    pairs = result.audit.last.directions.pairs
    for a, b in combinations(order_terms(pairs), 2):
        for place, angle in enumerate(pairs[a][b].principal_angles_deg, start=1):
            number = Interval(angle)
            yield Point(model=result, panel=ANGLES, term=a, other=b, x=place, number=number)


def _read_shared(result: ModelResult) -> Iterator[Point]:
    pairs = result.audit.last.directions.pairs
    for panel in (SHARED, CHANCE):
        for a in order_terms(pairs):
            for b in order_terms(pairs[a]):
                if (number := make_interval(getattr(pairs[a][b], panel))) is not None:
                    yield Point(model=result, panel=panel, term=a, other=b, number=number)


def _read_ranks(result: ModelResult) -> Iterator[Point]:
    ranks = result.audit.last.directions.effective_rank
    for term in order_terms(ranks):
        if (number := make_interval(ranks[term])) is not None:
            yield Point(model=result, panel=RANKS, term=term, number=number)
