"""The report's tables of compared remedies: the overview, then every number of each edit."""

from typing import Any

from vitscope.figures.saved import ModelResult, as_sentence
from vitscope.report.verdicts import tell_settings
from vitscope.results.remedy_text import describe_remedies, tabulate_overview, tabulate_remedy


def describe_remedies_card(result: ModelResult) -> dict[str, Any]:
    """Content of the tables of one comparison."""
    summary = result.remedies
    asked = {"one-shot": summary.one_shot, "skill": summary.judged, "removals": summary.judged}
    return {
        "label": result.label,
        "about": as_sentence(describe_remedies(summary)),
        "defined": [key for key, found in asked.items() if found is not None],
        "settings": tell_settings(result),
        "notes": result.notes,
        "overview": tabulate_overview(summary),
        "edits": [
            {
                "edit": one.edit,
                "text": as_sentence(one.text),
                "verdict": as_sentence(one.verdict.text),
                "table": tabulate_remedy(summary, one),
            }
            for one in summary.remedies
        ],
    }
