"""Charts with a row for each name, and a dot with its interval for each of several results."""

from collections.abc import Mapping, Sequence

import altair as alt

from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.differences import CHANGES
from vitscope.report.vega_parts import (
    FAINT,
    SERIES,
    Chart,
    Row,
    Spec,
    encode_value,
    finish,
    make_base,
    make_legend,
    make_range,
    make_row,
    make_tooltip,
    mark_ends,
)
from vitscope.results.map_verdict import BASELINES

_LONGEST = 36
_IN_LINES = f"length(datum.label) > {_LONGEST} ? split(datum.label, ', ') : datum.label"
"""Names too long for phones have a line for each of their parts."""


def draw_map_scores(data: FigureData) -> list[Chart]:
    """A chart for each removal: a row for each map, a dot with its interval for each model."""
    return [
        Chart(data.titles[removal], _plot_scores(data, points))
        for removal, points in data.panels.items()
    ]


def draw_differences(data: FigureData) -> list[Chart]:
    """A chart for each result that others are compared with: a row for each number."""
    charts = []
    for first, points in data.panels.items():
        rows, looks = [make_row(data, point) for point in points], colour_models(points)
        description = f"paired differences from {first}; the table has the numbers"
        spec = plot_in_rows(data, rows, "model", looks, (0,), description)
        of = next(iter(looks)) if len(looks) == 1 else "each"
        charts.append(Chart(f"{of} less {first}", spec))
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
        spec = plot_in_rows(data, rows, "number", looks, (0,), description)
        charts.append(Chart(label, spec))
    return charts


def _plot_scores(data: FigureData, points: Sequence[Point]) -> Spec:
    baseline = {point.term for point in points if point.term in BASELINES}
    rows = [{**make_row(data, point), "faint": point.term in baseline} for point in points]
    looks = colour_models(points)
    description = f"skill of each map, {data.titles[points[0].panel]}; the table has the numbers"
    return plot_in_rows(data, rows, "model", looks, (0, 1), description)


def colour_models(points: Sequence[Point]) -> dict[str, str]:
    """A colour for each result."""
    models = list(dict.fromkeys(point.model.label for point in points))
    return dict(zip(models, (SERIES * len(models))[: len(models)], strict=True))


def plot_in_rows(
    data: FigureData,
    rows: Sequence[Row],
    series: str,
    looks: Mapping[str, str],
    marks: Sequence[float],
    description: str,
) -> Spec:
    """A row for each x, with a dot for each value of a series in the colour of its look."""
    scale = make_range([*looks], lambda name: looks[name])
    colour = alt.condition(
        alt.datum["faint"],
        alt.value(FAINT),
        alt.Color(
            f"{series}:N", scale=scale, legend=make_legend(looks) if len(looks) > 1 else None
        ),
    )
    axis = alt.Axis(labelLimit=250, labelExpr=_IN_LINES, grid=True)
    apart = alt.Scale(paddingInner=0.35)
    name = alt.Y("x:N", sort=None, title=None, axis=axis, scale=apart)
    base = make_base(rows).encode(y=name, yOffset=alt.YOffset(f"{series}:N", sort=[*looks]))
    value = encode_value(alt.X, data)
    tooltip = [alt.Tooltip("x:N", title="name"), *make_tooltip(data.axis, series)]
    behind = make_base([{"value": mark} for mark in marks])
    layers: list[alt.Chart] = [
        behind.mark_rule(color=FAINT, strokeDash=[4, 3]).encode(x=value),
        *mark_ends(base, rows, "x", colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=value, color=colour, tooltip=tooltip
        ),
    ]
    names = {str(row["x"]) for row in rows}
    # Two lines of a name need as much as two dots.
    lines = 2 if any(len(name) > _LONGEST for name in names) else 1
    return finish(layers, description, height=(12 * max(len(looks), lines) + 10) * len(names))
