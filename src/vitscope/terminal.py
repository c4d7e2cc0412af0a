"""Terminal output: tables and verdicts, rendered from summaries."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from vitscope.results.choices import Labelled
from vitscope.results.result_html import Shown, choose_shown
from vitscope.results.result_text import (
    TextTable,
    list_bases,
    list_notes,
    name_framed,
    tabulate_comparison,
    tabulate_traces,
    tell_raw_shares,
)
from vitscope.results.schema import (
    AuditSummary,
    ExplanationSummary,
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


def make_report(summary: Summary) -> Group:
    """Render one result: model, notes, tables, verdict."""
    shown = choose_shown(summary)
    tables = [_make_table(one) for one in shown.tables if one]
    if isinstance(summary, RemediesSummary):
        tables.append(tables.pop(0))  # the overview stays in sight
    lines = [Text.assemble((of, "bold"), ": " * bool(of), told) for of, told in shown.lines if told]
    if isinstance(summary, OneShotSummary):
        lines.append(Text(shown.verdict))
    elif shown.verdict:
        style = "bold" if shown.status is None else _STYLES[MOODS[shown.status]]
        lines.append(Text.assemble("verdict: ", (shown.verdict, style)))
    return Group(*_make_head(summary, shown), *tables, *lines)


def make_comparison(summaries: Sequence[AuditSummary]) -> Group:
    """Render tables that compare models."""
    table = tabulate_comparison([Labelled(summary.model.id, summary) for summary in summaries])
    told = Text(table, style="yellow") if isinstance(table, str) else _make_table(table)
    traces = tabulate_traces(summaries)
    return Group(told, *([_make_table(traces)] if traces else []))


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
    shown = choose_shown(summary)
    lines = []
    without: dict[str, str] = {}
    for image in summary.images:
        style = _STYLES[MOODS[image.verdict.status]]
        if raw := tell_raw_shares(image):
            without[image.verdict.text] = style
        told = (image.verdict.text, style) if not raw else (raw, "")
        lines.append(Text.assemble(f"{name_framed(image)}: ", told))
    lines += [Text(text, style=style) for text, style in without.items()]
    lines += [Text(told, style="bold") for _, told in shown.lines]
    scores = [_make_table(one) for one in shown.tables[1:] if one]
    bases = [Text(told, style="dim") for told in list_bases(summary)]
    return Group(*_make_head(summary, shown), *lines, *scores, *bases)


def _make_head(summary: Summary, shown: Shown) -> list[Text]:
    head = Text.assemble((summary.model.id, "bold"), "  ", "\n".join(shown.subject))
    return [head, *(Text(f"note: {note}", style="dim") for note in list_notes(summary))]


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
