"""The report's card of a judgement: which map to publish, and the tables of scores."""

from typing import Any

from vitscope.figures.saved import ModelResult, as_sentence
from vitscope.metrics.jackknife import Estimate
from vitscope.report.verdicts import make_card
from vitscope.results.judgement_text import (
    describe_judgement,
    describe_scores,
    find_best,
    name_map,
    order_maps,
    tabulate_plausibility,
    tabulate_sanity,
)
from vitscope.results.map_verdict import BASELINES, REFERENCE_MAP
from vitscope.results.number_text import NumberText, write_number
from vitscope.results.result_text import ABSENT, TextTable, tell_estimate
from vitscope.results.schema import JudgementSummary
from vitscope.results.schema_maps import MapScores
from vitscope.results.verdict import Mood

_SCORES = {
    "skill": "skill",
    "gap": "gap",
    "rank": "rank",
    "saco": "SaCo",
    "infidelity": "infidelity",
    "completeness": "error of the sum",
}


def describe_judgement_card(result: ModelResult) -> dict[str, Any]:
    """Content of a judgement's card."""
    summary = result.judgement
    decided = summary.verdict.best is not None
    status = "publish" if decided else "cannot tell"
    mood: Mood = "good" if decided else "unknown"
    return make_card(result, status, mood, summary.verdict.text) | {
        "about": as_sentence(describe_judgement(summary)),
        "facts": list(_list_facts(summary)),
        "citation": result.saved.cite(),
        "scores_mean": describe_scores(summary),
        "scores": [_tabulate_scores(summary, removal) for removal in summary.removals],
        "plausibility": tabulate_plausibility(summary),
        "sanity": tabulate_sanity(summary),
    }


def _list_facts(summary: JudgementSummary) -> list[tuple[str, str, str]]:
    maps = next(iter(summary.removals.values()))
    baselines = (name for name in order_maps(summary) if name in BASELINES and name != "oracle")
    shown = dict.fromkeys([find_best(summary), REFERENCE_MAP, next(baselines, None)])
    return [
        (f"skill of {name_map(summary, name)}", *_tell(maps[name].scores["skill"]))
        for name in shown
        if name is not None and name in maps
    ]


def _tell(estimate: Estimate) -> tuple[str, str]:
    ends = estimate.ci95
    more = "" if ends is None else f"{write_number(ends[0], 2)} to {write_number(ends[1], 2)}"
    return write_number(estimate.value, 2), more


def _tabulate_scores(summary: JudgementSummary, removal: str) -> TextTable:
    rows = [
        (
            name_map(summary, name),
            *(_tell_score(scores.scores[score]) for score in _SCORES),
            _tell_comparison(scores),
            _tell_source(summary, name),
        )
        for name in order_maps(summary, removal)
        for scores in [summary.removals[removal][name]]
    ]
    return TextTable(
        ("map", *_SCORES.values(), "gap less that of attention", "source"),
        [rows],
        title=f"Removal {removal}",
    )


def _tell_score(estimate: Estimate) -> NumberText:
    return tell_estimate(estimate, 2)


def _tell_comparison(scores: MapScores) -> str:
    found = scores.against_attention
    return ABSENT if found is None else _tell_score(found.difference).after(f"{found.answer}: ")


def _tell_source(summary: JudgementSummary, name: str) -> str:
    return summary.maps[name].source if name in summary.maps else ABSENT
