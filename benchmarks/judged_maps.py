"""Saved judgements of maps as Markdown: `python -m benchmarks.judged_maps RESULT...`."""

import sys
from collections.abc import Mapping

from benchmarks.page import Section, Table, print_results
from vitscope.metrics.jackknife import Estimate
from vitscope.results.judge_result import JudgeResult
from vitscope.results.judgement_text import describe_judgement, name_map, order_maps
from vitscope.results.result_text import ABSENT, tell_estimate, tell_number
from vitscope.results.schema import JudgementSummary

_INTERVALS = ("skill", "gap", "rank")
_MEANS = ("deletion", "insertion", "saco", "infidelity")
_PLAUSIBILITY = ("pointing", "mass_in_mask", "average_precision")


def describe_result(summary: JudgementSummary) -> Section:
    """Every map with its scores, the most faithful first, a table for each removal."""
    tables = [_tabulate_removal(summary, removal) for removal in summary.removals]
    if summary.plausibility:
        tables.append(_tabulate_plausibility(summary))
    return Section(
        title=summary.model.id,
        how=f"{describe_judgement(summary)}. {summary.verdict.text}.",
        tables=tables,
        notes=summary.model.notes,
    )


def _tabulate_removal(summary: JudgementSummary, removal: str) -> Table:
    rows = []
    for name in order_maps(summary, removal):
        found = summary.removals[removal][name]
        beside = found.against_attention
        rows.append(
            [
                name_map(summary, name),
                *_tell(found.scores, _INTERVALS),
                *(tell_number(found.scores[score].value, 2) for score in _MEANS),
                ABSENT
                if beside is None
                else f"{tell_estimate(beside.difference, 2)}, {beside.answer}",
            ]
        )
    columns = (f"map (removal {removal})", *_INTERVALS, *_MEANS, "gap less attention's")
    return Table(columns, rows)


def _tabulate_plausibility(summary: JudgementSummary) -> Table:
    found = summary.plausibility
    rows = [
        [name_map(summary, name), *_tell(found[name], _PLAUSIBILITY)]
        for name in sorted(found, key=lambda name: -found[name]["average_precision"].value)
    ]
    return Table(("map (on the objects)", *_PLAUSIBILITY), rows)


def _tell(scores: Mapping[str, Estimate], names: tuple[str, ...]) -> list[str]:
    return [tell_estimate(scores[name], 2) for name in names]


if __name__ == "__main__":
    sys.exit(print_results(__doc__, lambda folder: describe_result(JudgeResult(folder).summary)))
