"""Parts of a whole: a stacked bar per model, and each part with its interval."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.rendering.panels import (
    finish,
    make_panels,
    plot_across,
    scale_numbers,
    term_handles,
    write_axis,
)
from vitscope.figures.rendering.style import (
    INK,
    SMALL_PT,
    colour_term,
    in_style,
    literal,
    mark_term,
)

_ROW_IN = 0.26
_WIDE_ENOUGH = 12
"""Least width, in percent of the bar, for a number inside."""


@in_style
def draw_parts(data: FigureData) -> Figure:
    """A stacked bar for each model, and beside it each part with its interval."""
    count = len(data.shown)
    figure, (stacked, apart) = make_panels(2, columns=2, panel_height_in=0.55 + _ROW_IN * count)
    rows = {model.folder: row for row, model in enumerate(data.shown)}
    for folder, points in group_points(data.points, lambda point: point.model.folder).items():
        _stack(stacked, data, rows[folder], points)
    for place, term in enumerate(data.terms):
        points = [point for point in data.points if point.term == term]
        offset = (place - (len(data.terms) - 1) / 2) * 0.7 / len(data.terms)
        heights = [rows[point.model.folder] + offset for point in points]
        look = {"color": colour_term(term), "marker": mark_term(term), "label": term}
        plot_across(apart, scale_numbers(data, points), heights, **look)
    stacked.set_yticks(range(count), [literal(model.label) for model in data.shown])
    stacked.set_ylim(count - 0.5, -0.5)
    for panel in (stacked, apart):
        panel.axvline(0, color=INK, linewidth=0.6)
        panel.set_xlabel(write_axis(data))
        panel.tick_params(axis="y", length=0)
    stacked.set_title("adds up to 100 %")
    apart.set_title("each with its 95 % interval")
    apart.grid(axis="x")
    for row in range(1, count):
        apart.axhline(row - 0.5, color="#eeeeee", linewidth=0.6, zorder=0)
    return finish(figure, data, handles=term_handles(data.terms, joined=False))


def _stack(panel: Axes, data: FigureData, row: int, points: Sequence[Point]) -> None:
    # Negative shares are stacked to the left of zero.
    ends = {True: 0.0, False: 0.0}
    for point, number in zip(points, scale_numbers(data, points), strict=True):
        width, term = number.value, point.term
        side = width >= 0
        panel.barh(row, width, left=ends[side], height=0.7, color=colour_term(term), label=term)
        if abs(width) >= _WIDE_ENOUGH:
            panel.text(
                ends[side] + width / 2,
                row,
                f"{width:.0f}",
                ha="center",
                va="center",
                color="white",
                fontsize=SMALL_PT,
                weight="bold",
            )
        ends[side] += width
