"""What is said of several audited layers: where patch integration holds, and a table."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from vitscope.files.printable import join_words
from vitscope.metrics.jackknife import Estimate
from vitscope.results.number_text import NumberText
from vitscope.results.result_text import (
    ABSENT,
    Row,
    TextTable,
    describe_intervals,
    tell_estimate,
    tell_percent,
)
from vitscope.results.schema import AuditSummary
from vitscope.results.schema_numbers import LayerSummary
from vitscope.results.verdict import MOODS, Status
from vitscope.results.vocabulary import SOURCES, name_term

_FEWEST_TO_SPAN = 3
"""From here on, neighbouring layers are written as a range."""


def tell_layers(summary: AuditSummary) -> str:
    """At which of the audited layers patch integration holds, and at which it does not."""
    audited = [layer.index for layer in summary.layers]
    by_status: dict[Status, list[int]] = {}
    for layer in summary.layers:
        by_status.setdefault(layer.verdict.status, []).append(layer.index)
    whole = len(audited) >= summary.model.depth
    claims, doubts = [], []
    for status, layers in by_status.items():
        if MOODS[status] == "unknown":
            everywhere = f"at any {'' if whole else 'audited '}layer"
            doubts.append(f"{_place(layers, audited, everywhere)} ({status})")
        else:
            everywhere = f"at every {'' if whole else 'audited '}layer"
            claim = "holds" if status == "holds" else f"is {status}"
            claims.append(f"{claim} {_place(layers, audited, everywhere)}")
    parts = [f"patch integration {join_words(claims)}"] if claims else []
    parts += [f"cannot tell {join_words(doubts)}"] if doubts else []
    scope = "" if whole or len(by_status) == 1 else f"of the {len(audited)} audited layers, "
    return scope + "; ".join(parts)


def tabulate_layers(summary: AuditSummary) -> TextTable | None:
    """The variance share of each source and the verdict at each layer, if several were audited."""
    if len(summary.layers) == 1:
        return None
    found = {term for layer in summary.layers for term in layer.variance_share["residual"]}
    terms = [term for term in SOURCES if term in found]
    rows = [_list_cells(layer, terms) for layer in summary.layers]
    heads = ["\n".join(name_term(term).split()) for term in terms]
    return TextTable(
        ("layer", *heads, "CKA(r,\npatches)", "verdict"),
        sections=[rows],
        caption=f"Variance share of each source in %, and CKA; {describe_intervals(rows)}.",
        title=f"The verdict of each layer: {tell_layers(summary)}",
    )


def _list_cells(layer: LayerSummary, terms: Iterable[str]) -> Row:
    shares = layer.variance_share["residual"]
    # The intervals of the others are in the figure, and in the saved table.
    told = {
        term: NumberText(tell_percent(Estimate(one.value, None)), one.value, *(one.ci95 or ()))
        for term, one in shares.items()
    }
    told["patches"] = tell_percent(shares["patches"])
    return (
        str(layer.index),
        *(told.get(term, ABSENT) for term in terms),
        tell_estimate(layer.cka["residual"]["patches"]),
        layer.verdict.status,
    )


def _place(layers: Sequence[int], audited: Sequence[int], everywhere: str) -> str:
    # Neighbours are neighbours among the audited layers.
    places = enumerate(map(audited.index, layers))
    runs = [
        [audited[place] for _, place in run] for _, run in groupby(places, lambda at: at[1] - at[0])
    ]
    if list(layers) == list(audited):
        return everywhere
    if len(runs) == 1 and len(layers) > 1:
        if layers[0] == audited[0]:
            return f"up to layer {layers[-1]}"
        if layers[-1] == audited[-1]:
            return f"from layer {layers[0]} on"
    told = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) >= _FEWEST_TO_SPAN else map(str, run))
    ]
    return f"at layer{'s' if len(layers) > 1 else ''} {join_words(told)}"
