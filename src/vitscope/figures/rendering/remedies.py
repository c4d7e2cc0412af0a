"""Compared remedies: a row for each edit, with what it changed."""

import textwrap

from matplotlib.figure import Figure

from vitscope.figures.description import FigureData, group_points
from vitscope.figures.remedies import CHANGES
from vitscope.figures.rendering.panels import finish, make_handles, make_panels, plot_across
from vitscope.figures.rendering.style import (
    HAIRLINE,
    INK,
    in_style,
    literal,
    look_of_families,
)

_ROW_IN = 0.32
_SPREAD = 0.7
"""Part of a row that its numbers take."""
_LETTERS = 24
"""Most letters on a line of a row's name."""


@in_style
def draw_remedies(data: FigureData) -> Figure:
    """A panel for each model, a row for each edit, a dot for each number."""
    by_model = group_points(data.points, lambda point: point.model.folder)
    edits = {folder: list({str(p.x): None for p in own}) for folder, own in by_model.items()}
    height = 0.5 + _ROW_IN * max(map(len, edits.values()))
    figure, panels = make_panels(len(by_model), columns=1, panel_height_in=height, share_y=False)
    looks = look_of_families([*CHANGES])
    shown = [name for name in CHANGES if name in data.terms]
    for (folder, points), panel in zip(by_model.items(), panels, strict=True):
        rows = edits[folder]
        for name, own in group_points(points, lambda point: point.term).items():
            place = (shown.index(name) - (len(shown) - 1) / 2) * _SPREAD / len(shown)
            plot_across(
                panel,
                [point.number for point in own],
                [rows.index(str(point.x)) + place for point in own],
                color=looks[name].colour,
                marker=looks[name].marker,
                label=name,
            )
        panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
        for row in range(1, len(rows)):
            panel.axhline(row - 0.5, color=HAIRLINE, linewidth=0.5, zorder=0)
        panel.set_yticks(range(len(rows)), [literal(_wrap(edit)) for edit in rows])
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_xlim(data.limits)
        panel.set_xlabel(data.axis)
        panel.set_title(literal(points[0].model.label))
        panel.grid(axis="x")
        panel.tick_params(axis="y", length=0)
    handles = make_handles({CHANGES[name]: looks[name]._replace(dashes="none") for name in shown})
    return finish(figure, data, handles=handles)


def _wrap(edit: str) -> str:
    # A name and its settings have no spaces.
    spaced = edit.replace(":", ": ").replace(",", ", ")
    return "\n".join(textwrap.wrap(spaced, _LETTERS))
