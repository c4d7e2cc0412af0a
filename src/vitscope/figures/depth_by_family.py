"""A panel for each family, a line for each size, relative depth on the horizontal axis."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitscope.figures.drawing import Selection
from vitscope.figures.numbers import Interval
from vitscope.figures.panels import by_rows, count_legend_columns, finish, label_rows, make_panels
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import BASE_PT, Dashes, literal

Layers = Sequence[tuple[float, Interval]]
"""(relative depth, number): 0 is the embeddings, 1 the output of the last block."""

# Places on a scale from light (small) to dark (large), which keeps its order without colour.
_SIZES = {"Ti": 0.0, "S": 0.12, "B": 0.36, "L": 0.6, "H": 0.76, "g": 0.9, "G": 1.0, "bigG": 1.0}
_LIGHTEST = 0.88
_HEADING_IN = 2.6
_DASHES: tuple[Dashes, ...] = ((0, ()), (0, (4, 1.5)), (0, (1, 1.2)))


def plot_depth_by_family(
    selection: Selection[Layers], *, y_label: str, notes: Sequence[str]
) -> Figure:
    """Numbers over relative depth, family by family."""
    figure, panels = make_panels(len(selection.families), panel_height_in=2.1)
    colours = _colour_sizes(selection.results)
    for (family, members), panel in zip(selection.families.items(), panels, strict=True):
        drawn: list[str] = []
        handles = []
        for model, layers in members:
            base = _base_size(model)
            dashes = _DASHES[drawn.count(base) % len(_DASHES)]
            drawn.append(base)
            handles.append(_plot_layers(panel, model, layers, colours[base], dashes))
        panel.set_xlim(-0.02, 1.02)
        panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        panel.set_xlabel("relative depth (layer / last layer)")
        _add_heading(panel, family, handles)
    label_rows(panels, y_label)
    return finish(figure, [*notes, *selection.choices], omitted=selection.omitted)


def _plot_layers(
    panel: Axes, model: ModelResult, layers: Layers, colour: str, dashes: Dashes
) -> Line2D:
    depths = [depth for depth, _ in layers]
    spread = [(d, n.low, n.high) for d, n in layers if n.low is not None and n.high is not None]
    if spread:
        x, low, high = (np.array(column, dtype=float) for column in zip(*spread, strict=True))
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    (line,) = panel.plot(
        depths,
        [number.value for _, number in layers],
        color=colour,
        linestyle=dashes,
        marker="o",
        markersize=2,
        label=literal(model.short_label),
    )
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
    return model.short_label.split("/")[0] if model.size is not None else model.short_label


def _colour_sizes(results: Sequence[ModelResult]) -> Mapping[str, str]:
    by_params = sorted(results, key=lambda model: (model.params_m or 0.0, model.order))
    unknown = [base for base in dict.fromkeys(map(_base_size, by_params)) if base not in _SIZES]
    steps = {base: i / max(1, len(unknown) - 1) for i, base in enumerate(unknown)}
    scale = colormaps["viridis"]
    return {base: _hex(scale(_LIGHTEST * (1 - place))) for base, place in (_SIZES | steps).items()}


def _hex(rgba: tuple[float, float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgba[:3])
