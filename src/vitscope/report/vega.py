"""Vega-Lite specifications of figures, made with Altair; colours are properties of the page."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from vitscope.figures.anatomy import NORMS
from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.image_numbers import R2
from vitscope.figures.judged import CURVES, Role, find_role, name_role
from vitscope.figures.remedies import CHANGES
from vitscope.figures.saved import ModelResult, label_sizes
from vitscope.report.vega_parts import (
    FAINT,
    INK,
    SERIES,
    Row,
    Spec,
    encode_terms,
    finish,
    has_some,
    make_axis,
    make_base,
    make_range,
    make_row,
    make_scale,
    make_tooltip,
    mark_ends,
    term_colour,
)
from vitscope.results.judgement_text import name_map
from vitscope.results.map_verdict import BASELINES
from vitscope.results.vocabulary import name_covariate, name_term, name_token, order_terms

_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 4])
_MILLIONS = "datum.value < 10 ? format(datum.value, '.2~r') : format(datum.value, ',.0f')"
_BAR_PX = 34
_SHORT_LETTERS = 20


@dataclass(frozen=True)
class Chart:
    """One chart of a figure."""

    title: str
    spec: Spec


def draw_terms(data: FigureData) -> list[Chart]:
    """Numbers by term: a line over size for a family of several models, bars for a single one."""
    charts = []
    for series, points in group_points(data.points, lambda point: point.model.series).items():
        by_model = group_points(points, lambda point: point.model.folder)
        if _are_sizes([own[0].model for own in by_model.values()]):
            charts.append(Chart(series, _plot_by_size(data, points)))
        else:
            charts += [_draw_bars(data, own) for own in by_model.values()]
    return charts


def draw_norms_of_tokens(data: FigureData) -> list[Chart]:
    """A chart for each model, a bar for each token."""
    norms = group_points(data.panels[NORMS], lambda point: point.model.folder)
    return [_draw_bars(data, own, "norm", name_token) for own in norms.values()]


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
    charts = []
    for points in group_points(data.points, lambda point: point.model.folder).values():
        model = points[0].model
        names = [name_token(point.term) for point in points]
        looks = {name_token(point.term): (term_colour(point.term), _DASHES[0]) for point in points}
        half = model.audit.trace.half_depth if marked and model.audit.trace else None
        layers = [] if half is None else [_mark_depth(half)]
        spec = _plot_lines(data, points, names, looks, along, model.label, layers)
        charts.append(Chart(model.label, spec))
    return charts


def _mark_depth(depth: int) -> alt.Chart:
    rule = make_base([{"x": depth}]).mark_rule(color=FAINT, strokeDash=[2, 3])
    marked: alt.Chart = rule.encode(alt.X("x:Q"))
    return marked


def draw_correlations(data: FigureData) -> list[Chart]:
    """A chart for each model: a dot for each covariate and source, filled if significant."""
    found = [point for point in data.points if point.x != R2]
    by_model = group_points(found, lambda point: point.model.folder)
    return [Chart(own[0].model.label, _plot_dots(data, own)) for own in by_model.values()]


def draw_map_scores(data: FigureData) -> list[Chart]:
    """A chart for each removal: a row for each map, a dot with its interval for each model."""
    return [
        Chart(data.titles[removal], _plot_scores(data, points))
        for removal, points in data.panels.items()
    ]


def draw_map_curves(data: FigureData) -> list[Chart]:
    """A chart for each model, removal and curve: the best map and the references stand out."""
    charts = []
    for model, own in group_points(data.points, lambda point: point.model).items():
        for key, points in group_points(own, lambda point: point.panel).items():
            named = f"{model.label}, " if len(data.shown) > 1 else ""
            charts.append(Chart(f"{named}{data.titles[key]}", _plot_curves(data, points)))
    return charts


def draw_remedies(data: FigureData) -> list[Chart]:
    """A chart for each model: a row for each edit, a dot with its interval for each number."""
    shown = [name for name in CHANGES if name in data.terms]
    looks = {CHANGES[name]: SERIES[index] for index, name in enumerate(shown)}
    charts = []
    for own in group_points(data.points, lambda point: point.model.folder).values():
        label = own[0].model.label
        rows = [{**make_row(data, point), "number": CHANGES[point.term]} for point in own]
        description = f"what each edit of {label} changed; the table has the numbers"
        spec = _plot_in_rows(data, rows, "number", looks, (0,), description)
        charts.append(Chart(label, spec))
    return charts


def _are_sizes(models: Sequence[ModelResult]) -> bool:
    # Not models of one library without a common recipe, nor results of one model with different
    # settings.
    sized = all(model.size is not None and model.params_m is not None for model in models)
    return sized and len(models) > 1 and len({model.params_m for model in models}) == len(models)


def _draw_bars(
    data: FigureData,
    points: Sequence[Point],
    axis: str = "",
    name: Callable[[str], str] = name_term,
) -> Chart:
    label, axis = points[0].model.label, axis or data.axis
    rows = [{**make_row(data, point), "name": name(point.term)} for point in points]
    told = ", ".join(f"{row['name']} {row['told']}" for row in rows)
    base = make_base(rows).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=130))
    )
    value = alt.X("value:Q", title=axis, axis=make_axis(data), scale=make_scale(data))
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
    value = alt.Y("value:Q", title=data.axis, axis=make_axis(data), scale=make_scale(data))
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
    legend = alt.Legend(
        orient="top",
        title=None,
        columns=4 if max(map(len, series)) <= _SHORT_LETTERS else 2,
        symbolType="stroke",
        symbolOpacity=1,
        symbolSize=300,
    )
    shown = legend if len(series) > 1 else None
    colour = alt.Color("name:N", scale=make_range(series, lambda n: looks[n][0]))
    dash = alt.StrokeDash("name:N", scale=make_range(series, lambda n: looks[n][1]))
    colour, dash = colour.legend(shown), dash.legend(shown)
    last = int(max(float(point.x) for point in points))
    axis = alt.Axis(
        values=list(range(0, last + 1, max(1, math.ceil(last / 6)))), format="d", grid=False
    )
    value = alt.Y("value:Q", title=data.axis, scale=make_scale(data), axis=make_axis(data))
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
    legend = alt.Legend(
        orient="top",
        title=None,
        columns=2,
        symbolType="stroke",
        symbolOpacity=1,
        symbolSize=300,
        labelLimit=300,
    )
    colour = alt.Color("role:N", scale=make_range([*looks], lambda name: looks[name][0]))
    dash = alt.StrokeDash("role:N", scale=make_range([*looks], lambda name: looks[name][1]))
    along = CURVES[points[0].panel.rsplit(" ", 1)[-1]]
    axis = alt.Axis(format="%", tickCount=5, grid=False)
    value = alt.Y("value:Q", title=data.axis, scale=make_scale(data), axis=make_axis(data))
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


def _plot_scores(data: FigureData, points: Sequence[Point]) -> Spec:
    models = list(dict.fromkeys(point.model.label for point in points))
    baseline = {point.term for point in points if point.term in BASELINES}
    rows = [{**make_row(data, point), "faint": point.term in baseline} for point in points]
    looks = dict(zip(models, (SERIES * len(models))[: len(models)], strict=True))
    description = f"skill of each map, {data.titles[points[0].panel]}; the table has the numbers"
    return _plot_in_rows(data, rows, "model", looks, (0, 1), description)


def _plot_in_rows(
    data: FigureData,
    rows: Sequence[Row],
    series: str,
    looks: Mapping[str, str],
    marks: Sequence[float],
    description: str,
) -> Spec:
    # A row for each x, with a dot for each value of a series in the colour of its look.
    legend = alt.Legend(orient="top", title=None, columns=2, labelLimit=300)
    scale = make_range([*looks], lambda name: looks[name])
    colour = alt.condition(
        alt.datum["faint"],
        alt.value(FAINT),
        alt.Color(f"{series}:N", scale=scale, legend=legend if len(looks) > 1 else None),
    )
    axis, apart = alt.Axis(labelLimit=230, grid=True), alt.Scale(paddingInner=0.35)
    name = alt.Y("x:N", sort=None, title=None, axis=axis, scale=apart)
    base = make_base(rows).encode(y=name, yOffset=alt.YOffset(f"{series}:N", sort=[*looks]))
    value = alt.X("value:Q", title=data.axis, axis=make_axis(data), scale=make_scale(data))
    tooltip = [alt.Tooltip("x:N", title="name"), *make_tooltip(data.axis, series)]
    behind = make_base([{"value": mark} for mark in marks])
    layers: list[alt.Chart] = [
        behind.mark_rule(color=FAINT, strokeDash=[4, 3]).encode(x=value),
        *mark_ends(base, rows, "x", colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=value, color=colour, tooltip=tooltip
        ),
    ]
    count = len({row["x"] for row in rows})
    return finish(layers, description, height=(12 * len(looks) + 10) * count)


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
    value = alt.X("value:Q", title=data.axis, axis=make_axis(data), scale=make_scale(data))
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
