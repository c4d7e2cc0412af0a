"""What a figure of the report is: charts, the same numbers as a table, and what they mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitscope.figures.description import NothingToDrawError, Selection, describe_omitted
from vitscope.figures.numbers import CkaInterval, Interval
from vitscope.figures.saved import ModelResult
from vitscope.report.charts import Domain, Spec, plot_bars, plot_by_size, term_colour
from vitscope.results.vocabulary import name_term, order_terms

Terms = Mapping[str, Interval]
Told = Callable[[float], str]


@dataclass(frozen=True)
class Panel:
    """One chart of a figure.

    Attributes:
        title: What it is of, as text.
        spec: Its specification.
    """

    title: str
    spec: Spec


@dataclass(frozen=True)
class Table:
    """The numbers of a figure.

    Attributes:
        head: Names of the columns.
        rows: Text of each cell.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        key: Anchor in the page.
        title: The question that it answers.
        meaning: What it shows, in one plain line.
        terms: Definitions that it rests on, by their keys.
        panels: Its charts.
        table: Its numbers.
        legend: Names of the terms on it.
        notes: What else has to be said.
        missing: Why there is nothing, where there is nothing.
    """

    key: str
    title: str
    meaning: str
    terms: tuple[str, ...]
    panels: tuple[Panel, ...] = ()
    table: Table | None = None
    legend: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    missing: str = ""


def make_figure(
    draw: Callable[[], Mapping[str, Any]],
    *,
    key: str,
    title: str,
    meaning: str,
    terms: Sequence[str],
) -> ReportFigure:
    """A figure, or the reason why there is none."""
    try:
        drawn = draw()
    except NothingToDrawError as reason:
        return ReportFigure(key, title, meaning, tuple(terms), missing=str(reason))
    return ReportFigure(key, title, meaning, tuple(terms), **drawn)


def draw_terms(
    selection: Selection[Terms],
    axis: str,
    *,
    domain: Domain = None,
    told: Told | None = None,
    form: str = "",
) -> dict[str, Any]:
    """Numbers by term: a line over size for a family of several models, bars for a single one."""
    told = told or tell_number
    panels = []
    for family, members in selection.families.items():
        if _are_sizes([model for model, _ in members]):
            rows = [row for model, terms in members for row in _describe_terms(model, terms, told)]
            words = f"{axis} of {family} by number of parameters"
            spec = plot_by_size(rows, axis, words, domain=domain, form=form)
            panels.append(Panel(family, spec))
        else:
            for model, terms in members:
                rows = _describe_terms(model, terms, told)
                words = f"{axis} of {model.label}: " + ", ".join(
                    f"{row['name']} {row['told']}" for row in rows
                )
                spec = plot_bars(rows, axis, words, domain=domain, form=form)
                panels.append(Panel(model.label, spec))
    names = order_terms({term for _, terms in selection.found for term in terms})
    rows_of_table = [
        (model.label, *(tell_interval(terms.get(name), told) for name in names))
        for model, terms in selection.found
    ]
    return {
        "panels": tuple(panels),
        "table": Table(("model", *map(name_term, names)), tuple(rows_of_table)),
        "legend": tuple(names),
        "notes": note_omitted(selection.omitted),
    }


def _are_sizes(models: Sequence[ModelResult]) -> bool:
    # Models of one library that share no recipe are not sizes of each other.
    sized = all(model.size is not None and model.params_m is not None for model in models)
    # Nor are results of one model, made with different settings.
    return sized and len(models) > 1 and len({model.params_m for model in models}) == len(models)


def note_omitted(omitted: Mapping[str, str]) -> tuple[str, ...]:
    """Who is not on a figure, and why."""
    return (f"Not shown: {describe_omitted(omitted)}.",) if omitted else ()


def tell_number(value: float) -> str:
    """A number with three decimals."""
    return f"{value:.3f}".replace("-", "−")


def tell_percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.1f} %".replace("-", "−")


def tell_interval(estimate: Interval | None, told: Told = tell_number) -> str:
    """A number with its interval."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return told(estimate.value)
    return f"{told(estimate.value)} ({told(estimate.low)} to {told(estimate.high)})"


def _describe_terms(model: ModelResult, terms: Terms, told: Told) -> list[dict[str, Any]]:
    return [
        {
            "term": term,
            "name": name_term(term),
            "model": model.label,
            "size": model.size,
            "params": model.params_m,
            "colour": term_colour(term),
            "told": tell_interval(terms[term], told),
            **describe_interval(terms[term]),
        }
        for term in order_terms(terms)
    ]


def describe_interval(estimate: Interval) -> dict[str, float | None]:
    """A number as a row of a chart's data."""
    row = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    if isinstance(estimate, CkaInterval):
        row["floor"] = estimate.biased_if_unrelated
    return row
