"""One image explained by one or several models: its maps, each with what it leaves out.

Positions are in inches from the upper left corner, so a figure is as high as its images and text.

Source: Lappe & Giese (NeurIPS 2025), Fig. 4.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from vitscope.figures.rendering.style import (
    BASE_PT,
    FAINT,
    INK,
    PAGE_IN,
    SMALL_PT,
    ShownFigure,
    in_style,
    literal,
)
from vitscope.figures.saved import as_sentence, printable
from vitscope.results.choices import list_inputs
from vitscope.results.explanation import Explanation, ImageExplanation
from vitscope.results.number_text import write_number, write_percent
from vitscope.results.vocabulary import name_term, order_terms

_SEQUENTIAL, _DIVERGING = "cividis", "PuOr"
_LEFT_IN, _COLUMNS_IN = 0.08, (0.08, 1.6, 3.48, 5.36)
_MAP_IN, _TALLEST_IN = 1.32, 2.4
_HEADS_ACROSS, _HEAD_IN, _TALLEST_HEAD_IN, _HEAD_GAP_IN = 8, 0.72, 1.3, 0.1
_LABEL_IN, _TITLE_IN, _UNIT_IN, _SMALL_LINE_IN, _LINE_IN = 0.2, 0.13, 0.13, 0.107, 0.13
_GAP_IN = 0.16
_LOW_BAR_IN, _LOWEST_BAR_IN = 0.45, 0.16
_NO_BREAK = "\u00a0"
_IMAGE_LETTERS, _CAPTION_LETTERS, _VERDICT_LETTERS, _BASIS_LETTERS = 27, 36, 115, 135
"""Letters per line, for wide letters."""


@in_style
def plot_explanations(
    explanations: Sequence[Explanation], image_id: str, *, heads: bool = False
) -> Figure:
    """The image with its raw attention, value-weighted and signed-share maps; one row per model."""
    rows = [_make_row(one, image_id, heads=heads) for one in explanations]
    sheet = _Sheet(PAGE_IN, sum(row.height for row in rows))
    top = 0.0
    for row in rows:
        _draw_row(sheet, top, row)
        top += row.height
    return sheet.figure


def _label(explanation: Explanation) -> str:
    summary = explanation.summary
    layer, depth = summary.layer, summary.model.depth
    where = "attention pooling" if layer == depth else f"layer {layer} (of 0 to {depth - 1})"
    inputs = "".join(f", {told}" for told in list_inputs(summary))
    return f"{printable(summary.model.id)}, {where}{inputs}"


# --- content -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    title: str
    unit: str
    values: Float[np.ndarray, "*head row column"]
    signed: bool = False
    caption: tuple[str, ...] = ()

    @property
    def limits(self) -> tuple[float, float]:
        largest = float(np.abs(self.values).max()) or 1.0
        return (-largest if self.signed else 0.0), largest


@dataclass(frozen=True)
class _Row:
    label: str
    image: ImageExplanation
    image_caption: tuple[str, ...]
    maps: tuple[_Map, ...]
    head_maps: tuple[_Map, ...]
    verdict: tuple[str, ...]
    basis: tuple[str, ...]

    def fit(self, width: float, tallest: float) -> tuple[float, float]:
        """Size of a map with the image's aspect ratio."""
        rows, columns = self.image.image.shape[:2]
        height = min(tallest, width * rows / columns)
        return height * columns / rows, height

    @property
    def captions_height(self) -> float:
        lines = [len(self.image_caption), *(len(one.caption) for one in self.maps)]
        return max(lines) * _SMALL_LINE_IN + 0.12

    @property
    def heads_height(self) -> float:
        height = self.fit(_HEAD_IN, _TALLEST_HEAD_IN)[1] + _UNIT_IN + _HEAD_GAP_IN
        down = [math.ceil(len(one.values) / _HEADS_ACROSS) for one in self.head_maps]
        return math.fsum(_TITLE_IN + 0.04 + n * height for n in down)

    @property
    def height(self) -> float:
        maps = _TITLE_IN + _UNIT_IN + self.fit(_MAP_IN, _TALLEST_IN)[1] + self.captions_height
        words = len(self.verdict) * _LINE_IN + len(self.basis) * _SMALL_LINE_IN
        return 0.06 + _LABEL_IN + maps + words + 0.06 + self.heads_height + _GAP_IN


def _make_row(explanation: Explanation, image_id: str, *, heads: bool) -> _Row:
    one = explanation.read_image(explanation.image_ids.index(image_id))
    name = _shorten(printable(one.path.rsplit("/", 1)[-1]), _IMAGE_LETTERS)
    shown = "shown whole" if one.framing == "whole" else "cropped to the input size"
    return _Row(
        label=_label(explanation),
        image=one,
        image_caption=_wrap([name, shown], _IMAGE_LETTERS),
        maps=_make_maps(one),
        head_maps=_make_head_maps(one) if heads else (),
        verdict=_wrap([as_sentence(one.verdict.text)], _VERDICT_LETTERS),
        basis=_wrap([f"This rests on {one.verdict.basis}."], _BASIS_LETTERS),
    )


def _make_maps(one: ImageExplanation) -> tuple[_Map, ...]:
    numbers = one.numbers
    mass = numbers.attention_mass
    patch_share = write_number(numbers.patch_share)
    attention = [
        f"attention on patches {write_percent(mass['patches'])}",
        f"elsewhere: {_list_others(mass)}",
        f"patch share {patch_share}" + ("" if "registers" in mass else " (no registers)"),
    ]
    values, share, unit = _choose_shares(one)
    return (
        _Map(
            # A pooling query has no skip connection.
            "attention of [CLS]" if "skip" in share else "attention of pooling query",
            "mean over heads, % of the row",
            100 * one.attention,
            caption=_wrap(attention, _CAPTION_LETTERS),
        ),
        _Map(
            "value-weighted map",
            "‖c_i‖, length of patch i's contribution",
            one.contribution_norm,
            caption=_wrap(_tell_cosines(one), _CAPTION_LETTERS),
        ),
        _Map(
            "signed-share map",
            unit,
            100 * values,
            signed=True,
            caption=_wrap(
                [f"patches {write_percent(share['patches'])}", f"elsewhere: {_list_others(share)}"],
                _CAPTION_LETTERS,
            ),
        ),
    )


def _make_head_maps(one: ImageExplanation) -> tuple[_Map, ...]:
    values = one.head_share if one.head_centred_share is None else one.head_centred_share
    unit = _choose_shares(one)[-1]
    return (
        _Map("attention of each head", "% of its row", 100 * one.head_attention),
        _Map("signed share of each head", unit, 100 * values, signed=True),
    )


def _choose_shares(
    one: ImageExplanation,
) -> tuple[Float[np.ndarray, "row column"], Mapping[str, float], str]:
    # A figure shows either centred or raw shares.
    if one.centred_share is None:
        return one.share, one.numbers.share, "raw: % of the whole output r"
    return one.centred_share, one.numbers.centred_share, "% of r − mean r"


def _tell_cosines(one: ImageExplanation) -> list[str]:
    numbers = one.numbers
    if one.centred_share is not None:
        found = numbers.centred_cosine["attention"]["patches"]
        return [f"cos(c_patches, t) = {write_number(found)},", "both less the reference's means"]
    raw, with_bias = numbers.cosine, numbers.restricted_cosine
    return [
        f"raw: cos(c_patches, t) = {write_number(raw['attention']['patches'])}",
        f"cos(c_patches + bias, t) = {write_number(with_bias['attention']['patches'])}",
    ]


def _list_others(values: Mapping[str, float]) -> str:
    others = [name for name in order_terms(values) if name != "patches"]
    named = [f"{name_term(n)} {write_percent(values[n])}".replace(" ", _NO_BREAK) for n in others]
    return ", ".join(named) or "nothing"


def _shorten(name: str, letters: int) -> str:
    # Not wrapped: a name has no place for a break.
    kept = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[:kept]}…{name[-kept:]}"


def _wrap(lines: Sequence[str], letters: int) -> tuple[str, ...]:
    # No line break between a number and its unit.
    whole = [line.replace(" %", f"{_NO_BREAK}%") for line in lines]
    return tuple(part for line in whole for part in textwrap.wrap(line, letters))


# --- layout --------------------------------------------------------------------------------------


class _Sheet:
    """A figure with positions in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = ShownFigure(figsize=(width, height))
        self._size = (width, height)

    def place(self, left: float, top: float, width: float, height: float) -> Axes:
        across, down = self._size
        return self.figure.add_axes(
            (left / across, 1 - (top + height) / down, width / across, height / down)
        )

    def write(
        self, left: float, top: float, lines: Sequence[str], *, size: float = SMALL_PT, **look: Any
    ) -> None:
        line = _SMALL_LINE_IN if size < BASE_PT else _LINE_IN
        for number, text in enumerate(lines):
            across, down = left / self._size[0], 1 - (top + number * line) / self._size[1]
            self.figure.text(across, down, literal(text), fontsize=size, va="top", **look)


def _draw_row(sheet: _Sheet, top: float, row: _Row) -> None:
    one, (width, height) = row.image, row.fit(_MAP_IN, _TALLEST_IN)
    top += 0.06
    sheet.write(_LEFT_IN, top, [row.label], size=BASE_PT + 1, weight="bold")
    title, unit = top + _LABEL_IN, top + _LABEL_IN + _TITLE_IN
    maps = unit + _UNIT_IN
    captions = maps + height + 0.06
    size = "{} × {} px, {} × {} patches".format(*one.image.shape[:2], *one.grid)
    heads = [("image", size, row.image_caption)]
    heads += [(each.title, each.unit, each.caption) for each in row.maps]
    for left, (name, measure, caption) in zip(_COLUMNS_IN, heads, strict=True):
        sheet.write(left, title, [name], size=BASE_PT, weight="bold")
        sheet.write(left, unit, [measure], color=FAINT)
        sheet.write(left, captions, caption)
    panel = sheet.place(_COLUMNS_IN[0], maps, width, height)
    _show(panel, one).set_interpolation("lanczos")
    for left, each in zip(_COLUMNS_IN[1:], row.maps, strict=True):
        image = _show(sheet.place(left, maps, width, height), one, each, each.values)
        _draw_bar(sheet, image, left + width + 0.05, maps, height)
    words = maps + height + row.captions_height
    sheet.write(_LEFT_IN, words, row.verdict, size=BASE_PT, weight="bold")
    below = words + len(row.verdict) * _LINE_IN
    sheet.write(_LEFT_IN, below, row.basis, color=FAINT)
    below += len(row.basis) * _SMALL_LINE_IN + 0.06
    for each in row.head_maps:
        below = _draw_heads(sheet, below, row, each)


def _draw_heads(sheet: _Sheet, top: float, row: _Row, each: _Map) -> float:
    width, height = row.fit(_HEAD_IN, _TALLEST_HEAD_IN)
    sheet.write(_LEFT_IN, top, [f"{each.title}, {each.unit}"], weight="bold")
    top += _TITLE_IN + 0.04
    step = (width + _HEAD_GAP_IN, height + _UNIT_IN + _HEAD_GAP_IN)
    last = min(len(each.values), _HEADS_ACROSS)
    for head, values in enumerate(each.values):
        down, across = divmod(head, _HEADS_ACROSS)
        left, above = _LEFT_IN + across * step[0], top + down * step[1]
        sheet.write(left, above, [str(head)], color=FAINT)
        image = _show(sheet.place(left, above + _UNIT_IN, width, height), row.image, each, values)
        if head == 0:
            beside = _LEFT_IN + last * step[0]
            _draw_bar(sheet, image, beside, above + _UNIT_IN, max(height, _LOWEST_BAR_IN))
    return top + math.ceil(len(each.values) / _HEADS_ACROSS) * step[1]


def _show(
    panel: Axes,
    one: ImageExplanation,
    each: _Map | None = None,
    values: Float[np.ndarray, "row column"] | None = None,
) -> AxesImage:
    height, width = one.image.shape[:2]
    image = panel.imshow(
        one.image if values is None else values,
        extent=(0, width, height, 0),
        interpolation="nearest",
        aspect="auto",
    )
    if each is not None:
        image.set(cmap=_DIVERGING if each.signed else _SEQUENTIAL, norm=Normalize(*each.limits))
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(visible=True, linewidth=0.4, color=INK)
    return image


def _draw_bar(sheet: _Sheet, image: AxesImage, left: float, top: float, height: float) -> None:
    bar = sheet.figure.colorbar(image, cax=sheet.place(left, top, 0.07, height))
    low = height < _LOW_BAR_IN
    # A low map has room for only the two ends of the scale.
    bar.locator = FixedLocator(image.get_clim()) if low else MaxNLocator(min(4, int(height / 0.2)))
    bar.formatter = FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−"))
    bar.update_ticks()
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=SMALL_PT, pad=1)
