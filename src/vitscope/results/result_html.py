"""What a result shows: in the terminal, and as HTML for notebooks, on dark and light pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vitscope.results.judgement_text import (
    describe_judgement,
    list_judgements,
    tabulate_image_scores,
    tabulate_judgement,
)
from vitscope.results.layer_text import tabulate_layers
from vitscope.results.number_text import StatusText
from vitscope.results.remedy_text import describe_remedies, tabulate_overview, tabulate_remedy
from vitscope.results.result_text import (
    TextTable,
    describe_audit,
    describe_explanation,
    describe_one_shot,
    list_bases,
    list_notes,
    name_framed,
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
from vitscope.results.verdict import MOODS, Status

if TYPE_CHECKING:
    from jinja2 import Template

# Each stands out on dark and light pages.
_COLOURS = {"good": "#1a7f4e", "middling": "#96620a", "bad": "#c0362c", "unknown": "#7a5299"}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is shown of a result, besides its model and notes."""

    subject: Sequence[str]  # what was measured, and how
    tables: Sequence[TextTable | None]
    lines: Sequence[tuple[str, str]] = ()  # sentences, each with what it is of
    verdict: str = ""
    status: Status | None = None  # of the verdict, where there are several


def choose_shown(summary: Summary) -> Shown:
    """What is shown of a result, of any kind."""
    match summary:
        case AuditSummary():
            return Shown(
                subject=describe_audit(summary),
                tables=[tabulate_sources(summary), tabulate_layers(summary)],
                lines=[("", tell_trace(summary))],
                verdict=summary.last.verdict.text,
                status=summary.last.verdict.status,
            )
        case OneShotSummary():
            return Shown(
                subject=[describe_one_shot(summary)],
                tables=[tabulate_accuracies(summary)],
                verdict=tell_one_shot(summary),
            )
        case JudgementSummary():
            return Shown(
                subject=[describe_judgement(summary)],
                tables=tabulate_judgement(summary),
                verdict=summary.verdict.text,
            )
        case RemediesSummary():
            details = [tabulate_remedy(summary, one) for one in summary.remedies]
            return Shown(
                subject=[describe_remedies(summary)],
                tables=[tabulate_overview(summary), *details],
                lines=[(one.edit, one.text) for one in summary.remedies],
            )
        case ExplanationSummary():
            return Shown(
                subject=[describe_explanation(summary)],
                tables=[_tabulate_images(summary), tabulate_image_scores(summary)],
                lines=[("", told) for told in list_judgements(summary)],
            )
    raise TypeError(f"{type(summary).__name__} is no summary of a result")


def _tabulate_images(summary: ExplanationSummary) -> TextTable:
    rows = []
    for number, image in enumerate(summary.images):
        told = "; ".join(filter(None, [image.verdict.text, tell_raw_shares(image)]))
        rows.append((str(number), name_framed(image), StatusText(told, image.verdict.status)))
    caption = "; ".join(list_bases(summary))
    return TextTable(("", "image", "verdict"), [rows], num_labels=3, caption=caption)


def show_result(summary: Summary) -> str:
    """A result as self-contained HTML, escaped."""
    shown = choose_shown(summary)
    lines = (": ".join(filter(None, line)) for line in shown.lines)
    return _load_template().render(
        id=summary.model.id,
        subject="; ".join(shown.subject),
        verdict=shown.verdict,
        status=shown.status,
        tables=list(filter(None, shown.tables)),
        notes=list(filter(None, [*list_notes(summary), *lines])),
    )


@cache
def _load_template() -> "Template":
    from jinja2 import Environment, PackageLoader  # only needed in notebooks

    environment = Environment(
        loader=PackageLoader("vitscope.results"), autoescape=True, trim_blocks=True
    )
    environment.globals["colours"] = {status: _COLOURS[mood] for status, mood in MOODS.items()}
    return environment.get_template("notebook.html")
