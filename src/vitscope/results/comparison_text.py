"""The table that compares models, shared by terminal and report."""

from collections.abc import Sequence

from vitscope.results.choices import LAYER, Described, count_cls, describe_choices, find_mixture
from vitscope.results.number_text import NumberText, write_millions
from vitscope.results.result_text import (
    ABSENT,
    Row,
    TextTable,
    describe_intervals,
    mean_of,
    tell_estimate,
    tell_main_other_source,
    tell_number,
)
from vitscope.results.schema import AuditSummary
from vitscope.results.vocabulary import SOURCES

_CHOICES = (count_cls(*SOURCES), LAYER)


def tabulate_comparison(results: Sequence[Described]) -> TextTable | str:
    """A row per audit: what decides its verdict; or why they cannot be compared."""
    if mixture := find_mixture(_CHOICES, results):
        return f"no table of all models: {mixture}"
    rows = [
        _list_cells(one.label, one.summary)
        for one in results
        if isinstance(one.summary, AuditSummary)
    ]
    notes = describe_choices(_CHOICES, results)
    return TextTable(
        (
            *("model", "params", "patch attention", "patches' share", "CKA(r, patches)"),
            *("main other source", "verdict"),
        ),
        [rows],
        caption=" ".join([f"{describe_intervals(rows)}.", *notes]),
        title="Where the [CLS] output comes from",
    )


def _list_cells(label: str, summary: AuditSummary) -> Row:
    layer, params = summary.last, summary.model.num_params
    share, cka = layer.variance_share["residual"]["patches"], layer.cka["residual"]["patches"]
    return (
        label,
        NumberText(write_millions(params / 1e6), params) if params else ABSENT,
        tell_number(mean_of(layer.attention_mass, "patches")),
        tell_estimate(share.value, share.ci95),
        tell_estimate(cka.unbiased, cka.ci95),
        tell_main_other_source(layer),
        layer.verdict.status,
    )
