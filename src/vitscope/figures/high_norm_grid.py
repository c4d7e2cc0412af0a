"""Where on the image the high-norm patch tokens sit."""

from typing import Any

import numpy as np
from jaxtyping import Float64

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.numbers import find, number
from vitscope.figures.panels import finish, make_panels
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import in_style

Grid = Float64[np.ndarray, "row column"]


@in_style
def plot_high_norm_grid(result: ModelResult) -> Drawing:
    """How often each place on the patch grid holds a high-norm token, at the layer with most."""
    selection = select([result], _find_layer)
    layer, fraction = selection.found[0][1]
    grid = _read_grid(result, layer)
    figure, (panel,) = make_panels(1, panel_height_in=2.7)
    image = panel.imshow(100 * grid, cmap="cividis", vmin=0)
    panel.set_title(f"layer {layer} (0: embeddings)")
    panel.set(xlabel="column", ylabel="row")
    bar = figure.colorbar(image, cax=panel.inset_axes((1.04, 0, 0.05, 1)))
    bar.set_label("images with one here (%)")
    row = _row_of(result, layer)
    place, known = number(find(row, "position_share")), number(find(row, "num_images"))
    count = describe_n([result]) if known is None else f"n = {known:,.0f} images"
    notes = [
        f"{count}. {fraction:.2%} of the layer's patch tokens are above its "
        "threshold; drawn is the layer with the most of them.",
        *selection.choices,
    ]
    if place is not None:
        notes.append(f"Place alone tells {place:.0%} of the variance of being one.")
    finish(figure, notes, heading=f"High-norm tokens: {result.label}")
    return selection.draw(figure)


def _find_layer(result: ModelResult) -> tuple[int, float]:
    rows = find(result.summary, "high_norm_tokens")
    fractions = {
        int(layer): fraction
        for row in (rows if isinstance(rows, list) else [])
        if (layer := number(find(row, "layer"))) is not None
        and (fraction := number(find(row, "fraction"))) is not None
    }
    if not fractions:
        bounds = [number(find(row, "fraction_at_most")) for row in rows or ()]
        known = [bound for bound in bounds if bound is not None]
        if not known:
            raise NothingToDrawError("it has no norms of patch tokens by layer")
        raise NothingToDrawError(
            "no high-norm patch tokens are found in any layer (they are at most "
            f"{100 * max(known):.3g} % of all)"
        )
    layer = max(fractions, key=lambda one: (fractions[one], one))
    return layer, fractions[layer]


def _row_of(result: ModelResult, layer: int) -> Any:
    return next(row for row in result.summary["high_norm_tokens"] if find(row, "layer") == layer)


def _read_grid(result: ModelResult, layer: int) -> Grid:
    # Here, for reading sums needs torch, and no other figure does.
    from vitscope.results.audit_result import AuditResult

    return np.asarray(AuditResult.load(result.folder).high_norm_grid(layer), dtype=np.float64)
