"""The numbers of a figure as the tables of the report: a row for each model at least."""

from collections.abc import Callable, Sequence

from vitscope.figures.anatomy import COSINES, NORMS, STATES
from vitscope.figures.description import FigureData, Point
from vitscope.figures.differences import CHANGES
from vitscope.figures.image_numbers import R2
from vitscope.figures.intervals import write_interval
from vitscope.results.judgement_text import name_map
from vitscope.results.result_text import TextTable
from vitscope.results.vocabulary import name_covariate, name_term, name_token

Name = Callable[[Point], str]


def tabulate_terms(data: FigureData, **rows_by: Name) -> TextTable:
    """A column for each term."""
    columns = list(map(name_term, data.terms))
    return _tabulate(
        data, columns, lambda point: name_term(point.term), model=_name_model, **rows_by
    )


def tabulate_along(data: FigureData, *, along: str, **rows_by: Name) -> TextTable:
    """A column for each depth, block, or audited layer."""
    found = {int(point.x) for point in data.points}
    every = sorted(found) if along == "layer" else range(max(found) + 1)
    columns = [f"{along} {x}" for x in every]
    return _tabulate(
        data, columns, lambda point: f"{along} {point.x}", model=_name_model, **rows_by
    )


def tabulate_tokens_along(data: FigureData, *, along: str) -> TextTable:
    """A row for each token group or route of each model."""
    return tabulate_along(data, along=along, share=lambda point: name_token(point.term))


def tabulate_sources_by_layer(data: FigureData) -> TextTable:
    """A row for each number of each source and model."""
    return tabulate_along(
        data,
        along="layer",
        number=lambda point: data.titles[point.panel],
        source=lambda point: name_term(point.term),
    )


def tabulate_tokens(data: FigureData) -> TextTable:
    """A row for each token of each model: norm, and pairwise cosine over images."""
    names = {(NORMS, ""): "norm"}
    names |= {(COSINES, state): f"pairwise cosine, {state}" for state in STATES}
    return _tabulate(
        data,
        list(names.values()),
        lambda point: names.get((point.panel, str(point.x)), ""),
        model=_name_model,
        token=lambda point: name_token(point.term),
    )


def tabulate_correlations(data: FigureData) -> TextTable:
    """A row for each covariate of each model, a column for each source."""
    return tabulate_terms(
        data,
        covariate=lambda p: "all together: R²" if p.x == R2 else name_covariate(str(p.x)),
    )


def tabulate_map_scores(data: FigureData) -> TextTable:
    """A row for each map of each model, a column for each removal."""
    return _tabulate(
        data, list(data.panels), lambda p: p.panel, model=_name_model, map=lambda p: str(p.x)
    )


def tabulate_remedies(data: FigureData) -> TextTable:
    """A row for each edit of each model, a column for each number."""
    columns = [name for key, name in CHANGES.items() if key in data.terms]
    return _tabulate(
        data, columns, lambda p: CHANGES[p.term], model=_name_model, edit=lambda p: str(p.x)
    )


def tabulate_differences(data: FigureData) -> TextTable:
    """A row for each number, a column for each pair of results."""
    pairs = list(dict.fromkeys(map(_name_pair, data.points)))
    return _tabulate(data, pairs, _name_pair, number=lambda point: str(point.x))


def _name_model(point: Point) -> str:
    return point.model.label


def _name_pair(point: Point) -> str:
    return f"{point.model.label} less {point.panel}"


def tabulate_map_curves(data: FigureData) -> TextTable:
    """A row for each curve of each map and model, a column for each fraction of patches."""
    fractions = sorted({float(point.x) for point in data.points})
    return _tabulate(
        data,
        [f"{fraction:.0%}" for fraction in fractions],
        lambda point: f"{float(point.x):.0%}",
        model=_name_model,
        map=lambda point: name_map(point.model.judgement, point.term),
        curve=lambda point: data.titles[point.panel],
    )


def _tabulate(
    data: FigureData,
    columns: Sequence[str],
    name_column: Name,
    **rows_by: Name,
) -> TextTable:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for point in sorted(data.points, key=lambda point: data.shown.index(point.model)):
        if (column := name_column(point)) in columns:
            told = write_interval(point.number, percent=data.percent)
            mark = "" if point.p is None else "● " if point.is_significant else "○ "
            row = tuple(name(point) for name in rows_by.values())
            rows.setdefault(row, {})[column] = told.after(mark)
    cells = [(*row, *(found.get(name, "–") for name in columns)) for row, found in rows.items()]
    return TextTable((*rows_by, *columns), [cells])
