"""The charts of the report, in one look: specifications for Vega-Lite, made with Altair.

Colours are the page's own custom properties, so that a chart follows it from light to dark without
being drawn again. Texts of a result go into data and descriptions alone, never into an expression.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

Spec = dict[str, Any]
Row = Mapping[str, Any]
Domain = tuple[float, float] | None

INK, FAINT, RULE = "var(--ink)", "var(--faint)", "var(--rule)"
OTHER = "var(--other)"
TERM_SHAPES = {
    "patches": "circle",
    "registers": "square",
    "cls": "diamond",
    "distillation": "cross",
    "skip": "triangle-up",
    "non_patch": "triangle-down",
    "highest_patch": "triangle-right",
    "full": "stroke",
}
"""Shape of a term's mark; its colour is the custom property named after the term."""
SERIES = tuple(f"var(--series-{index})" for index in range(6))
"""Colours of models of one family, in order of size."""
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 4])
_MILLIONS = "datum.value < 10 ? format(datum.value, '.2~r') : format(datum.value, ',.0f')"
_BAR_PX, _HEIGHT_PX = 34, 220
_SHORT_LETTERS = 20


def term_colour(term: str) -> str:
    """Colour of a term, the same on every chart."""
    name = "registers" if term.startswith("register_") else term
    return f"var(--{name.replace('_', '-')})" if name in TERM_SHAPES else OTHER


def term_shape(term: str) -> str:
    """Shape of a term's mark."""
    return TERM_SHAPES["registers"] if term.startswith("register_") else TERM_SHAPES.get(term, "x")


def plot_bars(
    rows: Sequence[Row], title: str, description: str, *, domain: Domain = None, form: str = ""
) -> Spec:
    """One bar a row, with its interval and its number."""
    name = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=130))
    base = _make_base(rows).encode(y=name)
    axis = _make_axis(form)
    value = alt.X("value:Q", title=title, axis=axis, scale=_make_scale(domain))
    layers: list[alt.Chart] = [
        base.mark_bar(height=14, cornerRadius=2).encode(
            x=value, color=alt.Color("colour:N", scale=None), tooltip=_make_tooltip(rows, title)
        )
    ]
    if _some(rows, "low"):
        layers.append(base.mark_rule(stroke=INK, strokeWidth=1.4).encode(x="low:Q", x2="high:Q"))
    if _some(rows, "floor"):
        tick = base.mark_tick(color=FAINT, thickness=2, height=20)
        layers.append(tick.encode(x=alt.X("floor:Q")))
    return _finish(alt.layer(*layers), description, height=_BAR_PX * len(rows))


def plot_by_size(
    rows: Sequence[Row], title: str, description: str, *, domain: Domain = None, form: str = ""
) -> Spec:
    """A line over the number of parameters for each term of one family of models."""
    terms = list(dict.fromkeys(row["term"] for row in rows))
    colour = alt.Color("term:N", scale=_make_range(terms, term_colour), legend=None)
    shape = alt.Shape("term:N", scale=_make_range(terms, term_shape), legend=None)
    names = {row["params"]: row["size"] for row in rows}
    sizes = sorted(names)
    axis = alt.Axis(values=sizes, labelExpr=_MILLIONS, labelOverlap="greedy", grid=False)
    scale = alt.Scale(type="log", domain=[sizes[0] / 1.5, sizes[-1] * 1.5], nice=False)
    place = alt.X("params:Q", title="parameters (millions)", axis=axis, scale=scale)
    ticks = _make_axis(form)
    value = alt.Y("value:Q", title=title, axis=ticks, scale=_make_scale(domain))
    base = _make_base(rows).encode(x=place)
    labels = _make_base([{"params": params, "size": names[params]} for params in sizes])
    layers: list[alt.Chart] = [
        labels.mark_text(color="var(--soft)", fontSize=12, baseline="bottom").encode(
            x=place, y=alt.value(-4), text="size:N"
        ),
        base.mark_line(strokeWidth=1.6).encode(y=value, color=colour),
    ]
    if _some(rows, "low"):
        layers.append(base.mark_rule(strokeWidth=1.4).encode(y="low:Q", y2="high:Q", color=colour))
    if _some(rows, "floor"):
        dash = base.mark_point(shape="stroke", size=90, strokeWidth=1.5, stroke=FAINT)
        layers.append(dash.encode(y="floor:Q"))
    layers.append(
        base.mark_point(filled=True, size=70, opacity=1).encode(
            y=value, color=colour, shape=shape, tooltip=_make_tooltip(rows, title)
        )
    )
    return _finish(alt.layer(*layers), description)


def plot_depth(
    rows: Sequence[Row],
    title: str,
    description: str,
    *,
    domain: Domain = None,
    form: str = "",
) -> Spec:
    """A line over the layers for each model of one family, with a band where there is a spread."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    looks = {name: index % len(SERIES) for index, name in enumerate(names)}
    short = max(map(len, names)) <= _SHORT_LETTERS
    legend = (
        alt.Legend(
            orient="top",
            title=None,
            labelLimit=150 if short else 260,
            columns=0 if short else 2,
            symbolType="stroke",
            symbolOpacity=1,
            symbolSize=300,
        )
        if len(names) > 1
        else None
    )
    colour = alt.Color("series:N", scale=_make_range(names, lambda n: SERIES[looks[n]]))
    colour = colour.legend(legend)
    dash = alt.StrokeDash("series:N", scale=_make_range(names, lambda n: _DASHES[looks[n]]))
    dash = dash.legend(legend)
    last = max(row["layer"] for row in rows)
    axis = alt.Axis(values=list(range(0, last + 1, max(1, math.ceil(last / 6)))), grid=False)
    layer = alt.X("layer:Q", title="layer (0: embeddings)", axis=axis)
    ticks = _make_axis(form)
    value = alt.Y("value:Q", title=title, scale=_make_scale(domain), axis=ticks)
    base = _make_base(rows).encode(x=layer)
    layers: list[alt.Chart] = []
    if _some(rows, "low"):
        band = base.mark_area(opacity=0.16)
        layers.append(band.encode(y="low:Q", y2="high:Q", color=colour))
    layers.append(base.mark_line(strokeWidth=1.8).encode(y=value, color=colour, strokeDash=dash))
    layers.append(
        base.mark_point(filled=True, size=26, opacity=1).encode(
            y=value, color=colour, tooltip=_make_tooltip(rows, title, "series", "layer")
        )
    )
    return _finish(alt.layer(*layers), description)


def plot_dots(rows: Sequence[Row], title: str, description: str, *, domain: Domain = None) -> Spec:
    """A dot with its interval for each row and term, the terms beside each other."""
    terms = list(dict.fromkeys(row["term"] for row in rows))
    colour = alt.Color("term:N", scale=_make_range(terms, term_colour), legend=None)
    shape = alt.Shape("term:N", scale=_make_range(terms, term_shape), legend=None)
    name = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=150, grid=True))
    base = _make_base(rows).encode(y=name, yOffset=alt.YOffset("term:N", sort=terms))
    value = alt.X("value:Q", title=title, axis=alt.Axis(tickCount=5), scale=_make_scale(domain))
    filled = alt.condition(alt.datum["strong"], alt.value(1), alt.value(0.15))
    layers: list[alt.Chart] = [
        base.mark_rule(strokeWidth=1.4).encode(x="low:Q", x2="high:Q", color=colour),
        base.mark_point(filled=True, size=60, opacity=1, strokeWidth=1.2).encode(
            x=value,
            color=colour,
            stroke=colour,
            shape=shape,
            fillOpacity=filled,
            tooltip=_make_tooltip(rows, title),
        ),
    ]
    count = len({row["name"] for row in rows})
    return _finish(alt.layer(*layers), description, height=(12 * len(terms) + 14) * count)


def plot_histogram(description: str) -> Spec:
    """Bars whose heights the page fills in, for the number that is looked at."""
    bars = (
        alt.Chart(alt.InlineData(values=[], name="bins"))
        .mark_bar(color=term_colour("patches"), binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title=None, axis=alt.Axis(tickCount=6, grid=False)),
            x2="high:Q",
            y=alt.Y("share:Q", title="images", axis=alt.Axis(format="%", tickCount=4)),
            tooltip=[
                alt.Tooltip("low:Q", title="from", format=".4~g"),
                alt.Tooltip("high:Q", title="to", format=".4~g"),
                alt.Tooltip("share:Q", title="images", format=".1%"),
            ],
        )
    )
    return _finish(bars, description, height=150)


def _make_base(rows: Sequence[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def _some(rows: Sequence[Row], key: str) -> bool:
    return any(row.get(key) is not None for row in rows)


def _make_axis(form: str) -> alt.Axis:
    return alt.Axis(tickCount=5, format=form) if form else alt.Axis(tickCount=5)


def _make_scale(domain: Domain) -> alt.Scale:
    return alt.Scale() if domain is None else alt.Scale(domain=list(domain), nice=False)


def _make_range(names: Sequence[str], look: Any) -> alt.Scale:
    return alt.Scale(domain=list(names), range=[look(name) for name in names])


def _make_tooltip(rows: Sequence[Row], title: str, *fields: str) -> list[alt.Tooltip]:
    fields = fields or tuple(key for key in ("model", "name") if _some(rows, key))
    kinds = {"layer": "Q"}
    shown = [alt.Tooltip(f"{key}:{kinds.get(key, 'N')}", title=key) for key in fields]
    return [*shown, alt.Tooltip("told:N", title=title)]


def _finish(
    chart: alt.Chart | alt.LayerChart | alt.FacetChart,
    description: str,
    *,
    height: int = _HEIGHT_PX,
) -> Spec:
    axis = {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "domainColor": RULE,
        "tickColor": RULE,
        "gridColor": RULE,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    }
    finished = chart.properties(width="container", height=height, description=description)
    finished = finished.configure(
        background="transparent",
        font="system-ui, sans-serif",
        axis=axis,
        axisY={"domain": False, "ticks": False, "labelPadding": 8},
        legend={"labelColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 2, "columns": 4},
        view={"stroke": None},
    )
    # Checking against the schema takes longer than all the rest, and the tests do it.
    spec: Spec = finished.to_dict(validate=False)
    return spec
