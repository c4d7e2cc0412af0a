"""Numbers over model size: one panel per family and one line per term, or the reverse."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitscope.figures.contributions import CHANCE
from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.rendering.panels import (
    finish,
    make_handles,
    make_panels,
    plot_intervals,
    term_handles,
    use_plain_ticks,
    write_above,
)
from vitscope.figures.rendering.style import (
    FAINT,
    HAIRLINE,
    Look,
    colour_term,
    literal,
    look_of_families,
    mark_term,
)
from vitscope.figures.saved import label_sizes

_FAR_APART = 1.8
_HOLLOW: dict[str, Any] = {
    "linestyle": "none",
    "fillstyle": "none",
    "markeredgewidth": 0.7,
    "zorder": 2,
}
_CKA_MARKS: Mapping[str, dict[str, Any]] = {
    "biased": {"marker": "o", "markersize": 3},
    "biased_if_unrelated": {"marker": "_", "markersize": 7, "color": FAINT},
}
_CHANCE: dict[str, Any] = {"color": FAINT, "linestyle": (0, (4, 2)), "linewidth": 0.8}


def draw_terms_by_size(data: FigureData) -> Figure:
    """A panel for each family, a line for each term."""
    figure, panels = make_panels(len(data.panels), share_y=data.limits is not None)
    terms = [term for term in data.terms if term != CHANCE]
    handles = term_handles(terms)
    for (family, points), panel in zip(data.panels.items(), panels, strict=True):
        by_term = group_points(points, lambda point: point.term)
        for term in (term for term in terms if term in by_term):
            look = Look(colour_term(term), mark_term(term), "-")
            _plot_line(panel, by_term[term], look, term)
        chances = {point.number.value for point in by_term.get(CHANCE, [])}
        for chance in sorted(chances):
            panel.axhline(chance, zorder=1, **_CHANCE)
        _use_size_axis(panel, data, points)
        panel.set_title(literal(family), pad=11)
        if data.limits is None:
            panel.set_ylim(bottom=0)
    if CHANCE in data.terms:
        handles.append(Line2D([], [], label=CHANCE, **_CHANCE))
    return finish(figure, data, panels, handles=handles)


def draw_families_by_size(data: FigureData) -> Figure:
    """A panel for each term, a line for each family."""
    figure, panels = make_panels(len(data.panels), columns=2, panel_height_in=2.3)
    looks = look_of_families(list(dict.fromkeys(model.series for model in data.shown)))
    for (term, points), panel in zip(data.panels.items(), panels, strict=True):
        for series, own in group_points(points, lambda point: point.model.series).items():
            _plot_line(panel, own, looks[series], series)
        _use_size_axis(panel, data, points)
        panel.set_title(literal(data.titles[term]), pad=11)
    panels[0].set_ylabel(data.axis)
    return finish(figure, data, handles=make_handles(looks))


def _plot_line(panel: Axes, points: Sequence[Point], look: Look, label: str) -> None:
    colour, marker, dashes = look
    # Only sizes of one recipe are joined by a line.
    joined = all(point.model.size is not None for point in points)
    places = [float(point.x) for point in points]
    plot_intervals(
        panel,
        places,
        points,
        color=colour,
        marker=marker,
        linestyle=dashes if joined else "none",
        elinewidth=0.8,
        markeredgecolor="white",
        markeredgewidth=0.3,
        label=literal(label),
        zorder=3,
    )
    for name, mark in _CKA_MARKS.items():
        found = [getattr(point.number, name, None) for point in points]
        known = [(x, y) for x, y in zip(places, found, strict=True) if y is not None]
        if known:
            panel.plot(*np.transpose(known), **{"color": colour} | _HOLLOW | mark)


def _use_size_axis(panel: Axes, data: FigureData, points: Sequence[Point]) -> None:
    # Parameters in millions below, labels of sizes above.
    span = [float(point.x) for point in data.points]
    low, high = min(span), max(span)
    pad = 3.0 if high / low < _FAR_APART else 1.7
    low, high = low / pad, high * pad
    panel.set(xscale="log", xlim=(low, high), xlabel="parameters (millions)")
    use_plain_ticks(panel.xaxis)
    if data.limits is not None:
        panel.set_ylim(data.limits)
    for place, label in label_sizes(point.model for point in points):
        panel.axvline(place, color=HAIRLINE, linewidth=0.5, zorder=0)
        write_above(panel, place, literal(label), color="#555555")
