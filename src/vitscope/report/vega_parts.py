"""What every Vega-Lite chart is made of: colours, shapes, channels, marks; the page has colours."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.intervals import write_interval
from vitscope.figures.saved import ModelResult
from vitscope.results.vocabulary import look_of, name_term

Spec = dict[str, Any]

INK, SOFT, FAINT, RULE = "var(--ink)", "var(--soft)", "var(--faint)", "var(--rule)"
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
_CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "domainColor": RULE,
        "tickColor": RULE,
        "gridColor": RULE,
        "labelFontSize": 12,
        "labelSeparation": 6,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "axisY": {"domain": False, "ticks": False, "labelPadding": 8},
    "legend": {"labelColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 2},
    "view": {"stroke": None},
}


@dataclass(frozen=True)
class Chart:
    """One chart of a figure."""

    title: str
    spec: Spec


def term_colour(term: str) -> str:
    """Colour of a term, the same on every chart."""
    name = look_of(term)
    return f"var(--{name.replace('_', '-')})" if name in TERM_SHAPES else "var(--other)"


def term_shape(term: str) -> str:
    """Shape of a term's marker."""
    return TERM_SHAPES.get(look_of(term), "cross")


def group_models(points: Iterable[Point]) -> list[list[Point]]:
    """The points of each model."""
    return list(group_points(points, lambda point: point.model.folder).values())


def list_models(points: Iterable[Point]) -> list[ModelResult]:
    """The models of points."""
    return [own[0].model for own in group_models(points)]


def make_rows(
    data: FigureData, points: Iterable[Point], **more: Callable[[Point], Any]
) -> list[Spec]:
    """Numbers of points as the charts name them, with further fields."""
    rows = []
    for point in points:
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
        marks = {"biased": number.biased, "floor": number.biased_if_unrelated}
        row |= {field: value for field, value in marks.items() if value is not None}
        rows.append(row | {field: read(point) for field, read in more.items()})
    return rows


def words(field: str, **how: Any) -> Spec:
    """A channel of names."""
    return {"field": field, "type": "nominal", **how}


def numbers(field: str, **how: Any) -> Spec:
    """A channel of numbers."""
    return {"field": field, "type": "quantitative", **how}


def encode_value(data: FigureData) -> Spec:
    """The values on their axis."""
    axis = {"tickCount": 5} | ({"format": "%"} if data.percent else {})
    scale = {} if data.limits is None else {"domain": list(data.limits), "nice": False}
    return numbers("value", title=data.axis, axis=axis, scale=scale)


def encode_looks(
    field: str, names: Iterable[str], legend: Spec | None, **looks: Iterable[Any]
) -> Spec:
    """Channels by a field with these names, such as its colour, with one legend for all."""
    domain = list(names)
    return {
        channel: words(field, scale={"domain": domain, "range": list(found)}, legend=legend)
        for channel, found in looks.items()
    }


def encode_terms(terms: Sequence[str], field: str) -> Spec:
    """Colour and shape by a field with the names of terms."""
    names = list(map(name_term, terms))
    looks = {"color": map(term_colour, terms), "shape": map(term_shape, terms)}
    return encode_looks(field, names, make_legend(names, offset=20), **looks)


def make_legend(names: Iterable[str], **looks: Any) -> Spec:
    """A legend above the chart, with as many columns as fit a phone."""
    columns = max(1, min(4, _LEGEND_PX // (_SYMBOL_PX + _LETTER_PX * max(map(len, names)))))
    shown = {"orient": "top", "title": None, "symbolOpacity": 1, "columns": columns}
    return {**shown, "labelLimit": _LEGEND_PX - _SYMBOL_PX, **looks}


def make_tooltip(title: str, *keys: str) -> list[Spec]:
    """Names of a point, then its number with its interval."""
    return [*(words(key, title=key) for key in keys), words("told", title=title)]


def mark(kind: str, channels: Spec, **looks: Any) -> Spec:
    """A layer of a chart."""
    return {"mark": {"type": kind, **looks}, "encoding": channels}


def dot(channels: Spec, size: int, **looks: Any) -> Spec:
    """A layer of filled points."""
    return mark("point", channels, **{"filled": True, "size": size, "opacity": 1, **looks})


def mark_ends(rows: Sequence[Spec], along: str, place: Spec, colour: Spec) -> list[Spec]:
    """Intervals, and for CKA the biased estimate and its value for unrelated features."""
    layers, coloured = [], {**place, "color": colour}
    if has_some(rows, "low"):
        ends = {along: numbers("low"), f"{along}2": {"field": "high"}}
        layers.append(mark("rule", coloured | ends, strokeWidth=1.4))
    if has_some(rows, "biased"):
        layers.append(mark("point", {**coloured, along: numbers("biased")}, size=30))
    if has_some(rows, "floor"):
        looks = {"orient": "vertical" if along == "x" else "horizontal", "color": FAINT}
        floor = {**place, along: numbers("floor")}
        layers.append(mark("tick", floor, thickness=2, size=14, **looks))
    return layers


def has_some(rows: Sequence[Spec], key: str) -> bool:
    """Whether any row has a number of this name."""
    return any(row.get(key) is not None for row in rows)


def finish(
    title: str,
    rows: Sequence[Spec],
    layers: Sequence[Spec],
    description: str,
    height: int = _HEIGHT_PX,
) -> Chart:
    """A chart in the style of the page; layers may have rows of their own."""
    spec = {
        "data": {"values": rows},
        "layer": layers,
        "description": description,
        "width": "container",
        "height": height,
        "config": _CONFIG,
    }
    return Chart(title, spec)
