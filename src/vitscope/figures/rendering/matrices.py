"""Heat maps of pairs of terms and of the patch grid; angles between directions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.intervals import Interval
from vitscope.figures.pairs import ANGLES, CHANCE, RANKS, SHARED
from vitscope.figures.rendering.panels import (
    finish,
    make_panels,
    plot_line,
)
from vitscope.figures.rendering.style import SMALL_PT, colour_term, literal
from vitscope.results.number_text import write_number
from vitscope.results.vocabulary import name_term, order_terms

Cells = dict[tuple[str, str], tuple[float, str]]
"""Number of each pair of terms, and how it is written."""


def draw_ledgers(data: FigureData) -> Figure:
    """A heat map for each total."""
    figure, panels = make_panels(len(data.panels), columns=2, panel_height_in=2.7, share_y=False)
    largest = max(abs(point.number.value) for point in data.points) or 1.0
    for (total, points), panel in zip(data.panels.items(), panels, strict=True):
        image = _plot_matrix(
            panel,
            _list_terms(points),
            {(p.term, p.other): (p.number.value, _write_share(p.number)) for p in points},
            colours="PuOr_r",
            limits=(-largest, largest),
        )
        panel.set_title(data.titles[total])
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label(data.axis)
    return finish(figure, data)


def draw_directions(data: FigureData) -> Figure:
    """Principal angles, shared variance, effective ranks."""
    figure, panels = make_panels(3, panel_height_in=2.8, share_y=False)
    angles, shared, ranks = panels
    _plot_angles(angles, data.panels[ANGLES])
    terms = _list_terms(data.points)
    cells: Cells = {(term, term): (np.nan, "") for term in terms}
    chances = {(p.term, p.other): f"\n({p.number.value:.2f})" for p in data.panels.get(CHANCE, [])}
    for point in data.panels[SHARED]:
        pair, value = (point.term, point.other), point.number.value
        cells[pair] = (value, f"{value:.2f}{chances.get(pair, '')}")
    _plot_matrix(shared, terms, cells, colours="cividis", limits=(0, 1))
    _plot_ranks(ranks, data.panels[RANKS])
    for panel, key in zip(panels, (ANGLES, SHARED, RANKS), strict=True):
        panel.set_title(data.titles[key])
    return finish(figure, data)


def draw_grid(data: FigureData) -> Figure:
    """A heat map of the patch grid."""
    figure, (panel,) = make_panels(1, panel_height_in=2.7)
    by_row = group_points(data.points, lambda point: point.other).values()
    grid = [[point.number.value for point in row] for row in by_row]
    image = panel.imshow(grid, cmap="cividis", vmin=0)
    panel.set(title=data.titles[""], xlabel="column", ylabel="row")
    bar = figure.colorbar(image, cax=panel.inset_axes((1.04, 0, 0.05, 1)))
    bar.set_label(data.axis)
    return finish(figure, data)


def _list_terms(points: Sequence[Point]) -> list[str]:
    return order_terms({term for p in points for term in (p.term, p.other) if term})


def _write_share(cell: Interval) -> str:
    lines = [write_number(cell.value, 2)]
    if cell.low is not None and cell.high is not None:
        lines[0] += f" ±{(cell.high - cell.low) / 2:.2f}"
    if cell.biased is not None:
        lines.append(f"({write_number(cell.biased, 2)})")
    return "\n".join(lines)


def _plot_angles(panel: Axes, points: Sequence[Point]) -> None:
    for (a, b), own in group_points(points, lambda point: (point.term, point.other)).items():
        plot_line(
            panel,
            own,
            color=colour_term(a),
            gapcolor=colour_term(b),
            linestyle=(0, (3, 3)),
            linewidth=1.8,
            label=literal(f"{name_term(a)} – {name_term(b)}"),
        )
    panel.set(
        ylim=(0, 92), yticks=[0, 30, 60, 90], xlabel="direction", ylabel="principal angle (°)"
    )
    panel.legend(
        loc="upper left", bbox_to_anchor=(-0.1, -0.22), fontsize=SMALL_PT, handlelength=2.6
    )


def _plot_ranks(panel: Axes, points: Sequence[Point]) -> None:
    terms, values = [point.term for point in points], [point.number.value for point in points]
    bars = panel.barh(range(len(terms)), values, color=[colour_term(t) for t in terms], height=0.65)
    panel.bar_label(bars, [f" {value:.1f}" for value in values], fontsize=SMALL_PT)
    panel.set_yticks(range(len(terms)), [literal(name_term(term)) for term in terms])
    panel.set(ylim=(len(terms) - 0.4, -0.6), xlim=(0, 1.2 * max(values)), xlabel="effective rank")


def _plot_matrix(
    panel: Axes, terms: Sequence[str], cells: Cells, *, colours: str, limits: tuple[float, float]
) -> AxesImage:
    """Numbers of pairs of terms, as colours and as digits; missing cells are grey."""
    unknown = (np.nan, "not\nknown")
    rows = [[cells.get((row, column), unknown) for column in terms] for row in terms]
    values = [[value for value, _ in row] for row in rows]
    image = panel.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    panel.set_facecolor("#eeeeee")
    names = [literal(name_term(term)) for term in terms]
    panel.set_xticks(range(len(terms)), names, rotation=30, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(terms)), names)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    for i, row in enumerate(rows):
        for j, (value, text) in enumerate(row):
            red, green, blue, _ = image.to_rgba(np.array(value))
            # Perceived lightness decides between white and black text.
            light = 0.299 * red + 0.587 * green + 0.114 * blue
            colour = "black" if np.isnan(value) or light > 0.5 else "white"
            panel.text(j, i, text, ha="center", va="center", fontsize=SMALL_PT, color=colour)
    return image
