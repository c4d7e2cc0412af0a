"""Judged maps: the skill of each with its interval, and its curves."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitscope.figures.description import FigureData, group_points
from vitscope.figures.judged import CURVES, Role, find_role, name_role
from vitscope.figures.rendering.panels import (
    finish,
    label_rows,
    make_handles,
    make_panels,
    name_rows,
    place_beside,
    plot_across,
    write_above,
)
from vitscope.figures.rendering.style import (
    FAINT,
    INK,
    TERM_COLOURS,
    in_style,
    literal,
    look_of_families,
)
from vitscope.results.map_verdict import BASELINES

_ROW_IN, _MODEL_IN = 0.1, 0.07
_LOOKS: Mapping[Role, dict[str, Any]] = {
    "other": {"color": "#d0d0d0", "linewidth": 0.7},
    "random": {"color": FAINT, "linewidth": 1.4, "linestyle": (0, (1, 1.2))},
    "oracle": {"color": INK, "linewidth": 1.2, "linestyle": (0, (4, 1.5))},
    "attention": {"color": TERM_COLOURS["through_routing"], "linewidth": 1.6},
    "best": {"color": TERM_COLOURS["through_values"], "linewidth": 1.8},
}
"""From back to front."""


@in_style()
def draw_map_scores(data: FigureData) -> Figure:
    """A panel for each removal, a row for each map, a dot for each model."""
    names = {point.term: str(point.x) for point in data.points}
    rows = {name: row for row, name in enumerate(names)}
    models = [model.label for model in data.shown]
    looks = look_of_families(models)
    height = 0.5 + (_ROW_IN + _MODEL_IN * len(models)) * len(rows)
    figure, panels = make_panels(len(data.panels), panel_height_in=height)
    for (removal, points), panel in zip(data.panels.items(), panels, strict=True):
        for (name, model), own in group_points(points, lambda p: (p.term, p.model.label)).items():
            look, offset = looks[model], place_beside(models.index(model), len(models))
            plot_across(
                panel,
                own[:1],
                [rows[name] + offset],
                color=FAINT if name in BASELINES else look.colour,
                marker=look.marker,
                label=model,
            )
        for skill, end in ((0, "random"), (1, "oracle")):
            panel.axvline(skill, color=FAINT, linewidth=0.8, linestyle="--", zorder=1)
            write_above(panel, skill, end, color=FAINT)
        name_rows(panel, names.values())
        panel.set_title(literal(data.titles[removal]), pad=12)
        panel.set_xlabel(data.axis)
        panel.set_xlim(data.limits)
        panel.grid(axis="x")
    for panel in panels:
        # Empty beside another panel.
        for label, name in zip(panel.get_yticklabels(), names, strict=False):
            label.set_color(FAINT if name in BASELINES else INK)
    return finish(figure, data, handles=make_handles(looks) if len(models) > 1 else ())


@in_style()
def draw_map_curves(data: FigureData) -> Figure:
    """A pair of panels for each removal: the best map and the references stand out."""
    figure, panels = make_panels(len(data.panels), columns=4, panel_height_in=2.0)
    roles = {find_role(point): name_role(point) for point in data.points}
    for (key, points), panel in zip(data.panels.items(), panels, strict=True):
        for name, own in group_points(points, lambda point: point.term).items():
            look = _LOOKS[role := find_role(own[0])]
            panel.plot(
                [100 * float(point.x) for point in own],
                [point.number.value for point in own],
                zorder=2 + list(_LOOKS).index(role),
                label=literal(name),
                **look,
            )
        panel.set_title(literal(data.titles[key]))
        panel.set_xlabel(f"{CURVES[key.rsplit(' ', 1)[-1]]} (%)")
        panel.set_xlim(0, 100)
    panels[0].set_ylim(data.limits)
    label_rows(panels, data.axis)
    handles = [
        Line2D([], [], label=literal(roles[role]), **look)
        for role, look in reversed([*_LOOKS.items()])
        if role in roles
    ]
    return finish(figure, data, handles=handles)
