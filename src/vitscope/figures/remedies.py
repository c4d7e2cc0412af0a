"""Compared remedies: what each edit changed, against the original."""

from collections.abc import Iterable

from vitscope.figures.description import (
    FigureData,
    NothingToDrawError,
    Point,
    describe_n,
    select,
)
from vitscope.figures.intervals import Interval, read_estimate, span
from vitscope.figures.saved import ModelResult, printable
from vitscope.results.remedy_text import DECIDING
from vitscope.results.schema import RemediesSummary
from vitscope.results.schema_remedies import ComparedRemedy

CHANGES = {**DECIDING, "moved": "cos(f, f′) − 1"}
"""What is shown of each edit, in words: whether maps are cleaner, whether truer, and the price."""


def describe_remedies(results: Iterable[ModelResult]) -> FigureData:
    """Differences of each edit from the original, and how far it moved the global feature."""
    selection = select(results, _read, kind="remedies")
    points = [
        Point(model=model, term=name, x=printable(one.edit), number=number)
        for model, summary in selection.found
        for one in summary.remedies
        for name in CHANGES
        if (number := _read_change(one, name)) is not None
    ]
    if not points:
        raise NothingToDrawError("no difference is defined")
    return selection.describe(
        points,
        (
            f"{describe_n(selection.results)}. Edited less original, paired by image: 0 is no "
            "change. Bar: 95 % interval. cos(f, f′) − 1: 0 if the edit leaves the global feature "
            "f as it is.",
        ),
        axis="change",
        limits=span([point.number for point in points], 0.0),
    )


def _read(result: ModelResult) -> RemediesSummary:
    return result.remedies


def _read_change(one: ComparedRemedy, name: str) -> Interval | None:
    if name == "moved":
        cosine = read_estimate(one.drift.cosine)
        return None if cosine is None else cosine.less(1.0)
    return read_estimate(one.changes[name].difference) if name in one.changes else None
