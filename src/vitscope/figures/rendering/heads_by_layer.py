"""Attention of every head in every layer of an image, each map on a scale of its own.

Positions are in inches from the upper left corner, as on the sheets of `rendering.maps`.
"""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitscope.figures.rendering.overlays import paint
from vitscope.figures.rendering.style import (
    FAINT,
    INK,
    PAGE_IN,
    SMALL_PT,
    ShownFigure,
    in_style,
    literal,
)
from vitscope.figures.saved import ModelResult, printable, shorten
from vitscope.results.image_maps import ImageMaps

_MARGIN_IN, _LEFT_IN, _TOP_IN = 0.08, 0.36, 1.36
_IMAGE_IN, _LINE_IN = 0.95, 0.13
_WIDEST_IN, _TALLEST_IN, _GAP_IN, _NUMBER_IN = 0.62, 1.2, 0.04, 0.12
_NARROWEST_IN = 4.2
_DIGITS = 5 * 0.65
"""Width of five digits, in parts of the size of their font."""
_LETTER_IN = 0.063
"""Width of a letter of the text, on average."""
_MEANING = (
    "Attention of each head (across) in each layer (down) on the patches. Every map has a scale of "
    "its own, from zero (blue) to its largest patch (yellow). That is the number below it, in "
    "percent of what the head gives to all tokens."
)


@in_style()
def plot_heads_by_layer(result: ModelResult, path: str, one: ImageMaps) -> Figure:
    """A row of maps for each layer, one for each head; above them the image."""
    layers = one.heads_by_layer
    assert layers is not None
    num_layers, num_heads, rows, columns = layers.shape
    step = min(_WIDEST_IN, (PAGE_IN - _LEFT_IN - _MARGIN_IN) / num_heads)
    height = min(_TALLEST_IN, (step - _GAP_IN) * rows / columns)
    width = height * columns / rows
    down = height + _NUMBER_IN + _GAP_IN
    across = max(_NARROWEST_IN, _LEFT_IN + num_heads * step + _MARGIN_IN)
    page = _TOP_IN + num_layers * down + _MARGIN_IN
    figure = ShownFigure(figsize=(across, page))
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set_axis_off()
    _describe(sheet, across, result, path, one)
    of_numbers = min(SMALL_PT, 72 * step / _DIGITS)
    pools = result.summary.model.global_feature == "attention pooling"
    for layer, heads in enumerate(layers):
        top = _TOP_IN + layer * down
        name = "pool" if pools else str(layer)
        sheet.text(_LEFT_IN - 0.06, top + height / 2, name, size=SMALL_PT, ha="right", va="center")
        for head, values in enumerate(heads):
            left = _LEFT_IN + head * step
            extent = (left, left + width, top + height, top)
            sheet.imshow(paint(values, signed=False), extent=extent, interpolation="nearest")
            middle, below, told = left + width / 2, top + height + 0.015, _tell(values.max())
            sheet.text(middle, below, told, size=of_numbers, color=FAINT, ha="center", va="top")
            if layer == 0:
                sheet.text(middle, top - 0.03, str(head), size=SMALL_PT, ha="center", va="bottom")
    # Last, since each image moves the limits.
    sheet.set(xlim=(0, across), ylim=(page, 0), aspect="auto")
    return figure


def _tell(largest: float) -> str:
    percent = 100 * float(largest)
    return f"{percent:.2g}" if percent < 9.5 else f"{percent:.0f}"


def _describe(sheet: Axes, across: float, result: ModelResult, path: str, one: ImageMaps) -> None:
    high, wide = one.image.shape[:2]
    width, height = _IMAGE_IN * min(1, wide / high), _IMAGE_IN * min(1, high / wide)
    extent = (_MARGIN_IN, _MARGIN_IN + width, _MARGIN_IN + height, _MARGIN_IN)
    sheet.imshow(one.image, extent=extent, interpolation="lanczos")
    left = 2 * _MARGIN_IN + _IMAGE_IN
    letters = int((across - left) / _LETTER_IN)
    names = [result.model_id, printable(path.rsplit("/", 1)[-1])]
    lines = [*(shorten(name, letters) for name in names), *textwrap.wrap(_MEANING, letters)]
    for number, line in enumerate(lines):
        weight, colour = "bold" if number == 0 else "normal", INK if number < 2 else FAINT
        top = _MARGIN_IN + number * _LINE_IN
        sheet.text(left, top, literal(line), weight=weight, color=colour, va="top")
