"""The chart of sources by layer, with the verdict of each layer above it."""

import altair as alt

from vitscope.figures.description import FigureData
from vitscope.figures.layers import choose_ticks, split_panels
from vitscope.figures.saved import ModelResult
from vitscope.report.vega_parts import (
    INK,
    Chart,
    Spec,
    encode_terms,
    encode_value,
    finish,
    has_some,
    make_base,
    make_row,
    make_tooltip,
)
from vitscope.results.layer_text import tell_layers
from vitscope.results.verdict import SYMBOLS
from vitscope.results.vocabulary import name_term

_SYMBOLS_PX = 240
"""Width that all symbols of a chart share."""


def draw_sources_by_layer(data: FigureData) -> list[Chart]:
    """A chart for each number of each model: a line and a band for each source."""
    several = len(data.shown) > 1
    return [
        Chart(f"{model.label}: {panel.axis}" if several else panel.axis, _plot(model, panel))
        for model, panel in split_panels(data)
        if panel.points
    ]


def _plot(model: ModelResult, panel: FigureData) -> Spec:
    layers = model.audit.layers
    rows = [{**make_row(panel, point), "name": name_term(point.term)} for point in panel.points]
    verdicts = [
        {"x": layer.index, "status": layer.verdict.status, "symbol": SYMBOLS[layer.verdict.status]}
        for layer in layers
    ]
    axis = alt.Axis(values=choose_ticks(layers), format="d", grid=False, labelOverlap="greedy")
    scale = alt.Scale(domain=[layers[0].index - 0.5, layers[-1].index + 0.5], nice=False)
    place = alt.X("x:Q", title="layer", axis=axis, scale=scale)
    value = encode_value(alt.Y, panel)
    colour, shape = encode_terms(panel.terms, "name")
    base = make_base(rows).encode(x=place)
    size = max(6, min(13, _SYMBOLS_PX // len(layers)))
    symbols = make_base(verdicts).mark_text(color=INK, fontSize=size, baseline="bottom")
    tooltip = [alt.Tooltip("x:Q", title="layer"), alt.Tooltip("status:N", title="verdict")]
    drawn: list[alt.Chart] = [
        symbols.encode(x=place, y=alt.value(-4), text=alt.Text("symbol:N"), tooltip=tooltip)
    ]
    if has_some(rows, "low"):
        band = base.mark_area(opacity=0.16)
        drawn.append(band.encode(alt.Y("low:Q"), alt.Y2("high:Q"), color=colour))
    drawn.append(base.mark_line(strokeWidth=1.8).encode(y=value, color=colour))
    points = base.mark_point(filled=True, size=36, opacity=1)
    told = [*make_tooltip(panel.axis, "name"), alt.Tooltip("x:Q", title="layer")]
    drawn.append(points.encode(y=value, color=colour, shape=shape, tooltip=told))
    description = f"{panel.axis} of each source of {model.label} by layer"
    return finish(drawn, f"{description}; {tell_layers(model.audit)}")
