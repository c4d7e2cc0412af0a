"""A row for each model, with the parts of its output; or for each edit, with what it changed."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.differences import CHANGES
from vitscope.figures.rendering.panels import (
    finish,
    make_handles,
    make_panels,
    name_rows,
    place_beside,
    plot_across,
    term_handles,
)
from vitscope.figures.rendering.style import (
    HAIRLINE,
    INK,
    SMALL_PT,
    colour_term,
    in_style,
    literal,
    look_of_families,
    mark_term,
)

_MODEL_IN, _EDIT_IN = 0.26, 0.32
"""Height of a row."""
_WIDE_ENOUGH = 12
"""Least width, in percent of the bar, for a number inside."""
_LETTERS = 24
"""Most letters on a line of an edit's name."""


@in_style()
def draw_parts(data: FigureData) -> Figure:
    """A stacked bar for each model, and beside it each part with its interval."""
    count = len(data.shown)
    figure, (stacked, apart) = make_panels(2, columns=2, panel_height_in=0.55 + _MODEL_IN * count)
    rows = {model.folder: row for row, model in enumerate(data.shown)}
    for folder, points in group_points(data.points, lambda point: point.model.folder).items():
        _stack(stacked, rows[folder], points)
    for place, term in enumerate(data.terms):
        points = [point for point in data.points if point.term == term]
        offset = place_beside(place, len(data.terms))
        heights = [rows[point.model.folder] + offset for point in points]
        plot_across(
            apart,
            points,
            heights,
            color=colour_term(term),
            marker=mark_term(term),
            label=term,
        )
    for panel in (stacked, apart):
        name_rows(panel, [model.label for model in data.shown])
        panel.axvline(0, color=INK, linewidth=0.6)
        panel.set_xlabel(data.axis)
    stacked.set_title("adds up to 100 %")
    apart.set_title("each with its 95 % interval")
    apart.grid(axis="x")
    for row in range(1, count):
        apart.axhline(row - 0.5, color="#eeeeee", linewidth=0.6, zorder=0)
    return finish(figure, data, handles=term_handles(data.terms, joined=False))


def _stack(panel: Axes, row: int, points: Sequence[Point]) -> None:
    # Negative shares are stacked to the left of zero.
    ends = {True: 0.0, False: 0.0}
    for point in points:
        width, term = point.number.value, point.term
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


@in_style()
def draw_remedies(data: FigureData) -> Figure:
    """A panel for each model, a row for each edit, a dot for each number."""
    by_model = group_points(data.points, lambda point: point.model.folder)
    edits = {folder: list({str(p.x): None for p in own}) for folder, own in by_model.items()}
    height = 0.5 + _EDIT_IN * max(map(len, edits.values()))
    figure, panels = make_panels(len(by_model), columns=1, panel_height_in=height, share_y=False)
    looks = look_of_families([*CHANGES])
    shown = [name for name in CHANGES if name in data.terms]
    for (folder, points), panel in zip(by_model.items(), panels, strict=True):
        rows = edits[folder]
        for name, own in group_points(points, lambda point: point.term).items():
            offset = place_beside(shown.index(name), len(shown))
            plot_across(
                panel,
                own,
                [rows.index(str(point.x)) + offset for point in own],
                color=looks[name].colour,
                marker=looks[name].marker,
                label=name,
            )
        panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
        for row in range(1, len(rows)):
            panel.axhline(row - 0.5, color=HAIRLINE, linewidth=0.5, zorder=0)
        name_rows(panel, map(_wrap, rows))
        panel.set_xlim(data.limits)
        panel.set_xlabel(data.axis)
        panel.set_title(literal(points[0].model.label))
        panel.grid(axis="x")
    handles = make_handles({CHANGES[name]: looks[name]._replace(dashes="none") for name in shown})
    return finish(figure, data, handles=handles)


def _wrap(edit: str) -> str:
    # A name and its settings have no spaces.
    spaced = edit.replace(":", ": ").replace(",", ", ")
    return "\n".join(textwrap.wrap(spaced, _LETTERS))
