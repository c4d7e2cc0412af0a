"""One image with its maps: explained by models, each with what it leaves out; or judged.

Positions are in inches from the upper left corner, so a figure is as high as its images and text.

Source: Lappe & Giese (NeurIPS 2025), Fig. 4.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from vitscope.figures.explained import tell_basis, tell_best_map, tell_order, tell_verdict
from vitscope.figures.judged import order_kept
from vitscope.figures.rendering.overlays import DIVERGING, SEQUENTIAL, choose_limits
from vitscope.figures.rendering.style import (
    BASE_PT,
    FAINT,
    INK,
    SMALL_PT,
    ShownFigure,
    in_style,
    literal,
)
from vitscope.figures.rendering.wrapping import (
    keep_together,
    page_width,
    wrap,
    wrap_across,
    wrap_notes,
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
_LABEL_IN, _TITLE_IN, _UNIT_IN, _SMALL_LINE_IN, _LINE_IN = 0.2, 0.13, 0.13, 0.107, 0.13
_GAP_IN = 0.16
_LOW_BAR_IN, _LOWEST_BAR_IN = 0.45, 0.16
_IMAGE_LETTERS, _CAPTION_LETTERS, _VERDICT_LETTERS, _BASIS_LETTERS = 27, 36, 115, 135
_TITLE_LETTERS, _UNIT_LETTERS = 30, 40
"""Letters per line, for wide letters; those of label, verdict and basis on a page."""


@in_style
def plot_explanations(
    explanations: Sequence[Explanation], image_id: str, *, heads: bool = False
) -> Figure:
    """The image with its maps, each on a scale of its own; one row per model."""
    return _plot_rows([_make_row(one, image_id, heads=heads) for one in explanations])


@in_style
def plot_judged(result: ModelResult, index: int) -> Figure:
    """A kept image with its maps and the skill of each, the best-judged map first."""
    return _plot_rows([_make_judged_row(result, index)])


def _plot_rows(rows: "Sequence[_Row]") -> Figure:
    sheet = _Sheet(page_width(), sum(row.height for row in rows))
    top = 0.0
    for row in rows:
        _draw_row(sheet, top, row)
        top += row.height
    return sheet.figure


def _list_columns() -> list[float]:
    # As many beside each other as there is space for, with their bars.
    last = page_width() - _BAR_IN
    first = min(_COLUMN_IN, last)
    return [first + n * _STEP_IN for n in range(1 + int((last - first) / _STEP_IN))]


def _count_heads_across() -> int:
    step = _HEAD_IN + _HEAD_GAP_IN
    return min(_MOST_HEADS, int((page_width() - 2 * _LEFT_IN - _HEAD_GAP_IN) / step))


def _label(summary: Summary) -> str:
    layer, depth = summary.layer, summary.model.depth
    where = "attention pooling" if layer == depth else f"layer {layer} (of 0 to {depth - 1})"
    inputs = "".join(f", {told}" for told in list_inputs(summary))
    return f"{printable(summary.model.id)}, {where}{inputs}"


# --- content -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    title: tuple[str, ...]
    unit: tuple[str, ...]
    values: Float[np.ndarray, "*head row column"]
    signed: bool = False
    caption: tuple[str, ...] = ()

    @property
    def limits(self) -> tuple[float, float]:
        return choose_limits(self.values, signed=self.signed)


@dataclass(frozen=True)
class _Line:
    """Maps beside each other."""

    maps: tuple[_Map, ...]
    title_height: float
    unit_height: float
    map_height: float
    caption_height: float

    @property
    def height(self) -> float:
        return self.title_height + self.unit_height + self.map_height + self.caption_height


@dataclass(frozen=True)
class _Row:
    label: tuple[str, ...]
    image: ImageMaps
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
    def lines(self) -> list[_Line]:
        """The maps, as many beside each other as there are columns."""
        across, height = len(_list_columns()), self.fit(_MAP_IN, _TALLEST_IN)[1]
        parts = [self.maps[start : start + across] for start in range(0, len(self.maps), across)]
        return [self._make_line(maps, height, index == 0) for index, maps in enumerate(parts)]

    def _make_line(self, maps: tuple[_Map, ...], height: float, beside_image: bool) -> _Line:
        captions = [len(one.caption) for one in maps]
        if beside_image:
            captions.append(len(self.image_caption))
        return _Line(
            maps=maps,
            title_height=max(len(one.title) for one in maps) * _TITLE_IN,
            unit_height=max(1, *(len(one.unit) for one in maps)) * _UNIT_IN,
            map_height=height,
            caption_height=max(captions) * _SMALL_LINE_IN + 0.12,
        )

    @property
    def heads_height(self) -> float:
        height = self.fit(_HEAD_IN, _TALLEST_HEAD_IN)[1] + _UNIT_IN + _HEAD_GAP_IN
        down = [math.ceil(len(one.values) / _count_heads_across()) for one in self.head_maps]
        return math.fsum(_TITLE_IN + 0.04 + n * height for n in down)

    @property
    def label_height(self) -> float:
        return _LABEL_IN + (len(self.label) - 1) * _LINE_IN

    @property
    def height(self) -> float:
        maps = math.fsum(line.height for line in self.lines)
        words = len(self.verdict) * _LINE_IN + len(self.basis) * _SMALL_LINE_IN
        return 0.06 + self.label_height + maps + words + 0.06 + self.heads_height + _GAP_IN


def _make_row(explanation: Explanation, image_id: str, *, heads: bool) -> _Row:
    summary = explanation.summary
    index = explanation.image_ids.index(image_id)
    one = explanation.read_image(index)
    name = shorten(printable(one.path.rsplit("/", 1)[-1]), _IMAGE_LETTERS)
    shown = "shown whole" if one.framing == "whole" else "cropped to the input size"
    return _Row(
        label=wrap_across([_label(summary)], _VERDICT_LETTERS),
        image=one,
        image_caption=wrap([name, shown], _IMAGE_LETTERS),
        maps=tuple(_make_map(name, each, one) for name, each in one.shown.items()),
        head_maps=tuple(chain.from_iterable(map(_make_heads, one.shown.values() if heads else ()))),
        verdict=wrap_notes(tell_verdict(summary, index, one), _VERDICT_LETTERS),
        basis=wrap_notes(tell_basis(summary, one), _BASIS_LETTERS),
    )


def _make_judged_row(result: ModelResult, index: int) -> _Row:
    summary = result.judgement
    image = summary.images[index]
    found = JudgeResult(result.folder).read_maps(index)
    return _Row(
        label=wrap_across([_label(summary)], _VERDICT_LETTERS),
        image=found,
        image_caption=wrap([printable(image.path.rsplit("/", 1)[-1])], _IMAGE_LETTERS),
        maps=tuple(
            _place_values(found.maps[name], [f"skill {write_number(image.skill[name], 2)}"])
            for name in order_kept(summary, image)
        ),
        head_maps=(),
        verdict=wrap_notes(tell_best_map(summary), _VERDICT_LETTERS),
        basis=wrap_notes([tell_order(summary)], _BASIS_LETTERS),
    )


def _make_map(name: str, each: ImageMap, one: ImageExplanation) -> _Map:
    score = [tell_score(one.skill[name], one.gap[name])] if name in one.skill else []
    told = [keep_together(line) for line in tell_map(each.about, float(each.values.sum()))]
    return _place_values(each, [*score, *told, *_ADDED.get(name, _add_error)(each, one)])


def _place_values(each: ImageMap, told: Sequence[str]) -> _Map:
    about = each.about
    return _Map(
        title=wrap([about.title], _TITLE_LETTERS),
        unit=wrap([_name_unit(about)], _UNIT_LETTERS),
        values=_scale(each.values, about),
        signed=about.signed,
        caption=wrap(told, _CAPTION_LETTERS),
    )


def _make_heads(each: ImageMap) -> Iterator[_Map]:
    if each.heads is not None:
        title, unit = f"{each.about.title} of each head", _name_unit(each.about)
        values = _scale(each.heads, each.about)
        yield _Map((title,), (unit,), values, signed=each.about.signed)


def _name_unit(about: MapSummary) -> str:
    target = "" if about.target is None else f"target {about.target}"
    return ", ".join(filter(None, (about.unit, target)))


def _scale(values: np.ndarray, about: MapSummary) -> np.ndarray:
    return 100 * values if about.is_part else values


def _add_patch_share(_: ImageMap, one: ImageExplanation) -> list[str]:
    without = "" if "registers" in one.numbers.attention_mass else " (no registers)"
    return [f"patch share {write_number(one.numbers.patch_share)}{without}"]


def _add_cosines(_: ImageMap, one: ImageExplanation) -> list[str]:
    numbers = one.numbers
    if numbers.centred_cosine:
        found = numbers.centred_cosine["attention"]["patches"]
        return [f"cos(c_patches, t) = {write_number(found)},", "both less the reference's means"]
    raw, with_bias = numbers.cosine, numbers.restricted_cosine
    return [
        f"raw: cos(c_patches, t) = {write_number(raw['attention']['patches'])}",
        f"cos(c_patches + bias, t) = {write_number(with_bias['attention']['patches'])}",
    ]


def _add_error(each: ImageMap, _: ImageExplanation) -> list[str]:
    if each.error is None:
        return []
    return [f"mean standard error of a patch {write_number(float(each.error.mean()))}"]


_ADDED = {"attention": _add_patch_share, "contribution_norm": _add_cosines}
"""What the caption of a map says besides what it leaves out."""


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
    sheet.write(_LEFT_IN, top, row.label, size=BASE_PT + 1, weight="bold")
    words = top + row.label_height
    for index, line in enumerate(row.lines):
        title, unit = words, words + line.title_height
        maps = unit + line.unit_height
        captions = maps + height + 0.06
        if index == 0:
            size = "{} × {} px, {} × {} patches".format(*one.image.shape[:2], *one.grid)
            sheet.write(_LEFT_IN, title, ["image"], size=BASE_PT, weight="bold")
            sheet.write(_LEFT_IN, unit, [size], color=FAINT)
            sheet.write(_LEFT_IN, captions, row.image_caption)
            _show(sheet.place(_LEFT_IN, maps, width, height), one).set_interpolation("lanczos")
        for left, each in zip(_list_columns(), line.maps, strict=False):
            sheet.write(left, title, each.title, size=BASE_PT, weight="bold")
            sheet.write(left, unit, each.unit, color=FAINT)
            sheet.write(left, captions, each.caption)
            image = _show(sheet.place(left, maps, width, height), one, each, each.values)
            _draw_bar(sheet, image, left + width + 0.05, maps, height)
        words += line.height
    sheet.write(_LEFT_IN, words, row.verdict, size=BASE_PT, weight="bold")
    below = words + len(row.verdict) * _LINE_IN
    sheet.write(_LEFT_IN, below, row.basis, color=FAINT)
    below += len(row.basis) * _SMALL_LINE_IN + 0.06
    for each in row.head_maps:
        below = _draw_heads(sheet, below, row, each)


def _draw_heads(sheet: _Sheet, top: float, row: _Row, each: _Map) -> float:
    width, height = row.fit(_HEAD_IN, _TALLEST_HEAD_IN)
    sheet.write(_LEFT_IN, top, [", ".join([*each.title, *each.unit])], weight="bold")
    top += _TITLE_IN + 0.04
    step = (width + _HEAD_GAP_IN, height + _UNIT_IN + _HEAD_GAP_IN)
    most = _count_heads_across()
    last = min(len(each.values), most)
    for head, values in enumerate(each.values):
        down, across = divmod(head, most)
        left, above = _LEFT_IN + across * step[0], top + down * step[1]
        sheet.write(left, above, [str(head)], color=FAINT)
        image = _show(sheet.place(left, above + _UNIT_IN, width, height), row.image, each, values)
        if head == 0:
            beside = _LEFT_IN + last * step[0]
            _draw_bar(sheet, image, beside, above + _UNIT_IN, max(height, _LOWEST_BAR_IN))
    return top + math.ceil(len(each.values) / most) * step[1]


def _show(
    panel: Axes,
    one: ImageMaps,
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
        image.set(cmap=DIVERGING if each.signed else SEQUENTIAL, norm=Normalize(*each.limits))
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
