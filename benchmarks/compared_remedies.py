"""Saved comparisons of remedies as Markdown: `python -m benchmarks.compared_remedies RESULT...`."""

import sys

from benchmarks.page import Section, Table, print_results
from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Estimate
from vitscope.results.number_text import write_number
from vitscope.results.remedy_result import RemedyResult
from vitscope.results.remedy_text import describe_remedies
from vitscope.results.result_text import ABSENT, tell_estimate
from vitscope.results.schema import RemediesSummary
from vitscope.results.schema_remedies import ComparedRemedy

_NUMBERS = {
    "high_norm_images": "high-norm images",
    "attention_patches": "attention on patches",
    "variance_share_patches": "patches' share",
    "variance_share_skip": "skip's share",
    "cka_patches": "CKA(r, patches)",
}


def describe_comparison(summary: RemediesSummary) -> Section:
    """The original, and every edit with its differences and its price."""
    original = summary.remedies[0].changes
    shown = {name: words for name, words in _NUMBERS.items() if name in original}
    prices = ("cos(f, f′)", "CKA(f, f′)", "shared nearest 10", "time")
    first = [
        summary.model.id,
        summary.verdict.status,
        *(_tell(original[name].before) for name in shown),
        *(ABSENT for _ in prices),
    ]
    rows = [_describe_edit(one, list(shown)) for one in summary.remedies]
    return Section(
        title=summary.model.id,
        how=f"{describe_remedies(summary)}. First the original, then differences from it.",
        tables=[Table(("edit", "verdict", *shown.values(), *prices), [first, *rows])],
        notes=summary.model.notes,
    )


def _describe_edit(one: ComparedRemedy, shown: list[str]) -> list[str]:
    drift = one.drift
    return [
        one.edit,
        one.verdict.status,
        *(_tell(one.changes[name].difference) for name in shown),
        _tell(drift.cosine),
        _tell(drift.cka),
        _tell(drift.shared_neighbours),
        write_number(one.time_ratio, 2),
    ]


def _tell(estimate: Estimate | CkaEstimate) -> str:
    return tell_estimate(estimate, 2)


if __name__ == "__main__":
    sys.exit(
        print_results(__doc__, lambda folder: describe_comparison(RemedyResult(folder).summary))
    )
