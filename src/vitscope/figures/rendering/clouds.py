"""Numbers of each image: distributions, scatter plots, correlations."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitscope.figures.description import FigureData, Values
from vitscope.figures.rendering.panels import (
    finish,
    make_panels,
)
from vitscope.figures.rendering.style import (
    HAIRLINE,
    INK,
    TERM_COLOURS,
    literal,
)
from vitscope.figures.saved import ModelResult
from vitscope.results.number_text import write_millions

_TICK_LETTERS = 12
_FEWEST_SLOTS = 3
_FEWEST_FOR_SHAPE = 20
"""Fewest images for drawing the shape of a distribution."""


def draw_distributions(data: FigureData) -> Figure:
    """A panel for each family, a distribution over images for each size."""
    figure, panels = make_panels(len(data.panels), panel_height_in=2.3)
    for (family, points), panel in zip(data.panels.items(), panels, strict=True):
        for place, point in enumerate(points):
            _plot_distribution(panel, place, *data.images[point.model.folder])
        names = [_name_size(point.model) for point in points]
        panel.set_xticks(range(len(points)), names)
        slack = max(0.6, (_FEWEST_SLOTS - len(points) + 1) / 2)
        limits = (-slack, len(points) - 1 + slack)
        panel.set(xlim=limits, ylim=data.limits, title=literal(family))
        panel.grid(axis="y")
    panels[0].set_ylabel(data.axis)
    return finish(figure, data)


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
        title = literal(data.titles[str(model.folder)])
        panel.set(title=title, xlabel="share of skip connection")
    return finish(figure, data, panels)


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
