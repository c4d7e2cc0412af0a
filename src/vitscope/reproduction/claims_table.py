"""The table of claims as a person sees it in the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from vitscope.reproduction.findings import Finding, count_answers

_COLOURS = {"agrees": "bold green", "disagrees": "bold red", "cannot tell": "bold magenta"}


def make_claims_table(findings: Sequence[Finding]) -> Table:
    """What the paper says, what was measured, and whether it agrees."""
    table = Table(
        title="The paper's claims, measured",
        title_justify="left",
        caption=f"{count_answers(findings)}. In brackets: 95 % intervals. CKA is the paper's own "
        "measure; a verdict looks at the variance share too.",
        caption_justify="left",
        show_lines=True,
    )
    for name in ("where", "the paper says", "you measured"):
        table.add_column(name, overflow="fold")
    table.add_column("agrees?", min_width=11)
    for finding in findings:
        why = [Text(finding.reason, style="dim")] if finding.reason else []
        table.add_row(
            Text(f"{finding.where}\n{finding.data}"),
            Text(finding.claim),
            Text("\n").join([Text(finding.measured), *why]),
            Text(finding.answer, style=_COLOURS[finding.answer]),
        )
    return table
