"""The numbers of a figure as the tables of the report."""

from collections.abc import Callable, Mapping, Sequence

from vitscope.figures.anatomy import COSINES, NORMS, STATES
from vitscope.figures.description import FigureData, Point
from vitscope.figures.differences import CHANGES
from vitscope.figures.image_numbers import R2
from vitscope.figures.intervals import write_interval
from vitscope.results.judgement_text import name_map
from vitscope.results.result_text import TextTable
from vitscope.results.vocabulary import name_covariate, name_term, name_token


def tabulate_terms(data: FigureData) -> TextTable:
    """A row for each model, a column for each term."""
    columns = list(map(name_term, data.terms))
    return _tabulate(data, {}, columns, lambda p: name_term(p.term))


def tabulate_depths(data: FigureData) -> TextTable:
    """A row for each model, a column for each depth."""
    last = max(int(point.x) for point in data.points)
    columns = [f"depth {depth}" for depth in range(last + 1)]
    return _tabulate(data, {}, columns, lambda p: f"depth {p.x}")


def tabulate_shares_by_depth(data: FigureData) -> TextTable:
    """A row for each token group of each model, a column for each depth."""
    return _tabulate_terms_along(data, "depth")


def tabulate_routes_by_block(data: FigureData) -> TextTable:
    """A row for each route of each model, a column for each block."""
    return _tabulate_terms_along(data, "block")


def _tabulate_terms_along(data: FigureData, along: str) -> TextTable:
    last = max(int(point.x) for point in data.points)
    columns = [f"{along} {x}" for x in range(last + 1)]
    rows_by = {"share": lambda point: name_token(point.term)}
    return _tabulate(data, rows_by, columns, lambda point: f"{along} {point.x}")


def tabulate_sources_by_layer(data: FigureData) -> TextTable:
    """A row for each number of each source and model, a column for each audited layer."""
    layers = sorted({int(point.x) for point in data.points})
    rows_by = {
        "number": lambda point: data.titles[point.panel],
        "source": lambda point: name_term(point.term),
    }
    columns = [f"layer {layer}" for layer in layers]
    return _tabulate(data, rows_by, columns, lambda point: f"layer {point.x}")


def tabulate_tokens(data: FigureData) -> TextTable:
    """A row for each token of each model: norm, and pairwise cosine over images."""
    names = {(NORMS, ""): "norm"}
    names |= {(COSINES, state): f"pairwise cosine, {state}" for state in STATES}
    return _tabulate(
        data,
        {"token": lambda point: name_token(point.term)},
        list(names.values()),
        lambda point: names.get((point.panel, str(point.x)), ""),
    )


def tabulate_correlations(data: FigureData) -> TextTable:
    """A row for each covariate of each model, a column for each source."""
    return _tabulate(
        data,
        {"covariate": lambda p: "all together: R²" if p.x == R2 else name_covariate(str(p.x))},
        list(map(name_term, data.terms)),
        lambda point: name_term(point.term),
    )


def tabulate_map_scores(data: FigureData) -> TextTable:
    """A row for each map of each model, a column for each removal."""
    columns = list(data.panels)
    rows_by = {"map": lambda point: str(point.x)}
    return _tabulate(data, rows_by, columns, lambda point: point.panel)


def tabulate_remedies(data: FigureData) -> TextTable:
    """A row for each edit of each model, a column for each number."""
    columns = [name for key, name in CHANGES.items() if key in data.terms]
    rows_by = {"edit": lambda point: str(point.x)}
    return _tabulate(data, rows_by, columns, lambda point: CHANGES[point.term])


def tabulate_differences(data: FigureData) -> TextTable:
    """A row for each number, a column for each pair of results."""
    pairs = list(dict.fromkeys(f"{point.model.label} less {point.panel}" for point in data.points))
    rows: dict[str, dict[str, str]] = {}
    for point in data.points:
        pair = f"{point.model.label} less {point.panel}"
        rows.setdefault(str(point.x), {})[pair] = write_interval(point.number)
    cells = [(name, *(found.get(pair, "–") for pair in pairs)) for name, found in rows.items()]
    return TextTable(("number", *pairs), [cells])


def tabulate_map_curves(data: FigureData) -> TextTable:
    """A row for each curve of each map and model, a column for each fraction of patches."""
    fractions = sorted({float(point.x) for point in data.points})
    rows_by = {
        "map": lambda point: name_map(point.model.judgement, point.term),
        "curve": lambda point: data.titles[point.panel],
    }
    columns = [f"{fraction:.0%}" for fraction in fractions]
    return _tabulate(data, rows_by, columns, lambda point: f"{float(point.x):.0%}")


def _tabulate(
    data: FigureData,
    rows_by: Mapping[str, Callable[[Point], str]],
    columns: Sequence[str],
    name_column: Callable[[Point], str],
) -> TextTable:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for point in sorted(data.points, key=lambda point: data.shown.index(point.model)):
        if (column := name_column(point)) in columns:
            told = write_interval(point.number, percent=data.percent)
            mark = "" if point.p is None else "● " if point.is_significant else "○ "
            row = (point.model.label, *(name(point) for name in rows_by.values()))
            rows.setdefault(row, {})[column] = told.after(mark)
    cells = ((*row, *(found.get(name, "–") for name in columns)) for row, found in rows.items())
    return TextTable(("model", *rows_by, *columns), [list(cells)])
