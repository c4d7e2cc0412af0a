"""Layout of a figure: panels, heading, legend and notes, without overlaps."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from vitscope.figures.description import FigureData, Point
from vitscope.figures.rendering.style import (
    BASE_PT,
    COLUMN_IN,
    FAINT,
    PAGE_IN,
    SMALL_PT,
    Look,
    ShownFigure,
    chosen_style,
    colour_term,
    literal,
    mark_term,
)
from vitscope.results.vocabulary import name_term

_PT_PER_IN = 72
_LETTER_EM = 0.55
"""Average width of a letter of DejaVu Sans relative to its size, rounded up."""
_BOLD = 1.2
"""How much wider bold letters are."""
_MARGIN_IN, _BESIDE_IN = 0.06, 1.1
"""Margin of a figure; space beside its panels for the names of rows, or a legend."""
_LINE_IN = 0.1
_LEGEND_ROW_IN = 0.16
_HEADING_PT, _HEADING_IN = 8, 0.2
_MOST_TICKS = 5
_NARROW = 2
_SPREAD = 0.7
"""Part of a row or column that its numbers take."""


def make_panels(
    count: int,
    *,
    columns: int = 3,
    panel_height_in: float = 1.9,
    share_y: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, row by row."""
    width = chosen_style().width_in
    if width is not None:
        # A panel keeps three quarters of its width on a page; whole rows break into equal parts.
        least = 0.75 * PAGE_IN / columns
        fitting = [n for n in range(1, columns + 1) if columns % n == 0 and n * least <= width]
        columns = max(fitting, default=1)
    # As few rows as possible, filled as evenly as possible.
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)
    width = width or (COLUMN_IN if columns == 1 else PAGE_IN)
    figure = ShownFigure(figsize=(width, rows * panel_height_in), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=False, sharey=share_y, squeeze=False)
    panels: list[Axes] = list(np.asarray(grid).flat)
    for unused in panels[count:]:
        unused.remove()
    for index, panel in enumerate(panels[:count]):
        panel.tick_params(labelleft=not share_y or index % columns == 0)
    return figure, panels[:count]


def finish(
    figure: Figure,
    data: FigureData,
    panels: Sequence[Axes] = (),
    *,
    handles: Sequence[Artist] = (),
) -> Figure:
    """Add heading, legend and notes; the figure gets as much higher as they need.

    The vertical axis of panels is that of the numbers, named at the left of each row.
    """
    for panel in panels:
        place = panel.get_subplotspec()
        if place is not None and place.is_first_col():
            panel.set_ylabel(data.axis)
        if data.limits is not None:
            panel.set_ylim(data.limits)
    words = " ".join(data.remarks) if chosen_style().has_notes else ""
    width, height = figure.get_size_inches()
    usable = width - 2 * _MARGIN_IN
    heading = textwrap.wrap(data.heading, int(usable / _letter_in(_BOLD * _HEADING_PT)))
    heading_in = len(heading) * _HEADING_IN
    lines = textwrap.wrap(words, int(usable / _letter_in(SMALL_PT - 0.5)))
    columns = count_legend_columns(handles, usable)
    below = len(lines) * _LINE_IN + 2 * _MARGIN_IN
    legend_in = math.ceil(len(handles) / columns) * _LEGEND_ROW_IN
    above = legend_in + heading_in + 2 * _MARGIN_IN
    total = height + below + above
    figure.set_size_inches(width, total)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, below / total, 1, height / total))  # type: ignore[call-arg]
    left = _MARGIN_IN / width
    figure.text(
        left,
        _MARGIN_IN / total,
        literal("\n".join(lines)),
        fontsize=SMALL_PT - 0.5,
        color="#555555",
        va="bottom",
        linespacing=1.25,
    )
    if heading:
        top = 1 - _MARGIN_IN / total
        told = literal("\n".join(heading))
        figure.text(left, top, told, fontsize=_HEADING_PT, weight="bold", va="top")
    if handles:
        top = 1 - (_MARGIN_IN + heading_in) / total
        figure.legend(
            handles=by_rows(handles, columns),
            loc="upper left",
            bbox_to_anchor=(left, top),
            borderaxespad=0,
            ncols=columns,
        )
    return figure


def wrap_title(figure: Figure, title: str) -> str:
    """The title of a panel, in lines that are no wider than it."""
    place = figure.axes[0].get_subplotspec()
    across = 1 if place is None else place.get_gridspec().ncols
    panel_in = (figure.get_figwidth() - _BESIDE_IN) / across
    return textwrap.fill(title, int(panel_in / _letter_in(BASE_PT)))


def plot_intervals(
    panel: Axes, places: Sequence[float], points: Sequence[Point], **look: Any
) -> None:
    """Points with bars between the ends of their intervals, even if a mean is outside of these."""
    errors = np.transpose([point.number.errors for point in points])
    values = [point.number.value for point in points]
    drawn = panel.errorbar(places, values, yerr=errors if errors.any() else None, **look)
    ends = np.transpose([point.number.ends for point in points])
    _, caps, bars = drawn.lines
    for bar in bars:
        bar.set_segments([((x, a), (x, b)) for x, a, b in zip(places, *ends, strict=True)])
    for cap, end in zip(caps, ends, strict=False):
        cap.set_ydata(end)


def plot_line(panel: Axes, points: Sequence[Point], scale: float = 1, **look: Any) -> Line2D:
    """A line through points, over their places times a number."""
    values = [point.number.value for point in points]
    (line,) = panel.plot([scale * float(point.x) for point in points], values, **look)
    return line


def place_beside(place: int, count: int) -> float:
    """How far from the middle of its row or column one of several numbers stands."""
    return (place - (count - 1) / 2) * _SPREAD / count


def write_above(
    panel: Axes, place: float, text: str, *, fontsize: float = SMALL_PT, color: str | None = None
) -> None:
    """Write above a panel, over a place on its axis."""
    above = panel.get_xaxis_transform()
    panel.text(
        place,
        1.015,
        text,
        transform=above,
        ha="center",
        va="bottom",
        fontsize=fontsize,
        color=color,
    )


def term_handles(terms: Sequence[str], *, joined: bool = True) -> list[Artist]:
    """Legend entries of terms."""
    line = "-" if joined else "none"
    looks = {name_term(term): Look(colour_term(term), mark_term(term), line) for term in terms}
    return make_handles(looks)


def make_handles(looks: Mapping[str, Look]) -> list[Artist]:
    """Legend entries by name."""
    return [
        Line2D([], [], color=colour, marker=marker, ls=dashes, label=literal(name))
        for name, (colour, marker, dashes) in looks.items()
    ]


def count_legend_columns(handles: Sequence[Artist], width_in: float) -> int:
    """Number of legend entries that fit side by side."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    entry_in = longest * _letter_in(BASE_PT) + 0.45
    return max(1, min(len(handles) or 1, int(width_in / entry_in)))


def by_rows(handles: Sequence[Artist], columns: int) -> list[Artist]:
    """Reorder legend entries so that they read row by row."""
    return [handle for column in range(columns) for handle in handles[column::columns]]


def mark_empty(panel: Axes, reason: str) -> None:
    """Write into an empty panel why it is empty."""
    panel.set(xticks=[], yticks=[])
    text = literal("\n".join(textwrap.wrap(reason, 26)))
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=FAINT)


def use_plain_ticks(axis: Axis) -> None:
    """Few ticks at round numbers, not written as powers of ten."""
    low, high = sorted(axis.get_view_interval())
    narrow = high < _NARROW * low
    ticks = MaxNLocator(_MOST_TICKS - 1) if narrow else FixedLocator(_choose_ticks(low, high))
    axis.set_major_locator(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}" if value >= 1 else f"{value:.3g}")


def _letter_in(size_pt: float) -> float:
    return size_pt * _LETTER_EM / _PT_PER_IN


def _choose_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MOST_TICKS:
            return ticks
    return ticks
