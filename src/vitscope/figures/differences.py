"""Paired differences between audits of the same images."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vitscope.figures.description import FigureData, NothingToDrawError, Point, select
from vitscope.figures.intervals import Interval, read_estimate, span
from vitscope.figures.saved import ModelResult
from vitscope.results.choices import LAYER, RENORMALIZE, count_cls
from vitscope.results.remedy_text import NUMBERS, name_number
from vitscope.results.vocabulary import SOURCES

if TYPE_CHECKING:
    from vitscope.results.paired_audits import ReplicatedAudit

Opened = tuple[ModelResult, "ReplicatedAudit"]


def describe_differences(results: Iterable[ModelResult]) -> FigureData:
    """Each audit less the first one that has the same images."""
    choices = [count_cls(*SOURCES), RENORMALIZE, LAYER]
    selection = select(results, _open, choices=choices)
    groups: dict[frozenset[str], list[Opened]] = {}
    for model, audit in selection.found:
        groups.setdefault(frozenset(audit.ids), []).append((model, audit))
    points = [
        point
        for (first, *others) in groups.values()
        for other in others
        for point in _subtract(first, other)
    ]
    if not points:
        raise NothingToDrawError("no two of the results have the same images")
    # Without registers, all attention on patches and registers is on patches.
    changed = {point.term for point in points if point.number != Interval(0.0, 0.0, 0.0)}
    points = [point for point in points if point.term in changed or not changed]
    counts = ", ".join(f"{len(ids):,}" for ids, group in groups.items() if len(group) > 1)
    alone = [group[0][0].label for group in groups.values() if len(group) == 1]
    notes = [
        f"n = {counts} images, those of both results: paired by image, so that what images have in "
        "common drops out. 0 is no difference. Bar: 95 % interval."
    ]
    if alone:
        notes.append(f"Without another result of the same images: {', '.join(alone)}.")
    return selection.describe(
        points,
        notes,
        axis="difference",
        limits=span([point.number for point in points], 0.0),
    )


def _open(result: ModelResult) -> "ReplicatedAudit":
    # Reading sums needs torch.
    from vitscope.results.audit_result import AuditResult
    from vitscope.results.paired_audits import ReplicatedAudit

    audit = ReplicatedAudit(AuditResult(result.folder))
    audit.replicate_cka()  # raises if it cannot be read
    return audit


def _subtract(first: Opened, other: Opened) -> Iterable[Point]:
    from vitscope.results.paired_audits import make_changes, pair_audits

    changes = make_changes(pair_audits(first[1], other[1]))
    for name in sorted(changes, key=[*NUMBERS, *changes].index):
        number = read_estimate(changes[name].difference)
        if number is not None:
            yield Point(
                model=other[0], panel=first[0].label, term=name, x=name_number(name), number=number
            )
