"""Charts with a row for each name: a bar, or a dot with its interval for each of several series."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle

from vitscope.figures.anatomy import NORMS
from vitscope.figures.description import FigureData, Point
from vitscope.figures.differences import CHANGES
from vitscope.figures.image_numbers import R2
from vitscope.figures.intervals import span
from vitscope.report import vega_parts as parts
from vitscope.report.vega_parts import Chart, Spec, dot, mark, words
from vitscope.results.map_verdict import BASELINES
from vitscope.results.vocabulary import name_covariate, name_term, name_token, order_terms

_BAR_PX = 34
_LONGEST = 36
_IN_LINES = f"length(datum.label) > {_LONGEST} ? split(datum.label, ', ') : datum.label"
"""Names too long for phones have a line for each of their parts."""
_ELSEWHERE = "; the table has the numbers"


def draw_map_scores(data: FigureData) -> list[Chart]:
    """A chart for each removal: a row for each map, a dot with its interval for each model."""
    charts = []
    for removal, points in data.panels.items():
        rows = parts.make_rows(data, points, faint=lambda point: point.term in BASELINES)
        title, looks = data.titles[removal], colour_models(points)
        charts.append(_plot_dots(title, data, rows, looks, f"skill of each map, {title}", (0, 1)))
    return charts


def draw_differences(data: FigureData) -> list[Chart]:
    """A chart for each result that others are compared with: a row for each number."""
    charts = []
    for first, points in data.panels.items():
        rows, looks = parts.make_rows(data, points), colour_models(points)
        title = f"{next(iter(looks)) if len(looks) == 1 else 'each'} less {first}"
        charts.append(_plot_dots(title, data, rows, looks, f"paired differences from {first}"))
    return charts


def draw_remedies(data: FigureData) -> list[Chart]:
    """A chart for each model: a row for each edit, a dot with its interval for each number."""
    shown = [name for key, name in CHANGES.items() if key in data.terms]
    looks = dict(zip(shown, parts.SERIES, strict=False))
    charts = []
    for points in parts.group_models(data.points):
        label = points[0].model.label
        rows = parts.make_rows(data, points, number=lambda point: CHANGES[point.term])
        description = f"what each edit of {label} changed"
        charts.append(_plot_dots(label, data, rows, looks, description, series="number"))
    return charts


def draw_norms_of_tokens(data: FigureData) -> list[Chart]:
    """Norms of several models in one chart, or else a bar for each token."""
    return draw_apart(replace(data, axis="norm"), data.panels[NORMS], name_token)


def draw_apart(
    data: FigureData, points: Sequence[Point], name: Callable[[str], str] = name_term
) -> list[Chart]:
    """Few results in one chart, a dot for each; of more, a chart of bars each on one scale."""
    models = parts.group_models(points)
    if 1 < len(models) <= len(parts.SERIES):
        looks = colour_models(points)
        rows = parts.make_rows(data, points, x=lambda point: name(point.term))
        description = f"{data.axis} of {', '.join(looks)}"
        return [_plot_dots("side by side", data, rows, looks, description)]
    if data.limits is None and len(models) > 1:
        data = replace(data, limits=span([point.number for point in points], 0.0))
    return [_draw_bars(data, own, name) for own in models]


def _draw_bars(data: FigureData, points: Sequence[Point], name: Callable[[str], str]) -> Chart:
    label, axis = points[0].model.label, data.axis
    rows = parts.make_rows(data, points, name=lambda point: name(point.term))
    told = ", ".join(f"{row['name']} {row['told']}" for row in rows)
    place = {"y": words("name", sort=None, title=None, axis={"labelLimit": 130})}
    looks = parts.encode_looks("term", data.terms, None, color=map(parts.term_colour, data.terms))
    bars = (
        place | looks | {"x": parts.encode_value(data), "tooltip": parts.make_tooltip(axis, "name")}
    )
    layers = [
        mark("bar", bars, height=14, cornerRadius=2),
        *parts.mark_ends(rows, "x", place, {"value": parts.INK}),
    ]
    height = _BAR_PX * len(rows)
    return parts.finish(label, rows, layers, f"{axis} of {label}: {told}", height)


def colour_models(points: Sequence[Point]) -> dict[str, str]:
    """A colour for each result."""
    models = dict.fromkeys(point.model.label for point in points)
    return dict(zip(models, cycle(parts.SERIES)))


def _plot_dots(
    title: str,
    data: FigureData,
    rows: Sequence[Spec],
    looks: Mapping[str, str],
    description: str,
    marks: Sequence[float] = (0,),
    series: str = "model",
) -> Chart:
    # A row for each x, with a dot for each value of a series in the colour of its look.
    legend = parts.make_legend(looks) if len(looks) > 1 else None
    colour = parts.encode_looks(series, looks, legend, color=looks.values())["color"]
    colour |= {"condition": {"test": "datum.faint", "value": parts.FAINT}}
    axis = {"labelLimit": 250, "labelExpr": _IN_LINES, "grid": True}
    place = {
        "y": words("x", sort=None, title=None, axis=axis, scale={"paddingInner": 0.35}),
        "yOffset": words(series, sort=[*looks]),
    }
    value = parts.encode_value(data)
    behind = mark("rule", {"x": value}, color=parts.FAINT, strokeDash=[4, 3])
    tooltip = [words("x", title="name"), *parts.make_tooltip(data.axis, series)]
    layers = [
        {"data": {"values": [{"value": one} for one in marks]}, **behind},
        *parts.mark_ends(rows, "x", place, colour),
        dot(place | {"x": value, "color": colour, "tooltip": tooltip}, 60),
    ]
    names = {str(row["x"]) for row in rows}
    # Two lines of a name need as much as two dots.
    lines = 2 if any(len(name) > _LONGEST for name in names) else 1
    height = (12 * max(len(looks), lines) + 10) * len(names)
    return parts.finish(title, rows, layers, description + _ELSEWHERE, height)


def draw_correlations(data: FigureData) -> list[Chart]:
    """A chart for each model: a dot for each covariate and source, filled if significant."""
    found = [point for point in data.points if point.x != R2]
    return [_plot_correlations(data, points) for points in parts.group_models(found)]


def _plot_correlations(data: FigureData, points: Sequence[Point]) -> Chart:
    label = points[0].model.label
    rows = parts.make_rows(
        data,
        points,
        name=lambda point: name_covariate(str(point.x)),
        source=lambda point: name_term(point.term),
        strong=lambda point: point.is_significant,
    )
    terms = order_terms({point.term for point in points})
    looks = parts.encode_terms(terms, "source")
    axis = {"labelLimit": 150, "grid": True}
    place = {
        "y": words("name", sort=None, title=None, axis=axis),
        "yOffset": words("term", sort=terms),
    }
    channels = {
        **place,
        **looks,
        "x": parts.encode_value(data),
        "stroke": looks["color"],
        "fillOpacity": {"condition": {"test": "datum.strong", "value": 1}, "value": 0.15},
        "tooltip": parts.make_tooltip(data.axis, "name", "source"),
    }
    ends = parts.mark_ends(rows, "x", place, looks["color"])
    layers = [*ends, dot(channels, 60, strokeWidth=1.2)]
    height = (12 * len(terms) + 14) * len({row["name"] for row in rows})
    return parts.finish(label, rows, layers, f"{data.axis} of {label}{_ELSEWHERE}", height)
