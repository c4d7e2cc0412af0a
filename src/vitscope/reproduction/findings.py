"""What became of a claim, and the table of all of them as files."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vitscope.errors import ResultError
from vitscope.figures.numbers import find
from vitscope.files.json_files import read_json, write_json
from vitscope.files.markdown import escape_markdown
from vitscope.files.storage import staged_folder
from vitscope.reproduction.comparisons import ANSWERS, Answer
from vitscope.reproduction.evidence import Data
from vitscope.results.saved_result import SCHEMA_VERSION

_CSV, _JSON, _PAGE = "claims.csv", "claims.json", "claims.md"
_KIND = "claims"
_HEADINGS = ("Where", "The paper says", "Agrees when", "You measured", "Agrees?", "Why")
_VERBS = {"agrees": "agree", "disagrees": "disagree", "cannot tell": "cannot be told"}


@dataclass(frozen=True)
class Finding:
    """A claim of the paper held against what was measured.

    Attributes:
        where: Figure or section of the paper.
        data: Pictures that it was measured on, by the name of the paper's: "COCO" is the main set.
        claim: What the paper says.
        criterion: When the measurement agrees.
        measured: The numbers, with 95 % intervals and the number of pictures.
        answer: Whether it agrees.
        reason: Why it does not, or cannot be told; empty where it agrees.
    """

    where: str
    data: Data
    claim: str
    criterion: str
    measured: str
    answer: Answer
    reason: str


def count_answers(findings: Sequence[Finding]) -> str:
    """How the claims fared.

    Args:
        findings: All findings.

    Returns:
        Such as "12 agree, 3 disagree, 27 cannot be told".
    """
    counts = Counter(finding.answer for finding in findings)
    return ", ".join(f"{counts[answer]} {_VERBS[answer]}" for answer in ANSWERS)


def write_claims(folder: Path, findings: Sequence[Finding]) -> None:
    """Write the table of claims as `claims.csv`, `claims.json` and `claims.md`.

    Args:
        folder: A folder of its own, written whole or not at all; an earlier table is replaced.
        findings: All findings.

    Raises:
        UsageError: If something else is in the folder.
        VitscopeError: If the disk does not take it.
    """
    rows = [asdict(finding) for finding in findings]
    with staged_folder(folder, replaces=_is_claims) as staging:
        with (staging / _CSV).open(
            "w", encoding="utf-8", newline="", errors="backslashreplace"
        ) as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Finding)])
            writer.writeheader()
            writer.writerows(rows)
        content = {"kind": _KIND, "schema_version": SCHEMA_VERSION, "claims": rows}
        write_json(staging / _JSON, content)
        page = _make_page(findings)
        (staging / _PAGE).write_text(page, encoding="utf-8", errors="backslashreplace")


def _is_claims(folder: Path) -> bool:
    if {path.name for path in folder.iterdir()} != {_CSV, _JSON, _PAGE}:
        return False
    try:
        return bool(find(read_json(folder / _JSON), "kind") == _KIND)
    except ResultError:
        return False


def _make_page(findings: Sequence[Finding]) -> str:
    rows = [
        (
            f"{finding.where}, {finding.data}",
            finding.claim,
            finding.criterion,
            finding.measured,
            finding.answer,
            finding.reason,
        )
        for finding in findings
    ]
    lines = [
        "# The paper's claims, measured",
        "",
        f"Of {len(findings)} claims {count_answers(findings)}. Numbers in brackets are 95 % "
        "intervals; a criterion is met, or not met, where the whole interval says so. COCO stands "
        "for the main set of pictures.",
        "",
        _row(_HEADINGS),
        _row(["---"] * len(_HEADINGS)),
        *(_row([escape_markdown(text) for text in row]) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
