"""Sources of [CLS] and the verdict at each audited layer."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from vitscope.figures.description import FigureData, NothingToDrawError, Point, group_points, select
from vitscope.figures.intervals import Interval, make_interval, read_estimate, read_spread, span
from vitscope.figures.saved import ModelResult
from vitscope.results.choices import count_cls
from vitscope.results.layer_text import tell_layers
from vitscope.results.schema_numbers import LayerSummary
from vitscope.results.verdict import MOODS, SYMBOLS
from vitscope.results.vocabulary import SOURCES

_CKA = "cka"
NUMBERS: Mapping[str, str] = {
    "variance_share": "variance share",
    "attention_mass": "attention",
    _CKA: "CKA with r",
}
"""Keys and names of the panels."""
_MOST_TICKS = 12


def describe_sources_by_layer(results: Iterable[ModelResult]) -> FigureData:
    """Variance share, attention and CKA of each source at each audited layer."""
    undefined = "its numbers are undefined at every layer"
    selection = select(results, _read, undefined, choices=[count_cls(*SOURCES)])
    told = [f"{model.label}: {tell_layers(model.audit)}." for model in selection.results]
    statuses = {one.verdict.status for model in selection.results for one in model.audit.layers}
    symbols = {
        symbol: "cannot tell" if MOODS[status] == "unknown" else status
        for status, symbol in SYMBOLS.items()
        if status in statuses
    }
    legend = ", ".join(f"{symbol} {meaning}" for symbol, meaning in symbols.items())
    notes = (
        *told,
        f"Above each panel, the verdict of each layer: {legend}.",
        "Sources of r, the residual stream of [CLS] after the attention of each layer; "
        f"{selection.n}. Band: 95 % interval; of attention, the mean over "
        "images, 5 to 95 % of the images.",
    )
    return selection.describe(selection.points, notes, titles=NUMBERS)


def split_panels(data: FigureData) -> Iterator[tuple[ModelResult, FigureData]]:
    """Each panel of each model, with its own axis; models share limits."""
    by_panel = group_points(data.points, lambda point: (point.model.folder, point.panel))
    for model in data.shown:
        for key, axis in data.titles.items():
            points = tuple(by_panel.get((model.folder, key), ()))
            limits = span([point.number for point in data.panels.get(key, ())], 0.0, 1.0)
            own = replace(data, points=points, axis=axis, percent=key != _CKA, limits=limits)
            yield model, own


def choose_ticks(layers: Sequence[LayerSummary]) -> list[int]:
    """Layers to name on the axis, the last among them."""
    indices = [layer.index for layer in layers]
    return indices[:: -math.ceil(len(indices) / _MOST_TICKS)][::-1]


def _read(result: ModelResult) -> list[Point]:
    layers = result.audit.layers
    if len(layers) == 1:
        raise NothingToDrawError("only one layer was audited (audit with layers='all')")
    found = [(layer.index, _read_layer(layer)) for layer in layers]
    return [
        Point(model=result, panel=key, term=term, x=index, number=number)
        for key in NUMBERS
        for term in SOURCES
        for index, numbers in found
        if (number := numbers[key].get(term)) is not None
    ]


def _read_layer(layer: LayerSummary) -> Mapping[str, Mapping[str, Interval | None]]:
    shares, ckas = layer.variance_share["residual"], layer.cka["residual"]
    return {
        "variance_share": {term: read_estimate(share) for term, share in shares.items()},
        "attention_mass": {term: read_spread(mass) for term, mass in layer.attention_mass.items()},
        # The unbiased CKA alone, which the verdict reads.
        _CKA: {term: make_interval(cka.unbiased, cka.ci95) for term, cka in ckas.items()},
    }
