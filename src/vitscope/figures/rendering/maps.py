"""One image with its maps: explained by models, each with what it leaves out; or judged.

Positions are in inches from the upper left corner, so a figure is as high as its images and text.

Source: Lappe & Giese (NeurIPS 2025), Fig. 4.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from vitscope.figures.explained import tell_explained, tell_judged
from vitscope.figures.judged import order_kept
from vitscope.figures.rendering.overlays import DIVERGING, SEQUENTIAL, choose_limits, paint
from vitscope.figures.rendering.style import (
    BASE_PT,
    FAINT,
    INK,
    PAGE_IN,
    SMALL_PT,
    ShownFigure,
    chosen_style,
    in_style,
    literal,
)
from vitscope.figures.saved import ModelResult, printable, shorten
from vitscope.results.choices import list_inputs
from vitscope.results.explanation import Explanation, ImageExplanation
from vitscope.results.image_maps import ImageMap, ImageMaps
from vitscope.results.judge_result import JudgeResult
from vitscope.results.judgement_text import tell_score
from vitscope.results.number_text import write_number
from vitscope.results.result_text import tell_map
from vitscope.results.schema import Summary
from vitscope.results.schema_maps import MapSummary

_LEFT_IN, _COLUMN_IN, _STEP_IN, _BAR_IN = 0.08, 1.6, 1.88, 1.74
_MAP_IN, _TALLEST_IN = 1.32, 2.4
_MOST_HEADS, _HEAD_IN, _TALLEST_HEAD_IN, _HEAD_GAP_IN = 8, 0.72, 1.3, 0.1
_SMALL_LINE_IN, _LINE_IN, _GAP_IN = 0.107, 0.13, 0.16
_NO_BREAK = "\u00a0"
_NAMES_IN, _LAYERS_TOP_IN, _IMAGE_IN, _NARROWEST_IN = 0.36, 1.36, 0.95, 4.2
_CELL_IN, _TALLEST_CELL_IN, _CELL_GAP_IN, _NUMBER_IN = 0.62, 1.2, 0.04, 0.12
"""For a grid of the heads of all layers."""
_DIGITS = 5 * 0.65
"""Width of five digits, in parts of the size of their font."""
_LETTER_IN = 0.063
"""Width of a letter of the text above them, on average."""
_LOW_BAR_IN, _LOWEST_BAR_IN = 0.45, 0.16
_IMAGE_LETTERS, _CAPTION_LETTERS, _VERDICT_LETTERS, _BASIS_LETTERS = 27, 36, 115, 135
_TITLE_LETTERS, _UNIT_LETTERS = 30, 40
"""Letters per line, for wide letters; those of label, verdict and basis on a page."""
_PHOTO: Mapping[str, Any] = {"interpolation": "lanczos"}
_MEANING = (
    "Attention of each head (across) in each layer (down) on the patches. Every map has a scale of "
    "its own, from zero (blue) to its largest patch (yellow). That is the number below it, in "
    "percent of what the head gives to all tokens."
)


@in_style()
def plot_explanations(
    explanations: Sequence[Explanation], image_id: str, *, heads: bool = False
) -> Figure:
    """The image with its maps, each on a scale of its own; one row per model."""
    sheet = _Sheet(_page_width())
    for explanation in explanations:
        summary, index = explanation.summary, explanation.image_ids.index(image_id)
        one = explanation.read_image(index)
        name = shorten(printable(one.path.rsplit("/", 1)[-1]), _IMAGE_LETTERS)
        shown = "shown whole" if one.framing == "whole" else "cropped to the input size"
        maps = [_make_map(name, each, one) for name, each in one.shown.items()]
        sheet.add_maps(summary, one, [name, shown], maps)
        sheet.add_words(*tell_explained(summary, index, one))
        for each in one.shown.values() if heads else ():
            sheet.add_heads(one, each)
    return sheet.finish(sheet.top + _GAP_IN)


@in_style()
def plot_judged(result: ModelResult, index: int) -> Figure:
    """A kept image with its maps and the skill of each, the best-judged map first."""
    summary, found = result.judgement, JudgeResult(result.folder).read_maps(index)
    image = summary.images[index]
    maps = [
        _place_values(found.maps[name], [f"skill {write_number(image.skill[name], 2)}"])
        for name in order_kept(summary, image)
    ]
    sheet = _Sheet(_page_width())
    sheet.add_maps(summary, found, [printable(image.path.rsplit("/", 1)[-1])], maps)
    sheet.add_words(*tell_judged(summary))
    return sheet.finish(sheet.top + _GAP_IN)


@in_style()
def plot_heads_by_layer(result: ModelResult, path: str, one: ImageMaps) -> Figure:
    """Attention: a row for each layer, a map for each head; above them the image."""
    layers = one.heads_by_layer
    assert layers is not None
    num_layers, num_heads, rows, columns = layers.shape
    step = min(_CELL_IN, (PAGE_IN - _NAMES_IN - _LEFT_IN) / num_heads)
    width, height = _fit((rows, columns), step - _CELL_GAP_IN, _TALLEST_CELL_IN)
    down = height + _NUMBER_IN + _CELL_GAP_IN
    across = max(_NARROWEST_IN, _NAMES_IN + num_heads * step + _LEFT_IN)
    page = _LAYERS_TOP_IN + num_layers * down + _LEFT_IN
    sheet = _Sheet(across)
    sheet.describe_heads(result.model_id, printable(path.rsplit("/", 1)[-1]))
    grid = sheet.figure.add_axes((0, 0, across, page))
    grid.set_axis_off()
    wide, high = _fit(one.image.shape, _IMAGE_IN, _IMAGE_IN)
    place = (_LEFT_IN, _LEFT_IN + wide, _LEFT_IN + high, _LEFT_IN)
    grid.imshow(one.image, extent=place, interpolation="lanczos")
    of_numbers = min(SMALL_PT, 72 * step / _DIGITS)
    pools = result.summary.model.global_feature == "attention pooling"
    for layer, heads in enumerate(layers):
        top = _LAYERS_TOP_IN + layer * down
        name = "pool" if pools else str(layer)
        grid.text(_NAMES_IN - 0.06, top + height / 2, name, size=SMALL_PT, ha="right", va="center")
        for head, values in enumerate(heads):
            left = _NAMES_IN + head * step
            extent = (left, left + width, top + height, top)
            grid.imshow(paint(values, signed=False), extent=extent, interpolation="nearest")
            middle, below, told = left + width / 2, top + height + 0.015, _percent(values.max())
            grid.text(middle, below, told, size=of_numbers, color=FAINT, ha="center", va="top")
            if layer == 0:
                grid.text(middle, top - 0.03, str(head), size=SMALL_PT, ha="center", va="bottom")
    # Last, since each image moves the limits.
    grid.set(xlim=(0, across), ylim=(page, 0), aspect="auto")
    return sheet.finish(page)


def _percent(largest: float) -> str:
    percent = 100 * float(largest)
    return f"{percent:.2g}" if percent < 9.5 else f"{percent:.0f}"


# --- content -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    title: tuple[str, ...]
    unit: tuple[str, ...]
    caption: tuple[str, ...]
    values: np.ndarray  # of patches, of each head, or the pixels of the image
    look: Mapping[str, Any]  # how `imshow` shows them


def _label(summary: Summary) -> str:
    layer, depth = summary.layer, summary.model.depth
    where = "attention pooling" if layer == depth else f"layer {layer} (of 0 to {depth - 1})"
    inputs = "".join(f", {told}" for told in list_inputs(summary))
    return f"{printable(summary.model.id)}, {where}{inputs}"


def _make_map(name: str, each: ImageMap, one: ImageExplanation) -> _Map:
    score = [tell_score(one.skill[name], one.gap[name])] if name in one.skill else []
    told = [_keep_together(line) for line in tell_map(each.about, float(each.values.sum()))]
    return _place_values(each, [*score, *told, *_tell_more(name, each, one)])


def _place_values(each: ImageMap, told: Sequence[str]) -> _Map:
    about = each.about
    return _Map(
        _wrap([about.title], _TITLE_LETTERS),
        _wrap([_name_unit(about)], _UNIT_LETTERS),
        _wrap(told, _CAPTION_LETTERS),
        *_scale(each.values, about),
    )


def _name_unit(about: MapSummary) -> str:
    target = "" if about.target is None else f"target {about.target}"
    return ", ".join(filter(None, (about.unit, target)))


def _scale(values: np.ndarray, about: MapSummary) -> tuple[np.ndarray, dict[str, Any]]:
    scaled = 100 * values if about.is_part else values
    low, high = choose_limits(scaled, signed=about.signed)
    colours = DIVERGING if about.signed else SEQUENTIAL
    return scaled, {"cmap": colours, "vmin": low, "vmax": high, "interpolation": "nearest"}


def _tell_more(name: str, each: ImageMap, one: ImageExplanation) -> list[str]:
    # What the caption of a map says besides what it leaves out.
    numbers = one.numbers
    if name == "attention":
        without = "" if "registers" in numbers.attention_mass else " (no registers)"
        return [f"patch share {write_number(numbers.patch_share)}{without}"]
    if name == "contribution_norm" and numbers.centred_cosine:
        found = numbers.centred_cosine["attention"]["patches"]
        return [f"cos(c_patches, t) = {write_number(found)},", "both less the reference's means"]
    if name == "contribution_norm":
        raw, with_bias = numbers.cosine["attention"], numbers.restricted_cosine["attention"]
        return [
            f"raw: cos(c_patches, t) = {write_number(raw['patches'])}",
            f"cos(c_patches + bias, t) = {write_number(with_bias['patches'])}",
        ]
    if each.error is None:
        return []
    return [f"mean standard error of a patch {write_number(float(each.error.mean()))}"]


# --- words ---------------------------------------------------------------------------------------


def _page_width() -> float:
    return chosen_style().width_in or PAGE_IN


def _wrap(lines: Iterable[str], letters: int) -> tuple[str, ...]:
    # Not between a number and its unit.
    whole = [line.replace(" %", f"{_NO_BREAK}%") for line in lines]
    return tuple(part for line in whole for part in textwrap.wrap(line, letters))


def _wrap_across(lines: Iterable[str], letters: int) -> tuple[str, ...]:
    # Over the whole width of a sheet; a page has so many letters.
    return _wrap(lines, int(letters * _page_width() / PAGE_IN))


def _keep_together(line: str) -> str:
    # No break between the words of an item.
    return ", ".join(item.replace(" ", _NO_BREAK) for item in line.split(", "))


# --- layout --------------------------------------------------------------------------------------


class _Sheet:
    """A figure filled from its top, in inches; it becomes as high as what is on it."""

    def __init__(self, width: float) -> None:
        self.figure = ShownFigure(figsize=(width, 1))
        self.top = -_GAP_IN  # where the next part begins

    def add_maps(
        self, summary: Summary, one: ImageMaps, told: Sequence[str], maps: Sequence[_Map]
    ) -> None:
        """The label of a model, the image with words on it, and its maps."""
        label = _wrap_across([_label(summary)], _VERDICT_LETTERS)
        self.top += _GAP_IN + 0.06
        self.top = self._write(_LEFT_IN, self.top, label, size=BASE_PT + 1, weight="bold") + 0.07
        size = "{} × {} px, {} × {} patches".format(*one.image.shape[:2], *one.grid)
        photo = _Map(("image",), (size,), _wrap(told, _IMAGE_LETTERS), one.image, _PHOTO)
        # As many beside each other as there is space for, with their bars.
        last = _page_width() - _BAR_IN
        first = min(_COLUMN_IN, last)
        across = 1 + int((last - first) / _STEP_IN)
        lefts = [first + n * _STEP_IN for n in range(across)]
        for start in range(0, len(maps), across):
            line = list(zip(lefts, maps[start : start + across], strict=False))
            beside = [(_LEFT_IN, photo)] if start == 0 else []
            self._add_line([*beside, *line], _fit(one.image.shape, _MAP_IN, _TALLEST_IN))

    def _add_line(self, line: Sequence[tuple[float, _Map]], size: tuple[float, float]) -> None:
        units = self.top + max(len(each.title) for _, each in line) * _LINE_IN
        maps = units + max(1, *(len(each.unit) for _, each in line)) * _LINE_IN
        captions = maps + size[1] + 0.06
        ends = []
        for left, each in line:
            self._write(left, self.top, each.title, size=BASE_PT, weight="bold")
            self._write(left, units, each.unit, color=FAINT)
            ends.append(self._write(left, captions, each.caption))
            image = self._show(left, maps, size, each.values, each.look)
            if each.look is not _PHOTO:
                self._add_bar(image, left + size[0] + 0.05, maps, size[1])
        self.top = max(ends) + 0.06

    def add_words(self, verdict: Sequence[str], basis: Sequence[str]) -> None:
        """What is said below the maps, if notes are wanted."""
        if chosen_style().has_notes:
            bold = _wrap_across(verdict, _VERDICT_LETTERS)
            self.top = self._write(_LEFT_IN, self.top, bold, size=BASE_PT, weight="bold")
            rest = _wrap_across(basis, _BASIS_LETTERS)
            self.top = self._write(_LEFT_IN, self.top, rest, color=FAINT)
        self.top += 0.06

    def add_heads(self, one: ImageMaps, each: ImageMap) -> None:
        """A map of each head on a common scale, if there are any."""
        if each.heads is None:
            return
        whole, look = _scale(each.heads, each.about)
        title = f"{each.about.title} of each head, {_name_unit(each.about)}"
        self._write(_LEFT_IN, self.top, [title], weight="bold")
        size = width, height = _fit(one.image.shape, _HEAD_IN, _TALLEST_HEAD_IN)
        room = int((_page_width() - 2 * _LEFT_IN - _HEAD_GAP_IN) / (_HEAD_IN + _HEAD_GAP_IN))
        most = min(_MOST_HEADS, room)
        step = (width + _HEAD_GAP_IN, height + _LINE_IN + _HEAD_GAP_IN)
        top = self.top + _LINE_IN + 0.04
        for head, values in enumerate(whole):
            down, across = divmod(head, most)
            left, above = _LEFT_IN + across * step[0], top + down * step[1]
            self._write(left, above, [str(head)], color=FAINT)
            image = self._show(left, above + _LINE_IN, size, values, look)
            if head == 0:
                beside = _LEFT_IN + min(len(whole), most) * step[0]
                self._add_bar(image, beside, above + _LINE_IN, max(height, _LOWEST_BAR_IN))
        self.top = top + math.ceil(len(whole) / most) * step[1]

    def describe_heads(self, *names: str) -> None:
        """What the attention of all heads is of, beside the image."""
        left = 2 * _LEFT_IN + _IMAGE_IN
        letters = int((self.figure.get_figwidth() - left) / _LETTER_IN)
        model, image = (shorten(name, letters) for name in names)
        top = self._write(left, _LEFT_IN, [model], size=BASE_PT, weight="bold")
        top = self._write(left, top, [image], size=BASE_PT)
        self._write(left, top, textwrap.wrap(_MEANING, letters), size=BASE_PT, color=FAINT)

    def finish(self, height: float) -> Figure:
        """The figure, with inches from the upper left corner as parts of its size."""
        width = self.figure.get_figwidth()
        self.figure.set_size_inches(width, height)
        for text in self.figure.texts:
            left, top = text.get_position()
            text.set_position((left / width, 1 - top / height))
        for axes in self.figure.axes:
            left, top, wide, high = axes.get_position(original=True).bounds
            place = (left / width, 1 - (top + high) / height, wide / width, high / height)
            axes.set_position(place)
        return self.figure

    def _write(
        self, left: float, top: float, lines: Sequence[str], *, size: float = SMALL_PT, **look: Any
    ) -> float:
        step = _SMALL_LINE_IN if size < BASE_PT else _LINE_IN
        for number, line in enumerate(lines):
            place = top + number * step
            self.figure.text(left, place, literal(line), fontsize=size, va="top", **look)
        return top + len(lines) * step

    def _show(
        self,
        left: float,
        top: float,
        size: tuple[float, float],
        values: np.ndarray,
        look: Mapping[str, Any],
    ) -> AxesImage:
        panel = self.figure.add_axes((left, top, *size), xticks=[], yticks=[])
        panel.spines[:].set(visible=True, linewidth=0.4, color=INK)
        return panel.imshow(values, aspect="auto", **look)

    def _add_bar(self, image: AxesImage, left: float, top: float, height: float) -> None:
        bar = self.figure.colorbar(image, cax=self.figure.add_axes((left, top, 0.07, height)))
        low, most = height < _LOW_BAR_IN, min(4, int(height / 0.2))
        # A low map has room for only the two ends of the scale.
        bar.locator = FixedLocator(image.get_clim()) if low else MaxNLocator(most)
        bar.formatter = FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−"))
        bar.update_ticks()
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(labelsize=SMALL_PT, pad=1)


def _fit(shape: Sequence[int], widest: float, tallest: float) -> tuple[float, float]:
    rows, columns = shape[:2]
    height = min(tallest, widest * rows / columns)
    return height * columns / rows, height
