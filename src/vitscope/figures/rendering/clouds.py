"""Numbers of each image: distributions, scatter plots, correlations."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitscope.figures.description import FigureData, Point, Values
from vitscope.figures.image_numbers import R2
from vitscope.figures.rendering.panels import (
    finish,
    label_rows,
    make_panels,
    name_rows,
    plot_across,
    wrap_title,
)
from vitscope.figures.rendering.style import (
    BASE_PT,
    HAIRLINE,
    INK,
    TERM_COLOURS,
    colour_term,
    in_style,
    literal,
    mark_term,
)
from vitscope.figures.saved import ModelResult
from vitscope.results.number_text import write_millions, write_number
from vitscope.results.vocabulary import name_covariate

_TICK_LETTERS = 12
_FEWEST_SLOTS = 3
_FEWEST_FOR_SHAPE = 20
"""Fewest images for drawing the shape of a distribution."""


@in_style()
def draw_distributions(data: FigureData) -> Figure:
    """A panel for each family, a distribution over images for each size."""
    figure, panels = make_panels(len(data.panels), panel_height_in=2.3)
    for (family, points), panel in zip(data.panels.items(), panels, strict=True):
        for place, point in enumerate(points):
            _plot_distribution(panel, place, *data.images[point.model.folder])
        names = [_name_size(point.model) for point in points]
        panel.set_xticks(range(len(points)), names)
        slack = max(0.6, (_FEWEST_SLOTS - len(points) + 1) / 2)
        panel.set_xlim(-slack, len(points) - 1 + slack)
        panel.set_ylim(data.limits)
        panel.set_title(literal(family))
        panel.grid(axis="y")
    panels[0].set_ylabel(data.axis)
    return finish(figure, data)


@in_style()
def draw_clouds(data: FigureData) -> Figure:
    """A panel for each model, a dot for each image."""
    figure, panels = make_panels(len(data.shown), panel_height_in=2.2, share_y=False)
    for model, panel in zip(data.shown, panels, strict=True):
        skip, registers = data.images[model.folder]
        panel.scatter(
            skip,
            registers,
            s=float(np.clip(60 / np.sqrt(len(skip)), 1, 9)),
            color=TERM_COLOURS["registers"],
            alpha=0.5,
            linewidths=0,
            rasterized=len(skip) > 2000,
        )
        for line in (panel.axhline, panel.axvline):
            line(0, color=HAIRLINE, linewidth=0.6, zorder=0)
        panel.set_title(literal(data.titles[str(model.folder)]))
        panel.set_xlabel("share of skip connection")
    label_rows(panels, "share of registers")
    return finish(figure, data)


@in_style()
def draw_correlations(data: FigureData) -> Figure:
    """A panel for each target, a row for each covariate."""
    rows = list(dict.fromkeys(str(point.x) for point in data.points if point.x != R2))
    height = 0.75 + 0.17 * len(rows)
    figure, panels = make_panels(len(data.panels), columns=4, panel_height_in=height)
    for (target, points), panel in zip(data.panels.items(), panels, strict=True):
        _plot_forest(panel, data, rows, [point for point in points if point.x != R2])
        fits = [f"R² = {write_number(p.number.value, 2)}" for p in points if p.x == R2]
        title = wrap_title(figure, data.titles[target])
        panel.set_title("\n".join([title, *(fits or ["R² not known"])]))
        panel.title.set_fontsize(BASE_PT)
    return finish(figure, data)


def _plot_distribution(panel: Axes, place: int, shares: Values) -> None:
    colour = TERM_COLOURS["patches"]
    if shares.size >= _FEWEST_FOR_SHAPE and np.ptp(shares) > 1e-3:
        parts = panel.violinplot(shares, [place], widths=0.8, showextrema=False)
        for body in parts["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=colour, alpha=0.3, edgecolor=colour, linewidth=0.5)
    low, first, median, third, high = np.quantile(shares, [0.05, 0.25, 0.5, 0.75, 0.95])
    box = {"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high, "fliers": []}
    line = {"color": colour, "linewidth": 0.8}
    panel.bxp(
        [box],
        positions=[place],
        widths=0.16,
        showfliers=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops={"color": colour, "linewidth": 1.6},
        manage_ticks=False,
    )
    panel.plot([place], [shares.mean()], marker="o", color=INK, markersize=3, linestyle="none")


def _name_size(model: ModelResult) -> str:
    if model.size is None or model.params_m is None:
        return literal("\n".join(textwrap.wrap(model.short_label, _TICK_LETTERS)))
    return literal(f"{model.size}\n{write_millions(model.params_m)}")


def _plot_forest(
    panel: Axes, data: FigureData, rows: Sequence[str], points: Sequence[Point]
) -> None:
    source = points[0].term
    for point in points:
        plot_across(
            panel,
            [point],
            [rows.index(str(point.x))],
            color=colour_term(source),
            marker=mark_term(source),
            markerfacecolor=colour_term(source) if point.is_significant else "white",
            markersize=3.8,
            label=point.x,
        )
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    for row in range(len(rows)):
        panel.axhline(row, color=HAIRLINE, linewidth=0.4, zorder=0)
    panel.set_xlim(data.limits)
    panel.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−½", "0", "½", "1"])
    name_rows(panel, map(name_covariate, rows))
    panel.set_xlabel(data.axis)
