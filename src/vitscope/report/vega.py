"""Vega-Lite specifications of figures, made with Altair; colours are properties of the page."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import altair as alt

from vitscope.figures.anatomy import NORMS
from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.image_numbers import R2
from vitscope.figures.intervals import span
from vitscope.figures.judged import CURVES, Role, find_role, name_role
from vitscope.figures.saved import ModelResult, label_sizes
from vitscope.report.vega_parts import (
    FAINT,
    INK,
    SERIES,
    Chart,
    Spec,
    encode_terms,
    encode_value,
    finish,
    has_some,
    make_base,
    make_legend,
    make_range,
    make_row,
    make_tooltip,
    mark_ends,
    term_colour,
)
from vitscope.report.vega_rows import colour_models, plot_in_rows
from vitscope.results.choices import enumerate_labels
from vitscope.results.judgement_text import name_map
from vitscope.results.vocabulary import name_covariate, name_term, name_token, order_terms

_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 4])
_MILLIONS = "datum.value < 10 ? format(datum.value, '.2~r') : format(datum.value, ',.0f')"
_BAR_PX = 34
_STROKES: Mapping[str, Any] = {"symbolType": "stroke", "symbolSize": 300}
"""Symbols of a legend of lines."""
_MOST_TOGETHER = 3
"""Results whose terms share a chart by depth; they differ in dashes alone."""


def draw_terms(data: FigureData) -> list[Chart]:
    """Numbers by term: a line over size for a family of several models; the others side by side."""
    charts, others = [], []
    for series, points in group_points(data.points, lambda point: point.model.series).items():
        by_model = group_points(points, lambda point: point.model.folder)
        if _are_sizes([own[0].model for own in by_model.values()]):
            charts.append(Chart(series, _plot_by_size(data, points)))
        else:
            others += points
    return charts + _draw_apart(data, others)


def draw_norms_of_tokens(data: FigureData) -> list[Chart]:
    """Norms of several models in one chart, or else a bar for each token."""
    norms = replace(data, axis="norm")
    return _draw_apart(norms, data.panels[NORMS], name_token)


def draw_depths(data: FigureData) -> list[Chart]:
    """A chart for each family, with a line over depth and a band for each model."""
    charts = []
    for family, points in data.panels.items():
        models = {point.model.folder: point.model for point in points}
        title = family if len(models) > 1 else points[0].model.label
        charts.append(Chart(title, _plot_depths(data, points, list(models.values()))))
    return charts


def draw_shares_by_depth(data: FigureData) -> list[Chart]:
    """A chart for each model, with a line over depth and a band for each token group."""
    return _draw_terms(data, "depth (0: embeddings)", marked=True)


def draw_routes_by_block(data: FigureData) -> list[Chart]:
    """A chart for each model, with a line over its blocks and a band for each route."""
    return _draw_terms(data, "block")


def _draw_terms(data: FigureData, along: str, *, marked: bool = False) -> list[Chart]:
    by_model = list(group_points(data.points, lambda point: point.model.folder).values())
    if 1 < len(by_model) <= _MOST_TOGETHER:
        spec = _plot_terms(data, data.points, along, marked=marked)
        return [Chart("side by side", spec)]
    return [
        Chart(points[0].model.label, _plot_terms(data, points, along, marked=marked))
        for points in by_model
    ]


def _plot_terms(data: FigureData, points: Sequence[Point], along: str, *, marked: bool) -> Spec:
    # A colour for each term, dashes for each result.
    models = list(dict.fromkeys(point.model for point in points))
    dashes = dict(zip(models, _DASHES, strict=False))
    several = len(models) > 1
    names = [
        f"{name_token(point.term)}{f', {point.model.label}' if several else ''}" for point in points
    ]
    looks = {
        name: (term_colour(point.term), dashes[point.model])
        for name, point in zip(names, points, strict=True)
    }
    traces = [model.audit.trace for model in models if marked]
    halves = [one.half_depth for one in traces if one is not None and one.half_depth is not None]
    of = enumerate_labels([model.label for model in models])
    return _plot_lines(data, points, names, looks, along, of, list(map(_mark_depth, halves)))


def _mark_depth(depth: int) -> alt.Chart:
    rule = make_base([{"x": depth}]).mark_rule(color=FAINT, strokeDash=[2, 3])
    marked: alt.Chart = rule.encode(alt.X("x:Q"))
    return marked


def draw_correlations(data: FigureData) -> list[Chart]:
    """A chart for each model: a dot for each covariate and source, filled if significant."""
    found = [point for point in data.points if point.x != R2]
    by_model = group_points(found, lambda point: point.model.folder)
    return [Chart(own[0].model.label, _plot_dots(data, own)) for own in by_model.values()]


def draw_map_curves(data: FigureData) -> list[Chart]:
    """A chart for each model, removal and curve: the best map and the references stand out."""
    charts = []
    for model, own in group_points(data.points, lambda point: point.model).items():
        for key, points in group_points(own, lambda point: point.panel).items():
            named = f"{model.label}, " if len(data.shown) > 1 else ""
            charts.append(Chart(f"{named}{data.titles[key]}", _plot_curves(data, points)))
    return charts


def _are_sizes(models: Sequence[ModelResult]) -> bool:
    # Not models of one library without a common recipe, nor results of one model with different
    # settings.
    sized = all(model.size is not None and model.params_m is not None for model in models)
    return sized and len(models) > 1 and len({model.params_m for model in models}) == len(models)


def _draw_apart(
    data: FigureData, points: Sequence[Point], name: Callable[[str], str] = name_term
) -> list[Chart]:
    # Few results in one chart, a dot for each; of more, a chart of bars each on one scale.
    by_model = group_points(points, lambda point: point.model.folder)
    if 1 < len(by_model) <= len(SERIES):
        looks = colour_models(points)
        rows = [{**make_row(data, point), "x": name(point.term)} for point in points]
        description = f"{data.axis} of {', '.join(looks)}; the table has the numbers"
        spec = plot_in_rows(data, rows, "model", looks, (0,), description)
        return [Chart("side by side", spec)]
    if data.limits is None and len(by_model) > 1:
        data = replace(data, limits=span([point.number for point in points], 0.0))
    return [_draw_bars(data, own, name) for own in by_model.values()]


def _draw_bars(
    data: FigureData, points: Sequence[Point], name: Callable[[str], str] = name_term
) -> Chart:
    label, axis = points[0].model.label, data.axis
    rows = [{**make_row(data, point), "name": name(point.term)} for point in points]
    told = ", ".join(f"{row['name']} {row['told']}" for row in rows)
    base = make_base(rows).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=130))
    )
    value = encode_value(alt.X, data)
    colour = alt.Color("term:N", scale=make_range(data.terms, term_colour), legend=None)
    bars = base.mark_bar(height=14, cornerRadius=2)
    layers: list[alt.Chart] = [
        bars.encode(x=value, color=colour, tooltip=make_tooltip(axis, "name"))
    ]
    layers += mark_ends(base, rows, "x", alt.ColorValue(INK))
    description = f"{axis} of {label}: {told}"
    return Chart(label, finish(layers, description, height=_BAR_PX * len(rows)))


def _plot_by_size(data: FigureData, points: Sequence[Point]) -> Spec:
    rows = [{**make_row(data, point), "name": name_term(point.term)} for point in points]
    colour, shape = encode_terms(data.terms, "name")
    labels = [{"x": x, "size": size} for x, size in label_sizes(point.model for point in points)]
    sizes = sorted({float(point.x) for point in points})
    axis = alt.Axis(values=sizes, labelExpr=_MILLIONS, labelOverlap="greedy", grid=False)
    scale = alt.Scale(type="log", domain=[sizes[0] / 1.5, sizes[-1] * 1.5], nice=False)
    place = alt.X("x:Q", title="parameters (millions)", axis=axis, scale=scale)
    value = encode_value(alt.Y, data)
    base = make_base(rows).encode(x=place)
    layers: list[alt.Chart] = [
        make_base(labels)
        .mark_text(color="var(--soft)", fontSize=12, baseline="bottom")
        .encode(x=place, y=alt.value(-4), text=alt.Text("size:N")),
        base.mark_line(strokeWidth=1.6).encode(y=value, color=colour),
    ]
    layers += mark_ends(base, rows, "y", colour)
    marks = base.mark_point(filled=True, size=70, opacity=1)
    tooltip = make_tooltip(data.axis, "model", "name")
    layers.append(marks.encode(y=value, color=colour, shape=shape, tooltip=tooltip))
    return finish(layers, f"{data.axis} of {points[0].model.series} by number of parameters")


def _plot_depths(data: FigureData, points: Sequence[Point], models: Sequence[ModelResult]) -> Spec:
    short = [model.short_label for model in models]
    apart = len(set(short)) == len(short)
    names = {model.folder: model.short_label if apart else model.label for model in models}
    looks = {
        name: (SERIES[index % len(SERIES)], _DASHES[index % len(SERIES)])
        for index, name in enumerate(names.values())
    }
    told = [names[point.model.folder] for point in points]
    return _plot_lines(data, points, told, looks, "depth (0: embeddings)", points[0].model.family)


def _plot_lines(
    data: FigureData,
    points: Sequence[Point],
    names: Sequence[str],
    looks: Mapping[str, tuple[str, Sequence[int]]],
    along: str,
    of: str,
    behind: Sequence[alt.Chart] = (),
) -> Spec:
    # A line for each name, in the colour and dashes of its look.
    rows = [
        {**make_row(data, point), "name": name} for point, name in zip(points, names, strict=True)
    ]
    series = list(looks)
    shown = make_legend(series, **_STROKES) if len(series) > 1 else None
    colour = alt.Color("name:N", scale=make_range(series, lambda n: looks[n][0]))
    dash = alt.StrokeDash("name:N", scale=make_range(series, lambda n: looks[n][1]))
    colour, dash = colour.legend(shown), dash.legend(shown)
    last = int(max(float(point.x) for point in points))
    axis = alt.Axis(
        values=list(range(0, last + 1, max(1, math.ceil(last / 6)))), format="d", grid=False
    )
    value = encode_value(alt.Y, data)
    base = make_base(rows).encode(x=alt.X("x:Q", title=along, axis=axis))
    layers = [*behind]
    if has_some(rows, "low"):
        band = base.mark_area(opacity=0.16)
        layers.append(band.encode(alt.Y("low:Q"), alt.Y2("high:Q"), color=colour))
    layers.append(base.mark_line(strokeWidth=1.8).encode(y=value, color=colour, strokeDash=dash))
    marks = base.mark_point(filled=True, size=26, opacity=1)
    tooltip = [*make_tooltip(data.axis, "name"), alt.Tooltip("x:Q", title=along.split()[0])]
    layers.append(marks.encode(y=value, color=colour, tooltip=tooltip))
    return finish(layers, f"{data.axis} of {of} by {along.split()[0]}")


_ROLES: Mapping[Role, tuple[str, Sequence[int], float, float]] = {
    "other": (FAINT, _DASHES[0], 1.0, 0.4),
    "random": (FAINT, _DASHES[2], 2.0, 1.0),
    "oracle": (INK, _DASHES[1], 1.6, 1.0),
    "attention": (SERIES[1], _DASHES[0], 2.2, 1.0),
    "best": (SERIES[0], _DASHES[0], 2.6, 1.0),
}
"""Colour, dashes, width and opacity of a curve, from back to front."""


def _plot_curves(data: FigureData, points: Sequence[Point]) -> Spec:
    rows = [
        {
            **make_row(data, point),
            "name": name_map(point.model.judgement, point.term),
            "role": name_role(point),
            "width": _ROLES[find_role(point)][2],
            "opacity": _ROLES[find_role(point)][3],
        }
        for point in points
    ]
    found = {find_role(point): name_role(point) for point in points}
    looks = {found[role]: _ROLES[role] for role in reversed([*_ROLES]) if role in found}
    legend = make_legend(looks, **_STROKES)
    colour = alt.Color("role:N", scale=make_range([*looks], lambda name: looks[name][0]))
    dash = alt.StrokeDash("role:N", scale=make_range([*looks], lambda name: looks[name][1]))
    along = CURVES[points[0].panel.rsplit(" ", 1)[-1]]
    axis = alt.Axis(format="%", tickCount=5, grid=False)
    value = encode_value(alt.Y, data)
    tooltip = [*make_tooltip(data.axis, "name"), alt.Tooltip("x:Q", title=along, format=".0%")]
    base = make_base(rows).encode(x=alt.X("x:Q", title=along, axis=axis), y=value)
    layers: list[alt.Chart] = [
        base.mark_line().encode(
            color=colour.legend(legend),
            strokeDash=dash.legend(legend),
            strokeWidth=alt.StrokeWidth("width:Q", scale=None),
            strokeOpacity=alt.StrokeOpacity("opacity:Q", scale=None),
            detail=alt.Detail("term:N"),
            order=alt.Order("x:Q"),
        ),
        base.mark_point(filled=True, size=40, opacity=0).encode(color=colour, tooltip=tooltip),
    ]
    return finish(layers, f"{data.axis} of {points[0].model.label} by {along}, for each map")


def _plot_dots(data: FigureData, points: Sequence[Point]) -> Spec:
    rows = [
        {
            **make_row(data, point),
            "name": name_covariate(str(point.x)),
            "source": name_term(point.term),
            "strong": point.is_significant,
        }
        for point in points
    ]
    terms = order_terms({point.term for point in points})
    colour, shape = encode_terms(terms, "source")
    name = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=150, grid=True))
    base = make_base(rows).encode(y=name, yOffset=alt.YOffset("term:N", sort=terms))
    value = encode_value(alt.X, data)
    filled = alt.condition(alt.datum["strong"], alt.value(1), alt.value(0.15))
    layers: list[alt.Chart] = [
        *mark_ends(base, rows, "x", colour),
        base.mark_point(filled=True, size=60, opacity=1, strokeWidth=1.2).encode(
            x=value,
            color=colour,
            stroke=colour,
            shape=shape,
            fillOpacity=filled,
            tooltip=make_tooltip(data.axis, "name", "source"),
        ),
    ]
    count = len({row["name"] for row in rows})
    description = f"{data.axis} of {points[0].model.label}; the numbers are in the table below"
    return finish(layers, description, height=(12 * len(terms) + 14) * count)


def plot_histogram(description: str) -> Spec:
    """A histogram whose data the page fills in for the chosen number."""
    bars = (
        alt.Chart(alt.InlineData(values=[], name="bins"))
        .mark_bar(color=term_colour("patches"), binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title=None, axis=alt.Axis(tickCount=6, grid=False)),
            x2=alt.X2("high:Q"),
            y=alt.Y("share:Q", title="images", axis=alt.Axis(format="%", tickCount=4)),
            tooltip=[
                alt.Tooltip("low:Q", title="from", format=".4~g"),
                alt.Tooltip("high:Q", title="to", format=".4~g"),
                alt.Tooltip("share:Q", title="images", format=".1%"),
            ],
        )
    )
    return finish([bars], description, height=150)
