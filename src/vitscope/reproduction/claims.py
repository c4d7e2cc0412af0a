"""Every claim of the paper compared with the measurements, and the table of claims."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vitscope.files.csv_files import write_csv
from vitscope.files.json_files import write_text
from vitscope.files.own_files import check_nothing_else, list_other_files, write_index
from vitscope.files.printable import escape_markdown
from vitscope.files.storage import staged_folder
from vitscope.reproduction.comparisons import ANSWERS, Answer, describe
from vitscope.reproduction.evidence import Data, ModelEvidence, check_different
from vitscope.reproduction.paper_claims import list_claims
from vitscope.results.schema import SCHEMA_VERSION

_VERBS = {"agrees": "agree", "disagrees": "disagree", "cannot tell": "cannot be told"}
_COLOURS = {"agrees": "bold green", "disagrees": "bold red", "cannot tell": "bold magenta"}


@dataclass(frozen=True)
class Finding:
    """A claim of the paper compared with what was measured."""

    where: str  # figure or section of the paper
    data: Data  # image set, named as in the paper: "COCO" is the main set
    claim: str
    criterion: str  # when the measurement agrees
    measured: str  # the numbers, with 95 % intervals and the number of images
    answer: Answer
    reason: str  # why it disagrees or is undecided; empty if it agrees


def judge_claims(
    evidence: Sequence[ModelEvidence], *, readout: str = "attention", classifier: str = "nearest"
) -> list[Finding]:
    """Compare every claim of the paper with the measurements."""
    check_different(evidence)
    return [
        Finding(
            where=claim.where,
            data=claim.data,
            claim=claim.statement,
            criterion=claim.criterion,
            measured=describe(check.numbers),
            answer=check.answer,
            reason="; ".join(check.reasons),
        )
        for claim in list_claims(readout, classifier)
        for check in [claim.check(evidence)]
    ]


def count_answers(findings: Sequence[Finding]) -> str:
    """Number of claims per answer, in words."""
    counts = Counter(finding.answer for finding in findings)
    return ", ".join(f"{counts[answer]} {_VERBS[answer]}" for answer in ANSWERS)


def write_claims(folder: Path, findings: Sequence[Finding], reports: Sequence[Path] = ()) -> None:
    """Write the table of claims as `claims.csv`, `claims.json` and `claims.md`.

    The last links to `reports`, which are beside the folder.
    """
    rows = [asdict(finding) for finding in findings]
    names = {"kind": "claims", "index": "claims.json"}
    check_nothing_else(folder, **names)
    with staged_folder(folder, replaces=lambda one: not list_other_files(one, **names)) as staging:
        headings = [field.name for field in fields(Finding)]
        write_csv(staging / "claims.csv", [headings, *(list(row.values()) for row in rows)])
        write_text(staging / "claims.md", _make_page(findings, reports))
        content = {"schema_version": SCHEMA_VERSION, "claims": rows}
        write_index(staging, content, **names)


def _make_page(findings: Sequence[Finding], reports: Sequence[Path]) -> str:
    lines = [
        "# The paper's claims, measured",
        "",
        f"Of {len(findings)} claims {count_answers(findings)}. Numbers in brackets are 95 % "
        "intervals; a criterion is met, or not met, where the whole interval says so. A number "
        "rises with size if the interval of the largest size lies above that of the smallest, and "
        "most pairs of sizes with separate intervals rise. COCO stands for the main set of images.",
        "",
        *(f"- [Verdicts, charts and images](../{path.name})" for path in reports),
        *([""] if reports else []),
        "| Where | The paper says | Agrees when | You measured | Agrees? | Why |",
        "| --- | --- | --- | --- | --- | --- |",
        *map(_make_row, findings),
    ]
    return "\n".join(lines) + "\n"


def _make_row(finding: Finding) -> str:
    where, data, *others = asdict(finding).values()
    return f"| {' | '.join(map(escape_markdown, [f'{where}, {data}', *others]))} |"


def make_claims_table(findings: Sequence[Finding]) -> Table:
    """The table of claims: the paper's statement, the measurement, whether they agree."""
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
