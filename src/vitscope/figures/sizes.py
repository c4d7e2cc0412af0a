"""Numbers over the size of a model: the axis, and the lines on it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes

from vitscope.figures.drawing import NothingToDrawError
from vitscope.figures.log_axis import use_plain_ticks
from vitscope.figures.numbers import CkaInterval, Interval
from vitscope.figures.panels import plot_intervals
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import FAINT, HAIRLINE, SMALL_PT, Dashes, literal

Point = tuple[float, Interval]
_SAME_SIZE = 0.06
"""Sizes whose parameters differ by less than 15 % (a power of ten of this) share a label."""
_FAR_APART = 1.8


def require_params(result: ModelResult) -> float:
    """Millions of parameters of a model that is to be put on the axis."""
    if result.params_m is None:
        raise NothingToDrawError("its number of parameters is not known")
    return result.params_m


def use_size_axis(panel: Axes, results: Iterable[ModelResult], span: Sequence[float]) -> None:
    """Make the horizontal axis the parameters in millions, with the labels of the sizes on top."""
    low, high = min(span), max(span)
    pad = 3.0 if high / low < _FAR_APART else 1.7
    low, high = low / pad, high * pad
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    use_plain_ticks(panel.xaxis)
    panel.set_xlabel("parameters (millions)")
    for place, label in _label_sizes(results):
        panel.axvline(place, color=HAIRLINE, linewidth=0.5, zorder=0)
        panel.text(
            place,
            1.015,
            literal(label),
            transform=panel.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=SMALL_PT,
            color="#555555",
        )


def title_above_sizes(panel: Axes, title: str) -> None:
    """A title that leaves room for the labels of the sizes."""
    panel.set_title(literal(title), pad=11)


def join_sizes(models: Iterable[ModelResult], dashes: Dashes | str = "-") -> Dashes | str:
    """The line between the points of a family; none where a model has no size to be joined by."""
    return dashes if all(model.size is not None for model in models) else "none"


def plot_line(
    panel: Axes,
    points: Sequence[Point],
    *,
    colour: str,
    marker: str,
    dashes: Dashes | str = "-",
    label: str = "",
) -> None:
    """One line over size, with bars."""
    if not points:
        return
    plot_intervals(
        panel,
        [place for place, _ in points],
        [value for _, value in points],
        color=colour,
        marker=marker,
        linestyle=dashes,
        elinewidth=0.8,
        markeredgecolor="white",
        markeredgewidth=0.3,
        label=literal(label) or None,
        zorder=3,
    )


def mark_biased(panel: Axes, points: Sequence[Point], colour: str) -> None:
    """The biased CKA of each point, hollow, and what it would be by chance, faint."""
    ckas = [(place, cka) for place, cka in points if isinstance(cka, CkaInterval)]
    _mark(panel, [(x, cka.biased) for x, cka in ckas], marker="o", color=colour, markersize=3)
    floors = [(x, cka.biased_if_unrelated) for x, cka in ckas]
    _mark(panel, floors, marker="_", color=FAINT, markersize=7)


def _mark(panel: Axes, places: Sequence[tuple[float, float | None]], **look: Any) -> None:
    known = [(x, y) for x, y in places if y is not None]
    if known:
        x, y = zip(*known, strict=True)
        panel.plot(x, y, linestyle="none", fillstyle="none", markeredgewidth=0.7, zorder=2, **look)


def _label_sizes(results: Iterable[ModelResult]) -> list[tuple[float, str]]:
    labelled = sorted(
        (result.params_m, result.size.split("/")[0])
        for result in results
        if result.size is not None and result.params_m is not None
    )
    groups: list[list[tuple[float, str]]] = []
    for params, label in labelled:
        if groups and math.log10(params / groups[-1][0][0]) < _SAME_SIZE:
            groups[-1].append((params, label))
        else:
            groups.append([(params, label)])
    return [
        (
            math.exp(sum(math.log(params) for params, _ in group) / len(group)),
            ", ".join(dict.fromkeys(label for _, label in group)),
        )
        for group in groups
    ]
