"""A result as self-contained HTML for notebooks, escaped, and readable on dark and light pages."""

from functools import cache
from typing import TYPE_CHECKING, Any

from vitscope.results.judgement_text import (
    describe_judgement,
    list_judgements,
    tabulate_image_scores,
    tabulate_judgement,
)
from vitscope.results.layer_text import tabulate_layers
from vitscope.results.remedy_text import describe_remedies, tabulate_overview, tabulate_remedy
from vitscope.results.result_text import (
    describe_audit,
    describe_dropped,
    describe_explanation,
    describe_one_shot,
    list_bases,
    list_notes,
    tabulate_accuracies,
    tabulate_sources,
    tell_one_shot,
    tell_raw_shares,
    tell_trace,
)
from vitscope.results.schema import (
    AuditSummary,
    ExplanationSummary,
    JudgementSummary,
    OneShotSummary,
    RemediesSummary,
    Summary,
)
from vitscope.results.verdict import MOODS

if TYPE_CHECKING:
    from jinja2 import Template

# Each stands out on dark and light pages.
_COLOURS = {"good": "#1a7f4e", "middling": "#96620a", "bad": "#c0362c", "unknown": "#7a5299"}


def show_audit(summary: AuditSummary) -> str:
    """An audit: verdict, table of sources with intervals, verdicts of layers, notes."""
    verdict = summary.last.verdict
    return _render(
        summary,
        tell_trace(summary),
        subject="; ".join(describe_audit(summary)),
        status=verdict.status,
        told=verdict.text,
        tables=[table for table in (tabulate_sources(summary), tabulate_layers(summary)) if table],
    )


def show_one_shot(summary: OneShotSummary) -> str:
    """One-shot classification: what the accuracies mean, the accuracies, notes."""
    return _render(
        summary,
        describe_dropped(summary),
        subject=describe_one_shot(summary),
        told=tell_one_shot(summary),
        tables=[tabulate_accuracies(summary)],
    )


def show_judgement(summary: JudgementSummary) -> str:
    """Judged maps: which to publish, the scores with each removal, notes."""
    return _render(
        summary,
        subject=describe_judgement(summary),
        told=summary.verdict.text,
        tables=tabulate_judgement(summary),
    )


def show_remedies(summary: RemediesSummary) -> str:
    """Compared remedies: an overview, then every number of each, notes."""
    tables = [tabulate_remedy(summary, one) for one in summary.remedies]
    return _render(
        summary,
        *(f"{one.edit}: {one.text}" for one in summary.remedies),
        subject=describe_remedies(summary),
        tables=[tabulate_overview(summary), *tables],
    )


def show_explanation(summary: ExplanationSummary) -> str:
    """Explained images: the verdict on each, notes."""
    rows = []
    for number, image in enumerate(summary.images):
        cropped = " (cropped)" if image.framing == "cropped" else ""
        told = "; ".join(filter(None, [image.verdict.text, tell_raw_shares(image)]))
        rows.append((str(number), f"{image.path}{cropped}", (image.verdict.status, told)))
    table = {"columns": ("", "image", "verdict"), "num_labels": 3, "sections": [rows]}
    below = {"title": "", "caption": "; ".join(list_bases(summary))}
    tables = [table | below, tabulate_image_scores(summary)]
    return _render(
        summary,
        *list_judgements(summary),
        subject=describe_explanation(summary),
        tables=list(filter(None, tables)),
    )


def _render(summary: Summary, *more: str, **parts: Any) -> str:
    notes = [*list_notes(summary), *filter(None, more)]
    given = {"id": summary.model.id, "notes": notes, "status": "", "told": ""}
    return _load_template().render(given | parts)


@cache
def _load_template() -> "Template":
    from jinja2 import Environment, PackageLoader  # only needed in notebooks

    environment = Environment(
        loader=PackageLoader("vitscope.results"), autoescape=True, trim_blocks=True
    )
    environment.globals["colours"] = {status: _COLOURS[mood] for status, mood in MOODS.items()}
    return environment.get_template("notebook.html")
