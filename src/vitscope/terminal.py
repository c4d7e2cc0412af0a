"""Terminal output: tables and verdicts, rendered from summaries."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from vitscope.results.choices import Labelled
from vitscope.results.judgement_text import (
    describe_judgement,
    list_judgements,
    tabulate_image_scores,
    tabulate_judgement,
)
from vitscope.results.layer_text import tabulate_layers
from vitscope.results.remedy_text import describe_remedies, tabulate_overview, tabulate_remedy
from vitscope.results.result_text import (
    TextTable,
    describe_audit,
    describe_dropped,
    describe_explanation,
    describe_one_shot,
    list_bases,
    list_notes,
    tabulate_accuracies,
    tabulate_comparison,
    tabulate_sources,
    tabulate_traces,
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
from vitscope.results.verdict import MOODS, Mood

_MOST_WHOLE, _LEAST = 7, len("+0.00 ±")
"""Columns up to which numbers stay on one line, and the width that each of more columns keeps."""
_ONE_LINE = len("0.920 ± 0.007")
_ROOMY = 6  # most columns with more than one space between them
_STYLES: Mapping[Mood, str] = {
    "good": "bold green",
    "middling": "bold yellow",
    "bad": "bold red",
    "unknown": "bold magenta",
}


def make_report(summary: AuditSummary) -> Group:
    """Render one audit: model, sources, verdict."""
    subject, balance = describe_audit(summary)
    head = Text.assemble((summary.model.id, "bold"), f"  {subject}\n{balance}")
    tables = [
        _make_table(one) for one in (tabulate_sources(summary), tabulate_layers(summary)) if one
    ]
    verdict = summary.last.verdict
    told = Text.assemble("verdict: ", (verdict.text, _STYLES[MOODS[verdict.status]]))
    traced = Text(tell_trace(summary))
    return Group(head, *_list_notes(summary), *tables, *([traced] if traced else []), told)


def make_comparison(summaries: Sequence[AuditSummary]) -> Group:
    """Render tables that compare models."""
    table = tabulate_comparison([Labelled(summary.model.id, summary) for summary in summaries])
    told = Text(table, style="yellow") if isinstance(table, str) else _make_table(table)
    traces = tabulate_traces(summaries)
    return Group(told, *([_make_table(traces)] if traces else []))


def make_one_shot_report(summary: OneShotSummary) -> Group:
    """Render the one-shot accuracies of one model."""
    head = Text.assemble((summary.model.id, "bold"), f"  {describe_one_shot(summary)}")
    lines = _list_notes(summary)
    if dropped := describe_dropped(summary):
        lines.append(Text(dropped, style="yellow"))
    table = _make_table(tabulate_accuracies(summary))
    return Group(head, *lines, table, Text(tell_one_shot(summary)))


def make_judge_report(summary: JudgementSummary) -> Group:
    """Render the scores of one model's maps, and which to publish."""
    head = Text.assemble((summary.model.id, "bold"), f"  {describe_judgement(summary)}")
    tables = map(_make_table, tabulate_judgement(summary))
    told = Text.assemble("verdict: ", (summary.verdict.text, "bold"))
    return Group(head, *_list_notes(summary), *tables, told)


def make_remedy_report(summary: RemediesSummary) -> Group:
    """Render a model against its edits: an overview, every number of each, and sentences."""
    head = Text.assemble((summary.model.id, "bold"), f"  {describe_remedies(summary)}")
    tables = [tabulate_remedy(summary, one) for one in summary.remedies]
    told = [Text.assemble((one.edit, "bold"), f": {one.text}") for one in summary.remedies]
    overview = _make_table(tabulate_overview(summary))
    return Group(head, *_list_notes(summary), *map(_make_table, tables), overview, *told)


def make_remedy_list(rows: Sequence[tuple[str, str, str]]) -> Group:
    """Render the remedies: name, meaning and settings."""
    return Group(
        *(
            Text.assemble((name, "bold"), f"  {meaning}\n    ", (settings, "dim"))
            for name, meaning, settings in rows
        )
    )


def make_explanation_report(summary: ExplanationSummary) -> Group:
    """Render the verdicts of one model, one line per image."""
    head = Text.assemble((summary.model.id, "bold"), f"  {describe_explanation(summary)}")
    lines = _list_notes(summary)
    without: dict[str, str] = {}
    for image in summary.images:
        style = _STYLES[MOODS[image.verdict.status]]
        shown = " (cropped)" if image.framing == "cropped" else ""
        if raw := tell_raw_shares(image):
            without[image.verdict.text] = style
        told = (image.verdict.text, style) if not raw else (raw, "")
        lines.append(Text.assemble(f"{image.path}{shown}: ", told))
    lines += [Text(text, style=style) for text, style in without.items()]
    lines += [Text(told, style="bold") for told in list_judgements(summary)]
    scores = tabulate_image_scores(summary)
    bases = [Text(told, style="dim") for told in list_bases(summary)]
    return Group(head, *lines, *([] if scores is None else [_make_table(scores)]), *bases)


def _list_notes(summary: Summary) -> list[Text]:
    return [Text(f"note: {note}", style="dim") for note in list_notes(summary)]


def _make_table(content: TextTable) -> Table:
    crowded = len(content.columns) > _MOST_WHOLE
    table = Table(
        box=SIMPLE_HEAD,  # which leaves room for the numbers in 80 columns
        pad_edge=False,
        padding=0 if crowded else (0, 1),
        collapse_padding=len(content.columns) > _ROOMY,
        title=content.title or None,
        title_justify="left",
        caption=content.caption,
        caption_justify="left",
    )
    rows = [row for section in content.sections for row in section]
    for index, name in enumerate(content.columns):
        is_number = index >= content.num_labels
        # "0.920 ± 0.007" stays on one line; an interval with both ends may need two.
        longest = max((len(row[index]) for row in rows), default=0)
        whole = is_number and not crowded and longest <= _ONE_LINE
        side: JustifyMethod = "right" if is_number else "left"
        least = max(min(longest, _LEAST), *map(len, name.split())) if crowded else None
        table.add_column(name, justify=side, no_wrap=whole, min_width=least, overflow="fold")
    for section in content.sections:
        for row in section:
            table.add_row(*map(Text, row))
        table.add_section()
    return table
