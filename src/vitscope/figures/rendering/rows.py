"""A row for each model, edit, map or image property, with intervals beside each other."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.differences import CHANGES
from vitscope.figures.image_numbers import R2
from vitscope.figures.rendering.panels import (
    finish,
    make_handles,
    make_panels,
    place_beside,
    term_handles,
    wrap_title,
    write_above,
)
from vitscope.figures.rendering.style import (
    BASE_PT,
    FAINT,
    HAIRLINE,
    INK,
    SMALL_PT,
    colour_term,
    literal,
    look_of_families,
    mark_term,
)
from vitscope.results.map_verdict import BASELINES
from vitscope.results.number_text import write_number
from vitscope.results.vocabulary import name_covariate

_MODEL_IN, _EDIT_IN, _MAP_IN, _COVARIATE_IN = 0.26, 0.32, 0.1, 0.17
"""Height of a row."""
_DOT_IN = 0.07
"""How much higher a map's row is for each model."""
_WIDE_ENOUGH = 12
"""Least width, in percent of the bar, for a number inside."""
_LETTERS = 24
"""Most letters on a line of an edit's name."""


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
        look: dict[str, Any] = {"color": colour_term(term), "marker": mark_term(term)}
        _plot_across(apart, points, heights, label=term, **look)
    for panel in (stacked, apart):
        _name_rows(panel, data, [model.label for model in data.shown])
        panel.axvline(0, color=INK, linewidth=0.6)
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
            _plot_across(
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
        _name_rows(panel, data, map(_wrap, rows))
        panel.set_title(literal(points[0].model.label))
        panel.grid(axis="x")
    handles = make_handles({CHANGES[name]: looks[name]._replace(dashes="none") for name in shown})
    return finish(figure, data, handles=handles)


def _wrap(edit: str) -> str:
    # A name and its settings have no spaces.
    spaced = edit.replace(":", ": ").replace(",", ", ")
    return "\n".join(textwrap.wrap(spaced, _LETTERS))


def draw_map_scores(data: FigureData) -> Figure:
    """A panel for each removal, a row for each map, a dot for each model."""
    names = {point.term: str(point.x) for point in data.points}
    rows = list(names)
    models = [model.label for model in data.shown]
    looks = look_of_families(models)
    height = 0.5 + (_MAP_IN + _DOT_IN * len(models)) * len(rows)
    figure, panels = make_panels(len(data.panels), panel_height_in=height)
    for (removal, points), panel in zip(data.panels.items(), panels, strict=True):
        for point in points:
            model = point.model.label
            look, offset = looks[model], place_beside(models.index(model), len(models))
            _plot_across(
                panel,
                [point],
                [rows.index(point.term) + offset],
                color=FAINT if point.term in BASELINES else look.colour,
                marker=look.marker,
                label=model,
            )
        for skill, end in ((0, "random"), (1, "oracle")):
            panel.axvline(skill, color=FAINT, linewidth=0.8, linestyle="--", zorder=1)
            write_above(panel, skill, end, color=FAINT)
        _name_rows(panel, data, names.values())
        panel.set_title(literal(data.titles[removal]), pad=12)
        panel.grid(axis="x")
    for panel in panels:
        # Empty beside another panel.
        for label, name in zip(panel.get_yticklabels(), names, strict=False):
            label.set_color(FAINT if name in BASELINES else INK)
    return finish(figure, data, handles=make_handles(looks) if len(models) > 1 else ())


def draw_correlations(data: FigureData) -> Figure:
    """A panel for each target, a row for each covariate."""
    rows = list(dict.fromkeys(str(point.x) for point in data.points if point.x != R2))
    height = 0.75 + _COVARIATE_IN * len(rows)
    figure, panels = make_panels(len(data.panels), columns=4, panel_height_in=height)
    for (target, points), panel in zip(data.panels.items(), panels, strict=True):
        fits = [f"R² = {write_number(p.number.value, 2)}" for p in points if p.x == R2]
        for point in (point for point in points if point.x != R2):
            colour = colour_term(point.term)
            _plot_across(
                panel,
                [point],
                [rows.index(str(point.x))],
                color=colour,
                marker=mark_term(point.term),
                markerfacecolor=colour if point.is_significant else "white",
                markersize=3.8,
                label=point.x,
            )
        panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
        for row in range(len(rows)):
            panel.axhline(row, color=HAIRLINE, linewidth=0.4, zorder=0)
        _name_rows(panel, data, map(name_covariate, rows))
        panel.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−½", "0", "½", "1"])
        title = wrap_title(figure, data.titles[target])
        panel.set_title("\n".join([title, *(fits or ["R² not known"])]))
        panel.title.set_fontsize(BASE_PT)
    return finish(figure, data)


def _plot_across(
    panel: Axes,
    points: Sequence[Point],
    heights: Sequence[float],
    *,
    markersize: float = 3,
    **look: Any,
) -> None:
    panel.errorbar(
        [point.number.value for point in points],
        heights,
        xerr=np.transpose([point.number.errors for point in points]),
        markersize=markersize,
        elinewidth=0.8,
        linestyle="none",
        **look,
    )


def _name_rows(panel: Axes, data: FigureData, names: Iterable[str]) -> None:
    # The first at the top.
    labels = list(map(literal, names))
    panel.set_yticks(range(len(labels)), labels)
    panel.set(ylim=(len(labels) - 0.5, -0.5), xlabel=data.axis)
    panel.tick_params(axis="y", length=0)
    if data.limits is not None:
        panel.set_xlim(data.limits)
