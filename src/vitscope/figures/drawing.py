"""What a figure function gives back: the figure, whose numbers it shows, and what it leaves out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from matplotlib.figure import Figure

from vitscope.errors import ResultError, VitscopeError
from vitscope.figures.numbers import find, number
from vitscope.figures.saved import ModelResult, group_by_family
from vitscope.results.choices import (
    Choice,
    describe_choices,
    enumerate_labels,
    find_mixture,
)

T = TypeVar("T")


class NothingToDrawError(VitscopeError):
    """A figure, or one model's part of it, that the results hold no numbers for."""


@dataclass(frozen=True)
class Drawing:
    """A figure and where it comes from.

    Attributes:
        figure: The figure.
        shown: Results whose numbers are on it.
        omitted: Reason for each result that is not, by its label.
    """

    figure: Figure
    shown: tuple[ModelResult, ...]
    omitted: Mapping[str, str]


@dataclass(frozen=True)
class Selection(Generic[T]):
    """Results that have what a figure needs, with what was read of them.

    Attributes:
        found: What was read, by result; in order of family and size.
        omitted: Reason for each other result, by its label.
        choices: What was chosen otherwise than by default and where the results differ in it, a
            sentence each.
    """

    found: tuple[tuple[ModelResult, T], ...]
    omitted: Mapping[str, str]
    choices: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[ModelResult, ...]:
        """The results that have it."""
        return tuple(result for result, _ in self.found)

    @property
    def families(self) -> dict[str, list[tuple[ModelResult, T]]]:
        """What was read, family by family, smallest model first."""
        values = {result.folder: value for result, value in self.found}
        return {
            family: [(member, values[member.folder]) for member in members]
            for family, members in group_by_family(self.results).items()
        }

    def draw(self, figure: Figure) -> Drawing:
        """The drawing of what was selected."""
        return Drawing(figure, self.results, self.omitted)


def select(
    results: Iterable[ModelResult],
    read: Callable[[ModelResult], T],
    *,
    kind: str = "audit",
    choices: Sequence[Choice] = (),
) -> Selection[T]:
    """Read what a figure needs out of each result."""
    found: list[tuple[ModelResult, T]] = []
    omitted: dict[str, str] = {}
    for result in sorted(results, key=lambda one: one.order):
        if result.kind != kind:
            continue
        try:
            found.append((result, read(result)))
        except (NothingToDrawError, ResultError) as reason:
            omitted[result.label] = str(reason)
    if not found:
        raise NothingToDrawError(describe_omitted(omitted) or f"no result of the kind {kind!r}")
    selected = [result for result, _ in found]
    if mixture := find_mixture(choices, selected):
        raise NothingToDrawError(f"{mixture}: draw them separately")
    return Selection(tuple(found), omitted, describe_choices(choices, selected))


def describe_omitted(omitted: Mapping[str, str]) -> str:
    """Who is left out and why, as one sentence."""
    reasons: dict[str, list[str]] = {}
    for label, reason in omitted.items():
        reasons.setdefault(reason, []).append(label)
    return "; ".join(f"{enumerate_labels(labels)}: {reason}" for reason, labels in reasons.items())


def describe_n(results: Sequence[ModelResult]) -> str:
    """How many images the numbers of a figure are over."""
    counts = sorted({result.num_images for result in results})
    each = " a model" if len(results) > 1 else ""
    if len(counts) == 1:
        return f"n = {counts[0]:,} images{each}"
    return f"n = {counts[0]:,} to {counts[-1]:,} images{each}"


def describe_partial_depths(results: Sequence[ModelResult]) -> list[str]:
    """Where patch norms are known of fewer images than there are."""
    partial = [
        int(known)
        for result in results
        for row in _list_rows(result.summary, "high_norm_tokens")
        if (known := number(find(row, "num_images"))) is not None and known < result.num_images
    ]
    if not partial:
        return []
    low, high = min(partial), max(partial)
    few = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return [
        f"After the last block the norms of patches are known of {few} images alone, in which "
        "the ledger was verified; whether tokens stand out there is told with --verified 1."
    ]


def _list_rows(summary: Mapping[str, Any], key: str) -> list[Any]:
    rows = find(summary, key)
    return rows if isinstance(rows, list) else []
