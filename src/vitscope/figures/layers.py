"""What happens to [CLS] and to single patches on the way through the layers: figures 5b and 9."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vitscope.figures.depth_by_family import Layers, plot_depth_by_family
from vitscope.figures.drawing import (
    Drawing,
    NothingToDrawError,
    describe_n,
    describe_partial_depths,
    select,
)
from vitscope.figures.log_axis import use_plain_ticks
from vitscope.figures.numbers import (
    Interval,
    find,
    number,
    read_high_norm,
    read_spread,
    tell_bounds,
)
from vitscope.figures.panels import finish, make_panels, mark_empty
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import FAINT, TERM_COLOURS, in_style

_PATCHES, _REGISTERS = TERM_COLOURS["patches"], TERM_COLOURS["registers"]
_PLACE = TERM_COLOURS["skip"]
_NORM_LINES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("max", "largest", {"color": _PATCHES, "linestyle": ":"}),
    ("p99", "99 % quantile", {"color": _PATCHES, "linestyle": "--"}),
    ("median", "median", {"color": _PATCHES}),
    ("threshold", "threshold", {"color": _REGISTERS, "linestyle": "none", "marker": "_", "ms": 7}),
)
_FRACTION_LINES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fraction", "of patch tokens", {"color": _PATCHES, "marker": "o", "markersize": 2.5}),
    ("images_fraction", "of images", {"color": FAINT, "marker": "s", "markersize": 2}),
    (
        "position_share",
        "told by place alone",
        {"color": TERM_COLOURS["skip"], "marker": "^", "markersize": 2.5},
    ),
)
_NO_TOKENS = "it has no norms of patch tokens by layer"


@in_style
def plot_layer_similarity(results: Iterable[ModelResult]) -> Drawing:
    """Cosine of [CLS] at a layer with [CLS] at the last, over relative depth (Fig. 5b and 9)."""
    selection = select(results, _read_similarity)
    figure = plot_depth_by_family(
        selection,
        y_label="cosine with last [CLS]",
        notes=(
            f"{describe_n(selection.results)}.",
            "Cosine of [CLS] at a layer with [CLS] at the last; 0: embeddings, 1: output of the "
            "last block before the final norm. "
            "Mean over images; band: 5 to 95 % of the images.",
        ),
    )
    return selection.draw(figure)


@in_style
def plot_high_norm_fraction(results: Iterable[ModelResult]) -> Drawing:
    """Fraction of patch tokens with a norm above the fitted threshold, over relative depth."""
    selection = select(results, _read_fractions)
    figure = plot_depth_by_family(
        selection,
        y_label="high-norm patch tokens (%)",
        notes=(
            f"{describe_n(selection.results)}.",
            "Norms of block outputs before the final norm; threshold fitted to each layer's norms. "
            "Shaded where no token is found that stands out: from zero to the most that so few "
            "images leave open.",
            *describe_partial_depths(selection.results),
        ),
    )
    top = max(value.value for _, layers in selection.found for _, value in layers)
    figure.axes[0].set_ylim(-0.02 * (top or 1), 1.08 * (top or 1))
    return selection.draw(figure)


@in_style
def plot_high_norm_layers(result: ModelResult) -> Drawing:
    """One model's patch norms, threshold and high-norm tokens, layer by layer."""
    selection = select([result], lambda one: _read_rows(one, "high_norm_tokens", _NO_TOKENS))
    rows = selection.found[0][1]
    figure, (norms, fractions) = make_panels(2, columns=2, panel_height_in=2.2, share_y=False)
    for key, label, look in _NORM_LINES:
        _plot_rows(norms, rows, key, label, look)
    for key, label, look in _FRACTION_LINES:
        _plot_rows(fractions, rows, key, label, look)
    norms.set(yscale="log", title="norms of patch tokens", ylabel="norm")
    use_plain_ticks(norms.yaxis)
    fractions.set(ylim=(-0.03, 1.03), title="above the threshold", ylabel="fraction")
    for panel in (norms, fractions):
        panel.set_xlabel("layer (0: embeddings)")
        panel.set_xlim(-0.5, max(layer for layer, _ in rows) + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.lines:
            panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.6)
        else:
            mark_empty(panel, "not known of any layer")
    words = [
        f"{describe_n(selection.results)}. Norms of block outputs before the final norm.",
        *describe_partial_depths(selection.results),
        *selection.choices,
    ]
    if all(number(find(row, "threshold")) is None for _, row in rows):
        words.append(
            "No threshold in any layer: no token is found that stands out, and these images leave "
            f"open {tell_bounds(row for _, row in rows)}."
        )
    finish(figure, words, heading=f"High-norm patch tokens: {result.label}")
    return selection.draw(figure)


def _read_similarity(result: ModelResult) -> Layers:
    rows = _read_rows(result, "layer_similarity", "no [CLS] token to follow through its layers")
    return _over_depth(rows, read_spread, "its layer similarity is undefined")


def _read_fractions(result: ModelResult) -> Layers:
    rows = _read_rows(result, "high_norm_tokens", _NO_TOKENS)
    return _over_depth(rows, _read_percent, _NO_TOKENS)


def _read_percent(row: Any) -> Interval | None:
    found = read_high_norm(row)
    if found is None:
        return None
    ends = [None if end is None else 100 * end for end in (found.low, found.high)]
    return Interval(100 * found.value, *ends)


def _read_rows(result: ModelResult, key: str, reason: str) -> list[tuple[int, Any]]:
    rows = find(result.summary, key)
    found = [
        (int(layer), row)
        for row in (rows if isinstance(rows, list) else [])
        if (layer := number(find(row, "layer"))) is not None
    ]
    if not found or max(found)[0] <= 0:
        raise NothingToDrawError(reason)
    return sorted(found, key=lambda pair: pair[0])


def _over_depth(
    rows: Sequence[tuple[int, Any]], read: Callable[[Any], Interval | None], reason: str
) -> Layers:
    last = rows[-1][0]
    found = [(layer / last, value) for layer, row in rows if (value := read(row)) is not None]
    if not found:
        raise NothingToDrawError(reason)
    return found


def _plot_rows(
    panel: Axes,
    rows: Sequence[tuple[int, Any]],
    key: str,
    label: str,
    look: Mapping[str, Any],
) -> None:
    known = [(n, value) for n, row in rows if (value := number(find(row, key))) is not None]
    if known:
        layers, values = zip(*known, strict=True)
        panel.plot(layers, values, label=label, **look)
