"""The table of claims as files, in the terminal and in the documentation."""

import csv
import json
import re
from dataclasses import asdict, fields

import pytest
from rich.console import Console

from claims_evidence import make_models
from claims_page import PAGE, make_page
from vitscope.errors import UsageError
from vitscope.reproduction.claims import Finding, judge_claims, make_claims_table, write_claims

AGREES = make_models(True)


def test_the_files_hold_every_finding(tmp_path):
    findings = judge_claims(AGREES)
    write_claims(tmp_path / "claims", findings)
    rows = [asdict(finding) for finding in findings]
    content = json.loads((tmp_path / "claims" / "claims.json").read_text())
    assert content["claims"] == rows
    with (tmp_path / "claims" / "claims.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    page = (tmp_path / "claims" / "claims.md").read_text()
    assert f"{len(findings) - 1} agree, 0 disagree, 1 cannot be told" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == len(findings) + 2


HOSTILE = "a|b\n| `c` <script>alert(1)</script> [x](http://e.vil) _em_ *b* \\| \udcff =1+1 ü"


def test_hostile_text_is_one_cell_of_plain_text(tmp_path):
    finding = Finding("Fig. 2a", "COCO", HOSTILE, "c", HOSTILE, "cannot tell", HOSTILE)
    write_claims(tmp_path / "claims", [finding])
    page = (tmp_path / "claims" / "claims.md").read_text()
    line = page.splitlines()[-1]
    assert len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) == 8
    assert "<script>" not in page
    assert r"\[x\](http" in line
    with (tmp_path / "claims" / "claims.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["claim"] == HOSTILE.replace("\udcff", r"\udcff")
    assert list(row) == [field.name for field in fields(Finding)]
    (saved,) = json.loads((tmp_path / "claims" / "claims.json").read_text())["claims"]
    assert saved["claim"] == HOSTILE


def test_an_earlier_table_is_replaced_and_nothing_else(tmp_path):
    write_claims(tmp_path / "claims", judge_claims([]))
    write_claims(tmp_path / "claims", judge_claims(AGREES))
    assert "0 disagree, 1 cannot" in (tmp_path / "claims" / "claims.md").read_text()
    (tmp_path / "claims" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError):
        write_claims(tmp_path / "claims", judge_claims(AGREES))
    assert (tmp_path / "claims" / "mine.txt").read_text() == "mine"


def test_the_terminal_shows_answers_numbers_and_reasons():
    console = Console(width=160, record=True)
    finding = Finding("Fig. 2a", "COCO", "[bold]said[/]", "c", "[red]0.3", "disagrees", "so [x]")
    console.print(make_claims_table([finding]))
    shown = console.export_text()
    for text in ("[bold]said[/]", "[red]0.3", "so [x]", "disagrees", "Fig. 2a", "1 disagree,"):
        assert text in shown


def test_the_page_is_made_from_the_list():
    assert PAGE.read_text(encoding="utf-8") == make_page()
