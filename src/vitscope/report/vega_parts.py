"""What every Vega-Lite chart is made of: colours, shapes, axes, intervals."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import altair as alt

from vitscope.figures.description import FigureData, Point
from vitscope.figures.intervals import write_interval
from vitscope.results.vocabulary import look_of, name_term

Spec = dict[str, Any]
Row = Mapping[str, Any]
Channel = TypeVar("Channel", alt.X, alt.Y)

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
    "through_values": "circle",
    "through_routing": "circle",
}
"""Shape of a term's marker; its colour is the custom property named after the term."""
SERIES = tuple(f"var(--series-{index})" for index in range(6))
"""Colours of models of one family, in order of size."""
_HEIGHT_PX = 220
_LEGEND_PX, _SYMBOL_PX, _LETTER_PX = 324, 24, 6
"""Most width of a legend; about as wide are one of its symbols and a letter of a name."""


@dataclass(frozen=True)
class Chart:
    """One chart of a figure."""

    title: str
    spec: Spec


def term_colour(term: str) -> str:
    """Colour of a term, the same on every chart."""
    name = look_of(term)
    return f"var(--{name.replace('_', '-')})" if name in TERM_SHAPES else OTHER


def term_shape(term: str) -> str:
    """Shape of a term's marker."""
    return TERM_SHAPES.get(look_of(term), "cross")


def make_row(data: FigureData, point: Point) -> dict[str, Any]:
    """Numbers of a point as the charts name them."""
    number = point.number
    row = {
        "model": point.model.label,
        "term": point.term,
        "x": point.x,
        "value": number.value,
        "low": number.low,
        "high": number.high,
        "told": write_interval(number, percent=data.percent),
    }
    if number.biased is not None:
        row |= {"biased": number.biased, "floor": number.biased_if_unrelated}
    return row


def make_base(rows: Sequence[Row]) -> alt.Chart:
    """A chart that carries its data."""
    # InlineData would validate every row.
    return alt.Chart({"values": [dict(row) for row in rows]})


def mark_ends(base: alt.Chart, rows: Sequence[Row], along: str, colour: Any) -> Iterator[alt.Chart]:
    """Intervals, and for CKA the biased estimate and its value for unrelated features."""
    # Altair takes far longer over names of channels than over channels.
    place, end = (alt.X, alt.X2) if along == "x" else (alt.Y, alt.Y2)
    if has_some(rows, "low"):
        yield base.mark_rule(strokeWidth=1.4).encode(place("low:Q"), end("high:Q"), color=colour)
    if has_some(rows, "biased"):
        yield base.mark_point(size=30).encode(place("biased:Q"), color=colour)
    if has_some(rows, "floor"):
        orient: Any = "vertical" if along == "x" else "horizontal"
        tick = base.mark_tick(color=FAINT, thickness=2, size=14, orient=orient)
        yield tick.encode(place("floor:Q"))


def has_some(rows: Sequence[Row], key: str) -> bool:
    """Whether any row has a number of this name."""
    return any(row.get(key) is not None for row in rows)


def encode_value(channel: type[Channel], data: FigureData) -> Channel:
    """The values on their axis."""
    axis = alt.Axis(tickCount=5, format="%") if data.percent else alt.Axis(tickCount=5)
    limits: Spec = {} if data.limits is None else {"domain": list(data.limits), "nice": False}
    return channel("value:Q", title=data.axis, axis=axis, scale=alt.Scale(**limits))


def encode_terms(terms: Sequence[str], field: str) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape by a field with the names of terms, with one legend for both."""
    names = list(map(name_term, terms))
    colours, shapes = (
        alt.Scale(domain=names, range=list(map(look, terms))) for look in (term_colour, term_shape)
    )
    legend = make_legend(names, offset=20)
    colour = alt.Color(f"{field}:N", scale=colours, legend=legend)
    return colour, alt.Shape(f"{field}:N", scale=shapes, legend=legend)


def make_legend(names: Iterable[str], **looks: Any) -> alt.Legend:
    """A legend above the chart, with as many columns as fit a phone."""
    columns = max(1, min(4, _LEGEND_PX // (_SYMBOL_PX + _LETTER_PX * max(map(len, names)))))
    limit = _LEGEND_PX - _SYMBOL_PX
    return alt.Legend(
        orient="top", title=None, symbolOpacity=1, columns=columns, labelLimit=limit, **looks
    )


def make_range(names: Sequence[str], look: Any) -> alt.Scale:
    """A scale from names to their looks."""
    return alt.Scale(domain=list(names), range=[look(name) for name in names])


def make_tooltip(title: str, *keys: str) -> list[alt.Tooltip]:
    """Names of a point, then its number with its interval."""
    return [
        *(alt.Tooltip(f"{key}:N", title=key) for key in keys),
        alt.Tooltip("told:N", title=title),
    ]


def finish(layers: Sequence[alt.Chart], description: str, *, height: int = _HEIGHT_PX) -> Spec:
    """Layers as a specification in the style of the page."""
    axis = {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "domainColor": RULE,
        "tickColor": RULE,
        "gridColor": RULE,
        "labelFontSize": 12,
        "labelSeparation": 6,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    }
    config = alt.Config(
        background="transparent",
        font="system-ui, sans-serif",
        axis=axis,
        axisY={"domain": False, "ticks": False, "labelPadding": 8},
        legend={"labelColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 2},
        view={"stroke": None},
    )
    # All at once: every method would copy the layers.
    finished = alt.layer(
        *layers, width="container", height=height, description=description, config=config
    )
    # Validation takes longer than all the rest; the tests do it.
    spec: Spec = finished.to_dict(validate=False)
    return spec
