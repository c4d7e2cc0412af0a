"""The variance shares: which term the output's variance over images comes from."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes

from vitscope.figures.drawing import Drawing, NothingToDrawError, describe_n, select
from vitscope.figures.numbers import Interval, find_terms, read_estimate
from vitscope.figures.panels import finish, make_panels, term_handles
from vitscope.figures.saved import ModelResult
from vitscope.figures.style import (
    INK,
    SMALL_PT,
    TERMS,
    colour_term,
    in_style,
    in_term_order,
    literal,
    mark_term,
)
from vitscope.results.choices import LAYER, count_cls

_ROW_IN = 0.26
_WIDE_ENOUGH = 0.12
"""Part of the bar from which on its number fits inside."""
Shares = Mapping[str, Interval]


@in_style
def plot_variance_share(results: Iterable[ModelResult]) -> Drawing:
    """Variance shares of the residual stream: a stacked bar a model, and each with its interval."""
    selection = select(results, _read_shares, choices=[count_cls(*TERMS), LAYER])
    count = len(selection.found)
    figure, (stacked, apart) = make_panels(2, columns=2, panel_height_in=0.55 + _ROW_IN * count)
    terms = in_term_order(list({term for _, shares in selection.found for term in shares}))
    for row, (_, shares) in enumerate(selection.found):
        _stack(stacked, row, shares, terms)
    for place, term in enumerate(terms):
        _plot_estimates(apart, term, [shares for _, shares in selection.found], place, len(terms))
    stacked.set_yticks(range(count), [literal(result.label) for result in selection.results])
    stacked.set_ylim(count - 0.5, -0.5)
    for panel in (stacked, apart):
        panel.axvline(0, color=INK, linewidth=0.6)
        panel.set_xlabel("share of the output's variance (%)")
        panel.tick_params(axis="y", length=0)
    stacked.set_title("adds up to 100 %")
    apart.set_title("each with its 95 % interval")
    apart.grid(axis="x")
    for row in range(1, count):
        apart.axhline(row - 0.5, color="#eeeeee", linewidth=0.6, zorder=0)
    notes = [
        "Variance over images of the residual stream r of [CLS] after the last block's "
        "attention; what is the same for every image drops out. "
        f"{describe_n(selection.results)}.",
        *selection.choices,
    ]
    finish(figure, notes, handles=term_handles(terms, joined=False), omitted=selection.omitted)
    return selection.draw(figure)


def _read_shares(result: ModelResult) -> Shares:
    estimates = {
        term: read_estimate(share)
        for term, share in find_terms(result.summary, "variance_share", "residual").items()
    }
    if not estimates or any(share is None for share in estimates.values()):
        raise NothingToDrawError("its variance shares are undefined")
    return {term: share for term, share in estimates.items() if share is not None}


def _stack(panel: Axes, row: int, shares: Shares, terms: Sequence[str]) -> None:
    # A share below zero takes away: it stands to the left of zero.
    ends = {True: 0.0, False: 0.0}
    for term in terms:
        if term not in shares:
            continue
        width = 100 * shares[term].value
        side = width >= 0
        panel.barh(row, width, left=ends[side], height=0.7, color=colour_term(term), label=term)
        if abs(width) >= 100 * _WIDE_ENOUGH:
            centre = ends[side] + width / 2
            panel.text(
                centre,
                row,
                f"{width:.0f}",
                ha="center",
                va="center",
                color="white",
                fontsize=SMALL_PT,
                weight="bold",
            )
        ends[side] += width


def _plot_estimates(
    panel: Axes, term: str, models: Sequence[Shares], place: int, count: int
) -> None:
    rows = [row for row, shares in enumerate(models) if term in shares]
    found = [models[row][term] for row in rows]
    offset = (place - (count - 1) / 2) * 0.7 / max(count, 1)
    panel.errorbar(
        [100 * share.value for share in found],
        [row + offset for row in rows],
        xerr=[[100 * share.errors[end] for share in found] for end in (0, 1)],
        color=colour_term(term),
        marker=mark_term(term),
        markersize=3,
        elinewidth=0.8,
        linestyle="none",
        label=term,
    )
