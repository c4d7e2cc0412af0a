"""A matrix over terms as a heat map with its numbers in the cells."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from vitscope.figures.style import SMALL_PT, name_term

Cells = Mapping[tuple[str, str], float]


def plot_matrix(
    panel: Axes,
    terms: Sequence[str],
    cells: Cells,
    texts: Mapping[tuple[str, str], str],
    *,
    colours: str,
    limits: tuple[float, float],
) -> AxesImage:
    """Numbers of pairs of terms, in colour and in digits; what is missing is hatched grey."""
    values: Float64[np.ndarray, "row column"] = np.zeros((len(terms), len(terms)))
    missing = np.ones_like(values, dtype=bool)
    for (a, b), value in cells.items():
        place = terms.index(a), terms.index(b)
        values[place], missing[place] = value, False
    image = panel.imshow(
        np.ma.masked_array(values, missing), cmap=colours, vmin=limits[0], vmax=limits[1]
    )
    panel.set_facecolor("#eeeeee")
    names = [name_term(term) for term in terms]
    panel.set_xticks(range(len(terms)), names, rotation=30, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(terms)), names)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    for i, row in enumerate(terms):
        for j, column in enumerate(terms):
            pair = (row, column)
            colour = image.cmap(image.norm(values[i, j]))
            # Perceived lightness decides whether white or black is read more easily.
            light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
            panel.text(
                j,
                i,
                texts.get(pair, "not\nknown"),
                ha="center",
                va="center",
                fontsize=SMALL_PT,
                color="black" if missing[i, j] or light > 0.5 else "white",
            )
    return image
