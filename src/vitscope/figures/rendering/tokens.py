"""One model's special tokens: norms, cosines over images, strongest dimensions."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitscope.figures.anatomy import AFTER, BEFORE, COSINES, NORMS, STATES
from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.rendering.panels import (
    finish,
    make_panels,
    mark_empty,
    place_beside,
    plot_intervals,
    plot_line,
    use_plain_ticks,
    wrap_title,
)
from vitscope.figures.rendering.style import (
    FAINT,
    SMALL_PT,
    colour_term,
    literal,
    mark_term,
)
from vitscope.results.vocabulary import name_token

_WIDE = 15
"""Least ratio of the largest to the smallest norm for a logarithmic axis."""


def draw_tokens(data: FigureData) -> Figure:
    """Norms, cosines, and the strongest dimensions before and after the layer norm."""
    figure, panels = make_panels(4, columns=2, panel_height_in=2.1, share_y=False)
    norms, cosines, before, after = panels
    found = data.panels
    _plot_norms(norms, found[NORMS])
    _plot_cosines(cosines, found.get(COSINES, []), data.highlight)
    for panel, key in ((before, BEFORE), (after, AFTER)):
        _plot_dimensions(panel, found.get(key, []), data.highlight)
    for panel, key in zip(panels, (NORMS, COSINES, BEFORE, AFTER), strict=True):
        panel.set_title(wrap_title(figure, data.titles[key]))
    return finish(figure, data)


def _plot_norms(panel: Axes, points: Sequence[Point]) -> None:
    for place, point in enumerate(points):
        plot_intervals(
            panel,
            [place],
            [point],
            color=colour_term(point.term),
            marker=mark_term(point.term),
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label=point.term,
        )
    values = [point.number.value for point in points]
    panel.set_xticks(range(len(points)), [literal(_shorten(point.term)) for point in points])
    panel.set(xlim=(-0.6, len(points) - 0.4), ylabel="norm")
    if max(values) > _WIDE * min(values):
        panel.set_yscale("log")
        use_plain_ticks(panel.yaxis)
    else:
        panel.set_ylim(bottom=0)
    panel.grid(axis="y")


def _plot_cosines(panel: Axes, points: Sequence[Point], highlight: str | None) -> None:
    if not points:
        mark_empty(panel, "pairwise cosines need two images or more")
        return
    by_token = group_points(points, lambda point: point.term)
    for place, (token, own) in enumerate(by_token.items()):
        offset = place_beside(place, len(by_token))
        strong = highlight in {None, token} or not token.startswith("register_")
        plot_intervals(
            panel,
            [STATES.index(str(point.x)) + offset for point in own],
            own,
            color=colour_term(token),
            alpha=1.0 if strong else 0.4,
            marker=mark_term(token),
            markersize=3.5,
            elinewidth=0.8,
            linestyle="none",
            label=literal(name_token(token) + " (analysed)" * (token == highlight)),
        )
    names = [state.replace("normed", "layer-\nnormed") for state in STATES]
    panel.set_xticks(range(len(STATES)), names)
    panel.set(xlim=(-0.55, len(STATES) - 0.45), ylabel="mean pairwise cosine")
    panel.set_ylim(top=1.05)
    panel.grid(axis="y")
    panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=SMALL_PT)


def _plot_dimensions(panel: Axes, points: Sequence[Point], highlight: str | None) -> None:
    if not points:
        mark_empty(panel, "no activations of dimensions")
        return
    for token, own in group_points(points, lambda point: point.term).items():
        strong = highlight in {None, token}
        plot_line(
            panel,
            own,
            color=colour_term(token) if strong else FAINT,
            linewidth=1.3 if strong else 0.6,
            alpha=1.0 if strong else 0.6,
            zorder=3 if strong else 2,
            label=token,
        )
    panel.axhline(0, color=FAINT, linewidth=0.5, zorder=1)
    numbers = "mean activation (grey: other tokens)" if highlight else "mean activation"
    panel.set(xlabel="dimension, by mean activation before", ylabel=numbers)


def _shorten(token: str) -> str:
    if token.startswith("register_"):
        return f"reg.\n{token.removeprefix('register_')}"
    short = {"highest_patch": "highest\npatch", "patches": "all\npatches"}
    return short.get(token, name_token(token))
