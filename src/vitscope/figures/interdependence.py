"""Do registers and the skip connection stand in for one another, image by image."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.numbers import find, read_estimate, write_number
from vitscope.figures.panels import finish, label_rows, make_panels
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import HAIRLINE, TERM_COLOURS, in_style, literal
from vitscope.results.choices import LAYER, count_cls

Pairs = tuple[Float64[np.ndarray, " image"], Float64[np.ndarray, " image"]]


@in_style
def plot_interdependence(results: Iterable[ModelResult]) -> Drawing:
    """Register share against skip share of each image's output, a panel per model."""
    selection = select(results, _read_pairs, choices=[count_cls("registers", "skip"), LAYER])
    figure, panels = make_panels(len(selection.found), panel_height_in=2.2, share_y=False)
    for (model, (registers, skip)), panel in zip(selection.found, panels, strict=True):
        size = float(np.clip(60 / np.sqrt(len(skip)), 1, 9))
        panel.scatter(
            skip,
            registers,
            s=size,
            color=TERM_COLOURS["registers"],
            alpha=0.5,
            linewidths=0,
            rasterized=len(skip) > 2000,
        )
        for line in (panel.axhline, panel.axvline):
            line(0, color=HAIRLINE, linewidth=0.6, zorder=0)
        panel.set_title(f"{literal(model.label)}\n{_describe_rho(model)}")
        panel.set_xlabel("share of skip connection")
    label_rows(panels, "share of registers")
    notes = [
        "Each dot an image: centred shares, of what differs from the mean image, where features "
        f"were kept, else raw ones; {describe_n(selection.results)}. ρ: Spearman's rank "
        "correlation; brackets: 95 % interval.",
        *selection.choices,
    ]
    finish(figure, notes, omitted=selection.omitted)
    return selection.draw(figure)


def _read_pairs(model: ModelResult) -> Pairs:
    if model.num_registers == 0:
        raise NothingToDrawError("no registers")
    kind = find(model.summary, "interdependence", "shares")
    columns = [model.read_column(f"{kind}_{source}") for source in ("registers", "skip")]
    if columns[0] is None or columns[1] is None:
        raise NothingToDrawError("no shares of registers and skip connection")
    defined = np.isfinite(columns[0]) & np.isfinite(columns[1])
    if not defined.any():
        raise NothingToDrawError("its shares of registers and skip connection are undefined")
    return columns[0][defined], columns[1][defined]


def _describe_rho(model: ModelResult) -> str:
    told = []
    for key, words in (("over_images", "ρ"), ("over_layers", "over layers ρ")):
        rho = read_estimate(find(model.summary, "interdependence", key), "rho")
        if rho is None:
            continue
        ends = [write_number(end) for end in (rho.low, rho.high) if end is not None]
        interval = f" [{', '.join(ends)}]" if ends else ""
        told.append(f"{words} = {write_number(rho.value)}{interval}")
    return "; ".join(told) if told else "ρ undefined"
