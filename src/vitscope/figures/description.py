"""What a figure shows, as tidy rows, notes and omissions; matplotlib, Vega-Lite and CSV show it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float64

from vitscope.errors import ResultError, VitscopeError
from vitscope.figures.intervals import Interval
from vitscope.figures.saved import ModelResult
from vitscope.files.printable import without_folders
from vitscope.results.choices import (
    LAYER,
    Choice,
    describe_choices,
    enumerate_labels,
    find_mixture,
)
from vitscope.results.vocabulary import order_terms

T = TypeVar("T")
Values = Float64[np.ndarray, " image"]
_SIGNIFICANT = 0.05


class NothingToDrawError(VitscopeError):
    """The results have no numbers for a figure, or for one model's part of it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of a figure."""

    model: ModelResult  # the result it belongs to
    number: Interval
    panel: str = ""  # key of its panel
    term: str = ""  # term, token or kind of number; empty if the panel says it
    other: str = ""  # the second of a pair of terms, or the row of a grid
    x: float | str = ""  # horizontal position: a size, a depth, a name
    p: float | None = None  # p value against no association, corrected for the number of rows

    @property
    def is_significant(self) -> bool:
        """Whether the association is significant."""
        return self.p is not None and self.p < _SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """What a figure shows."""

    points: tuple[Point, ...]  # its numbers, in the order of display
    notes: tuple[str, ...]  # notes on the numbers, in sentences
    shown: tuple[ModelResult, ...]  # results on the figure
    # reason for each omitted result, by its label
    omitted: Mapping[str, str] = field(default_factory=dict)
    heading: str = ""  # title of the figure; empty if the panels say it
    axis: str = ""  # label of the numbers' axis
    # titles of panels, where they differ from the keys
    titles: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[float, float] | None = None  # limits of that axis; None to fit the numbers
    percent: bool = False  # whether the numbers are fractions, shown in percent
    highlight: str | None = None  # the token to highlight; None if there is none
    # numbers of each image, by the result's folder, if their distribution is shown
    images: Mapping[Path, tuple[Values, ...]] = field(default_factory=dict)

    @property
    def panels(self) -> dict[str, list[Point]]:
        """Points by panel."""
        return group_points(self.points, lambda point: point.panel)

    @property
    def terms(self) -> list[str]:
        """Every term, in the order of the legend."""
        return order_terms({point.term for point in self.points})

    @property
    def remarks(self) -> list[str]:
        """Text under the figure: the notes, and the omitted results with reasons."""
        left_out = describe_omitted(self.omitted)
        return [*self.notes, *([f"Not shown: {left_out}."] if left_out else [])]

    def in_unit(self) -> "FigureData":
        """The figure as it is drawn, fractions in percent."""
        if not self.percent:
            return self
        return replace(
            self,
            points=tuple(
                replace(point, number=point.number.change(lambda value: 100 * value))
                for point in self.points
            ),
            axis=f"{self.axis} (%)",
            limits=self.limits and (100 * self.limits[0], 100 * self.limits[1]),
            percent=False,
        )

    def list_rows(self) -> list[tuple[str, ...]]:
        """The numbers as a table: header, then one row per point; empty columns are left out."""
        rows = [_list_cells(point) for point in self.points]
        used = [key for key in (rows[0] if rows else ()) if any(row[key] for row in rows)]
        return [tuple(used), *(tuple(row[key] for key in used) for row in rows)] if rows else []


def group_points(points: Iterable[Point], key: Callable[[Point], T]) -> dict[T, list[Point]]:
    """Group points by a key, in order of first appearance."""
    groups: dict[T, list[Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return groups


@dataclass(frozen=True)
class Selection(Generic[T]):
    """Results that have what a figure needs, with the numbers read from them."""

    # what was read, by result, in order of family and size
    found: tuple[tuple[ModelResult, T], ...]
    omitted: Mapping[str, str]  # reason for each other result, by its label
    # non-default settings, and those in which the results differ, one sentence each
    choices: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[ModelResult, ...]:
        """The selected results."""
        return tuple(result for result, _ in self.found)

    @property
    def points(self: "Selection[list[Point]]") -> list[Point]:
        """Points that were read, of all results."""
        return [point for _, own in self.found for point in own]

    @property
    def n(self) -> str:
        """Number of images behind the numbers, in words."""
        counts = write_range(result.num_images for result in self.results)
        return f"n = {counts} images{self.each}"

    @property
    def each(self) -> str:
        """Added to a number that is of each of several results."""
        return " a model" if len(self.found) > 1 else ""

    @property
    def block(self) -> str:
        """The layer of the numbers, in words."""
        return LAYER.agree(self.results) or "the last block"

    def describe(
        self, points: Iterable[Point], notes: Sequence[str], *, heading: str = "", **settings: Any
    ) -> FigureData:
        """Make the figure of the selection; the heading names it, the notes have the choices."""
        labels = ", ".join(result.label for result in self.results)
        return FigureData(
            points=tuple(points),
            notes=(*notes, *self.choices),
            shown=self.results,
            omitted=self.omitted,
            heading=heading and f"{heading}: {labels}",
            **settings,
        )


def select(
    results: Iterable[ModelResult],
    read: Callable[[ModelResult], T],
    undefined: str = "",
    *,
    kind: str = "audit",
    choices: Sequence[Choice] = (),
) -> Selection[T]:
    """Read what a figure needs from each result; the selected ones must agree in the choices.

    A result without any points is omitted as undefined.
    """
    found: list[tuple[ModelResult, T]] = []
    omitted: dict[str, str] = {}
    for result in sorted(results, key=lambda one: one.order):
        if result.kind != kind:
            continue
        try:
            numbers = read(result)
            if isinstance(numbers, list) and not numbers:
                raise NothingToDrawError(undefined)
            found.append((result, numbers))
        except (NothingToDrawError, ResultError) as reason:
            omitted[result.label] = without_folders(str(reason))
    if not found:
        raise NothingToDrawError(describe_omitted(omitted) or f"no result of the kind {kind!r}")
    selected = [result for result, _ in found]
    if mixture := find_mixture(choices, selected):
        raise NothingToDrawError(f"{mixture}: draw them separately")
    return Selection(tuple(found), omitted, describe_choices(choices, selected))


def over_size(describe: Callable[..., FigureData]) -> Callable[..., FigureData]:
    """A figure over size, which leaves out models whose number of parameters is not known."""

    @wraps(describe)
    def described(results: Iterable[ModelResult], **settings: Any) -> FigureData:
        results = list(results)
        sized = [result for result in results if result.params_m is not None]
        unsized = [result for result in results if result.params_m is None]
        reasons = {result.label: "its number of parameters is not known" for result in unsized}
        try:
            data = describe(sized, **settings)
        except NothingToDrawError:
            if sized or not unsized:
                raise
            raise NothingToDrawError(describe_omitted(reasons)) from None
        kind = data.shown[0].kind
        left = {one.label: reasons[one.label] for one in unsized if one.kind == kind}
        return replace(data, omitted={**data.omitted, **left})

    return described


def describe_omitted(omitted: Mapping[str, str]) -> str:
    """Omitted results and reasons, as one sentence."""
    reasons: dict[str, list[str]] = {}
    for label, reason in omitted.items():
        reasons.setdefault(reason, []).append(label)
    return "; ".join(f"{enumerate_labels(labels)}: {reason}" for reason, labels in reasons.items())


def write_range(counts: Iterable[int]) -> str:
    """Range of some counts, as text."""
    found = sorted(counts)
    low, high = found[0], found[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _list_cells(point: Point) -> dict[str, str]:
    number, model = point.number, point.model
    cells = {
        "panel": point.panel,
        "model": model.label,
        "model_id": model.model_id,
        "term": point.term,
        "other": point.other,
        "x": point.x,
        "value": None if number.is_bound else number.value,
        "low": number.low,
        "high": number.high,
        "n": model.num_images if number.n is None else number.n,
        "biased": number.biased,
        "biased_if_unrelated": number.biased_if_unrelated,
        "p": point.p,
    }
    return {key: "" if value is None else str(value) for key, value in cells.items()}
