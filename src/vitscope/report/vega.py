"""Charts with lines over size, depth, block, layer or the part of patches removed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.judged import CURVES, Role, find_role, name_role
from vitscope.figures.layers import choose_ticks, split_panels
from vitscope.figures.saved import ModelResult, label_sizes
from vitscope.report import vega_parts as parts
from vitscope.report.vega_parts import Chart, Spec, dot, mark, numbers, words
from vitscope.report.vega_rows import draw_apart
from vitscope.results.choices import enumerate_labels
from vitscope.results.judgement_text import name_map
from vitscope.results.layer_text import tell_layers
from vitscope.results.verdict import SYMBOLS
from vitscope.results.vocabulary import name_term, name_token

Look = tuple[str, Sequence[int]]  # colour and dashes of a line

DEPTH = "depth (0: embeddings)"
"""What is along a line, with what may be said of it after its first word."""
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 4])
_MILLIONS = "datum.value < 10 ? format(datum.value, '.2~r') : format(datum.value, ',.0f')"
_MOST_TOGETHER = 3
"""Results whose terms share a chart by depth; they differ in dashes alone."""
_SYMBOLS_PX = 240
"""Width that all symbols of a chart share."""


def draw_terms(data: FigureData) -> list[Chart]:
    """Numbers by term: a line over size for a family of several models; the others side by side."""
    charts, others = [], []
    for points in group_points(data.points, lambda point: point.model.series).values():
        if _are_sizes(parts.list_models(points)):
            charts.append(_plot_by_size(data, points))
        else:
            others += points
    return charts + draw_apart(data, others)


def _are_sizes(models: Sequence[ModelResult]) -> bool:
    # Not models of one library without a common recipe, nor results of one model with different
    # settings.
    sized = all(model.size is not None and model.params_m is not None for model in models)
    return sized and len(models) > 1 and len({model.params_m for model in models}) == len(models)


def _plot_by_size(data: FigureData, points: Sequence[Point]) -> Chart:
    series = points[0].model.series
    rows = parts.make_rows(data, points, name=lambda point: name_term(point.term))
    looks = parts.encode_terms(data.terms, "name")
    sizes = sorted({float(point.x) for point in points})
    axis = {"values": sizes, "labelExpr": _MILLIONS, "labelOverlap": "greedy", "grid": False}
    scale = {"type": "log", "domain": [sizes[0] / 1.5, sizes[-1] * 1.5], "nice": False}
    place = {"x": numbers("x", title="parameters (millions)", axis=axis, scale=scale)}
    labels = [{"x": x, "size": size} for x, size in label_sizes(point.model for point in points)]
    line = place | {"y": parts.encode_value(data), "color": looks["color"]}
    tooltip = parts.make_tooltip(data.axis, "model", "name")
    layers = [
        _write_above(labels, "size", place, color=parts.SOFT, fontSize=12),
        mark("line", line, strokeWidth=1.6),
        *parts.mark_ends(rows, "y", place, looks["color"]),
        dot(line | looks | {"tooltip": tooltip}, 70),
    ]
    return parts.finish(series, rows, layers, f"{data.axis} of {series} by number of parameters")


def _write_above(rows: Sequence[Spec], field: str, channels: Spec, **looks: Any) -> Spec:
    channels = {**channels, "y": {"value": -4}, "text": words(field)}
    return {"data": {"values": rows}, **mark("text", channels, baseline="bottom", **looks)}


def draw_sources_by_layer(data: FigureData) -> list[Chart]:
    """A chart for each number of each model: a line and a band for each source."""
    return [_plot_layers(*found) for found in split_panels(data) if found[1].points]


def _plot_layers(model: ModelResult, data: FigureData) -> Chart:
    title = f"{model.label}: {data.axis}" if len(data.shown) > 1 else data.axis
    layers = model.audit.layers
    rows = parts.make_rows(data, data.points, name=lambda point: name_term(point.term))
    axis = {"values": choose_ticks(layers), "format": "d", "grid": False, "labelOverlap": "greedy"}
    scale = {"domain": [layers[0].index - 0.5, layers[-1].index + 0.5], "nice": False}
    place = {"x": numbers("x", title="layer", axis=axis, scale=scale)}
    by_layer = numbers("x", title="layer")
    found = {layer.index: layer.verdict.status for layer in layers}
    verdicts = [{"x": x, "status": one, "symbol": SYMBOLS[one]} for x, one in found.items()]
    tooltip = {"tooltip": [by_layer, words("status", title="verdict")]}
    size = max(6, min(13, _SYMBOLS_PX // len(layers)))
    above = _write_above(verdicts, "symbol", place | tooltip, color=parts.INK, fontSize=size)
    looks = parts.encode_terms(data.terms, "name")
    points = looks | {"tooltip": [*parts.make_tooltip(data.axis, "name"), by_layer]}
    drawn = _draw_lines(data, rows, place, {"color": looks["color"]}, points, 36)
    description = f"{data.axis} of each source of {model.label} by layer"
    told = f"{description}; {tell_layers(model.audit)}"
    return parts.finish(title, rows, [above, *drawn], told)


def _draw_lines(
    data: FigureData, rows: Sequence[Spec], place: Spec, lines: Spec, points: Spec, size: int
) -> list[Spec]:
    # Lines with points, and a band if there are intervals.
    value = place | {"y": parts.encode_value(data)}
    ends = {"y": numbers("low"), "y2": {"field": "high"}, "color": lines["color"]}
    band = [mark("area", place | ends, opacity=0.16)] if parts.has_some(rows, "low") else []
    return [*band, mark("line", value | lines, strokeWidth=1.8), dot(value | points, size)]


def draw_depths(data: FigureData) -> list[Chart]:
    """A chart for each family, with a line over depth and a band for each model."""
    return [_draw_family(data, *found) for found in data.panels.items()]


def _draw_family(data: FigureData, family: str, points: Sequence[Point]) -> Chart:
    models = parts.list_models(points)
    short = [model.short_label for model in models]
    apart = len(set(short)) == len(short)
    names = {model.folder: model.short_label if apart else model.label for model in models}
    looks = dict(zip(names.values(), cycle(zip(parts.SERIES, _DASHES, strict=True))))
    rows = parts.make_rows(data, points, name=lambda point: names[point.model.folder])
    title = family if len(models) > 1 else models[0].label
    return _plot_lines(title, data, rows, looks, DEPTH, family)


def draw_tokens_along(data: FigureData, *, along: str) -> list[Chart]:
    """A chart for each model: a line and a band for each token group or route."""
    models = parts.group_models(data.points)
    found = [data.points] if len(models) <= _MOST_TOGETHER else models
    return [_plot_tokens(data, points, along) for points in found]


def _plot_tokens(data: FigureData, points: Sequence[Point], along: str) -> Chart:
    # A colour for each term, dashes for each result.
    models = parts.list_models(points)
    dashes = dict(zip((model.folder for model in models), _DASHES, strict=False))

    several = len(models) > 1

    def name(point: Point) -> str:
        return name_token(point.term) + (f", {point.model.label}" if several else "")

    looks = {name(one): (parts.term_colour(one.term), dashes[one.model.folder]) for one in points}
    traces = [model.audit.trace for model in models if along == DEPTH]
    halves = [{"x": one.half_depth} for one in traces if one and one.half_depth is not None]
    half = mark("rule", {"x": numbers("x")}, color=parts.FAINT, strokeDash=[2, 3])
    behind = [{"data": {"values": halves}, **half}] if halves else []
    title = "side by side" if several else models[0].label
    rows = parts.make_rows(data, points, name=name)
    of = enumerate_labels([model.label for model in models])
    return _plot_lines(title, data, rows, looks, along, of, behind)


def _plot_lines(
    title: str,
    data: FigureData,
    rows: Sequence[Spec],
    looks: Mapping[str, Look],
    along: str,
    of: str,
    behind: Sequence[Spec] = (),
) -> Chart:
    # A line for each name, in the colour and dashes of its look.
    last = max(int(row["x"]) for row in rows)
    ticks = list(range(0, last + 1, max(1, math.ceil(last / 6))))
    place = {"x": numbers("x", title=along, axis={"values": ticks, "format": "d", "grid": False})}
    lines = _encode_lines("name", looks)
    by = along.split()[0]
    tooltip = [*parts.make_tooltip(data.axis, "name"), numbers("x", title=by)]
    points = {"color": lines["color"], "tooltip": tooltip}
    drawn = _draw_lines(data, rows, place, lines, points, 26)
    return parts.finish(title, rows, [*behind, *drawn], f"{data.axis} of {of} by {by}")


def _encode_lines(field: str, looks: Mapping[str, Look], *, alone: bool = False) -> Spec:
    # A line that stands alone has no legend, unless its chart does not name it.
    colours, dashes = zip(*looks.values(), strict=True)
    shown = parts.make_legend(looks, symbolType="stroke", symbolSize=300)
    legend = shown if alone or len(looks) > 1 else None
    return parts.encode_looks(field, looks, legend, color=colours, strokeDash=dashes)


_ROLES: Mapping[Role, tuple[Look, float, float]] = {
    "other": ((parts.FAINT, _DASHES[0]), 1.0, 0.4),
    "random": ((parts.FAINT, _DASHES[2]), 2.0, 1.0),
    "oracle": ((parts.INK, _DASHES[1]), 1.6, 1.0),
    "attention": ((parts.SERIES[1], _DASHES[0]), 2.2, 1.0),
    "best": ((parts.SERIES[0], _DASHES[0]), 2.6, 1.0),
}
"""Look, width and opacity of a curve, from back to front."""


def draw_map_curves(data: FigureData) -> list[Chart]:
    """A chart for each model, removal and curve: the best map and the references stand out."""
    found = group_points(data.points, lambda point: (point.model.folder, point.panel))
    return [_plot_curves(data, points) for points in found.values()]


def _plot_curves(data: FigureData, points: Sequence[Point]) -> Chart:
    label, panel = points[0].model.label, points[0].panel
    title = f"{label}, {data.titles[panel]}" if len(data.shown) > 1 else data.titles[panel]
    rows = parts.make_rows(
        data,
        points,
        name=lambda point: name_map(point.model.judgement, point.term),
        role=name_role,
        width=lambda point: _ROLES[find_role(point)][1],
        opacity=lambda point: _ROLES[find_role(point)][2],
    )
    found = {find_role(point): name_role(point) for point in points}
    looks = {found[role]: _ROLES[role][0] for role in reversed([*_ROLES]) if role in found}
    along = CURVES[panel.rsplit(" ", 1)[-1]]
    axis = {"format": "%", "tickCount": 5, "grid": False}
    place = {"x": numbers("x", title=along, axis=axis), "y": parts.encode_value(data)}
    lines = _encode_lines("role", looks, alone=True)
    strokes = {
        "strokeWidth": numbers("width", scale=None),
        "strokeOpacity": numbers("opacity", scale=None),
        "detail": words("term"),
        "order": numbers("x"),
    }
    told = [*parts.make_tooltip(data.axis, "name"), numbers("x", title=along, format=".0%")]
    layers = [
        mark("line", place | lines | strokes),
        dot(place | {"color": lines["color"], "tooltip": told}, 40, opacity=0),
    ]
    description = f"{data.axis} of {label} by {along}, for each map"
    return parts.finish(title, rows, layers, description)


def draw_histogram(label: str) -> Chart:
    """A histogram whose data the page fills in for the chosen number."""
    channels = {
        "x": numbers("low", bin="binned", title=None, axis={"tickCount": 6, "grid": False}),
        "x2": {"field": "high"},
        "y": numbers("share", title="images", axis={"format": "%", "tickCount": 4}),
        "tooltip": [
            numbers("low", title="from", format=".4~g"),
            numbers("high", title="to", format=".4~g"),
            numbers("share", title="images", format=".1%"),
        ],
    }
    bars = mark("bar", channels, color=parts.term_colour("patches"), binSpacing=1)
    told = f"spread over images, {label}: the number chosen above"
    chart = parts.finish(label, [], [bars], told, 150)
    return replace(chart, spec=chart.spec | {"data": {"values": [], "name": "bins"}})
