"""Lines over depth, of all models or at each depth of one, and over the patches of a map."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vitscope.figures.depths import FRACTIONS, NORMS
from vitscope.figures.description import FigureData, Point, group_points
from vitscope.figures.judged import CURVES, Role, find_role, name_role
from vitscope.figures.layers import choose_ticks, split_panels
from vitscope.figures.rendering.panels import (
    by_rows,
    count_legend_columns,
    finish,
    make_handles,
    make_panels,
    mark_empty,
    plot_line,
    term_handles,
    use_plain_ticks,
    write_above,
)
from vitscope.figures.rendering.style import (
    BASE_PT,
    DASHES,
    FAINT,
    INK,
    SMALL_PT,
    TERM_COLOURS,
    Look,
    colour_term,
    literal,
    mark_term,
)
from vitscope.figures.saved import ModelResult
from vitscope.results.verdict import SYMBOLS
from vitscope.results.vocabulary import name_token

# Positions on a scale from light (small) to dark (large), readable without colour too.
_SIZES = {"Ti": 0.0, "S": 0.12, "B": 0.36, "L": 0.6, "H": 0.76, "g": 0.9, "G": 1.0, "bigG": 1.0}
_LIGHTEST = 0.88
_HEADING_IN = 2.6
_SYMBOLS_PT = 110
"""Width that all symbols above a panel share."""
_PATCHES, _REGISTERS = TERM_COLOURS["patches"], TERM_COLOURS["registers"]
_NUMBER_LOOKS: Mapping[str, dict[str, Any]] = {
    "max": {"color": _PATCHES, "linestyle": ":"},
    "p99": {"color": _PATCHES, "linestyle": "--"},
    "median": {"color": _PATCHES},
    "threshold": {"color": _REGISTERS, "linestyle": "none", "marker": "_", "ms": 7},
    "fraction": {"color": _PATCHES, "marker": "o", "markersize": 2.5},
    "images_fraction": {"color": FAINT, "marker": "s", "markersize": 2},
    "position_share": {"color": TERM_COLOURS["skip"], "marker": "^", "markersize": 2.5},
}
_MAP_LOOKS: Mapping[Role, dict[str, Any]] = {
    "other": {"color": "#d0d0d0", "linewidth": 0.7},
    "random": {"color": FAINT, "linewidth": 1.4, "linestyle": (0, (1, 1.2))},
    "oracle": {"color": INK, "linewidth": 1.2, "linestyle": (0, (4, 1.5))},
    "attention": {"color": TERM_COLOURS["through_routing"], "linewidth": 1.6},
    "best": {"color": TERM_COLOURS["through_values"], "linewidth": 1.8},
}
"""From back to front."""


def draw_by_depth(data: FigureData) -> Figure:
    """A panel for each family, a line for each size, over relative depth."""
    figure, panels = make_panels(len(data.panels), panel_height_in=2.1)
    colours = _colour_sizes(data.shown)
    for (family, points), panel in zip(data.panels.items(), panels, strict=True):
        drawn: list[str] = []
        handles = []
        for own in group_points(points, lambda point: point.model.folder).values():
            base = _base_size(own[0].model)
            dashes = DASHES[drawn.count(base) % len(DASHES)]
            drawn.append(base)
            label = literal(own[0].model.short_label)
            look: dict[str, Any] = {"color": colours[base], "linestyle": dashes, "label": label}
            depth = own[0].model.summary.model.depth
            handles.append(_plot_banded(panel, own, scale=1 / depth, **look))
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        panel.set(xlim=(-0.02, 1.02), xlabel="relative depth (0: embeddings)")
        _add_heading(panel, family, handles)
    return finish(figure, data, panels)


def draw_shares_by_depth(data: FigureData) -> Figure:
    """A panel for each model, a line over depth for each token group."""
    figure, panels = _draw_terms(data, "depth (0: embeddings)")
    for model, panel in zip(data.shown, panels, strict=True):
        trace = model.audit.trace
        if trace is not None and trace.half_depth is not None:
            panel.axvline(trace.half_depth, color=FAINT, linestyle=":", linewidth=0.8, zorder=1)
    return figure


def draw_routes_by_block(data: FigureData) -> Figure:
    """A panel for each model, a line over its blocks for each route."""
    return _draw_terms(data, "block")[0]


def _draw_terms(data: FigureData, along: str) -> tuple[Figure, list[Axes]]:
    by_model = group_points(data.points, lambda point: point.model.folder)
    figure, panels = make_panels(len(by_model), columns=4)
    for points, panel in zip(by_model.values(), panels, strict=True):
        for term, own in group_points(points, lambda point: point.term).items():
            _plot_banded(panel, own, color=colour_term(term))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.set(title=literal(points[0].model.label), xlabel=along)
    terms = dict.fromkeys(point.term for point in data.points)
    looks = {name_token(term): Look(colour_term(term), "o", "-") for term in terms}
    return finish(figure, data, panels, handles=make_handles(looks)), panels


def draw_sources_by_layer(data: FigureData) -> Figure:
    """A row of panels for each model, one for each number, a line over layers for each source."""
    parts = [(model, part.in_unit()) for model, part in split_panels(data)]
    figure, panels = make_panels(len(parts), columns=len(data.titles), share_y=False)
    for (model, part), panel in zip(parts, panels, strict=True):
        layers = model.audit.layers
        for term, own in group_points(part.points, lambda point: point.term).items():
            _plot_banded(panel, own, mark_term(term), color=colour_term(term))
        panel.set(xlabel="layer", ylabel=part.axis, xticks=choose_ticks(layers))
        panel.set(xlim=(layers[0].index - 0.5, layers[-1].index + 0.5), ylim=part.limits)
        size = min(SMALL_PT, _SYMBOLS_PT / len(layers))
        for layer in layers:
            write_above(panel, layer.index, SYMBOLS[layer.verdict.status], fontsize=size)
        if not part.points:
            mark_empty(panel, "undefined at every layer")
    for panel, model in zip(panels[:: len(data.titles)], data.shown, strict=True):
        panel.set_title(literal(model.label), pad=11)
    return finish(figure, data, handles=term_handles(data.terms))


def draw_by_layer(data: FigureData) -> Figure:
    """One model's norms of patch tokens, and its high-norm tokens."""
    figure, panels = make_panels(2, columns=2, panel_height_in=2.2, share_y=False)
    norms, fractions = panels
    last = data.limits or (0, 1)
    for panel, (key, names) in zip(panels, (("norm", NORMS), ("fraction", FRACTIONS)), strict=True):
        by_term = group_points(data.panels.get(key, []), lambda point: point.term)
        for term in (term for term in names if term in by_term):
            plot_line(panel, by_term[term], label=names[term], **_NUMBER_LOOKS[term])
        panel.set(title=data.titles[key], ylabel=key, xlabel="depth (0: embeddings)")
        panel.set_xlim(last[0] - 0.5, last[1] + 0.5)
    norms.set_yscale("log")
    use_plain_ticks(norms.yaxis)
    fractions.set_ylim(-0.03, 1.03)
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.lines:
            panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.6)
        else:
            mark_empty(panel, "no threshold at any depth")
    return finish(figure, data)


def draw_map_curves(data: FigureData) -> Figure:
    """A pair of panels for each removal: the best map and the references stand out."""
    figure, panels = make_panels(len(data.panels), columns=4, panel_height_in=2.0)
    roles = {find_role(point): name_role(point) for point in data.points}
    for (key, points), panel in zip(data.panels.items(), panels, strict=True):
        for name, own in group_points(points, lambda point: point.term).items():
            look = _MAP_LOOKS[role := find_role(own[0])]
            front = 2 + list(_MAP_LOOKS).index(role)
            plot_line(panel, own, 100, zorder=front, label=literal(name), **look)
        along = f"{CURVES[key.rsplit(' ', 1)[-1]]} (%)"
        panel.set(title=literal(data.titles[key]), xlabel=along, xlim=(0, 100))
    handles = [
        Line2D([], [], label=literal(roles[role]), **look)
        for role, look in reversed([*_MAP_LOOKS.items()])
        if role in roles
    ]
    return finish(figure, data, panels, handles=handles)


def _plot_banded(
    panel: Axes, points: Sequence[Point], marker: str = "o", *, scale: float = 1, **look: Any
) -> Line2D:
    line = plot_line(panel, points, scale, marker=marker, markersize=2, **look)
    known = np.array([point.number.low is not None for point in points])
    if known.any():
        band = np.column_stack([line.get_xdata(), [point.number.ends for point in points]])
        panel.fill_between(*band[known].T, color=look["color"], alpha=0.15, linewidth=0)
    return line


def _add_heading(panel: Axes, family: str, handles: Sequence[Line2D]) -> None:
    columns = count_legend_columns(handles, _HEADING_IN)
    panel.legend(
        handles=by_rows(handles, columns),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=0.3,
        ncols=columns,
        columnspacing=1.0,
        handlelength=1.6,
        title=literal(family),
        title_fontproperties={"weight": "bold", "size": BASE_PT},
        alignment="left",
    )


def _base_size(model: ModelResult) -> str:
    return model.short_label if model.size is None else model.size.split("/")[0]


def _colour_sizes(results: Sequence[ModelResult]) -> Mapping[str, str]:
    by_params = sorted(results, key=lambda model: (model.params_m or 0.0, model.order))
    unknown = [base for base in dict.fromkeys(map(_base_size, by_params)) if base not in _SIZES]
    steps = {base: i / max(1, len(unknown) - 1) for i, base in enumerate(unknown)}
    scale = colormaps["viridis"]
    places = (_SIZES | steps).items()
    return {base: to_hex(scale(_LIGHTEST * (1 - place))) for base, place in places}
