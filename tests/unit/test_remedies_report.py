"""The report of compared remedies: tables, chart, maps before and after, hostile names."""

import json
import re
from dataclasses import replace
from html import unescape
from io import StringIO

import altair as alt
import pytest
from rich.console import Console

from made_judgements import write_judgement
from made_remedies import EDITS, make_remedies, write_comparison
from made_results import make_audit, write_result
from vitscope.figures.saved import load_results
from vitscope.report.page import render_report
from vitscope.results.remedy_result import RemedyResult
from vitscope.terminal import make_report

GALLERIES = [(0, 1, 2, 3), (1, 3, 5), (2, 1), ()]
"""Images in the galleries of the original and of the three edits."""


def read_data(html, key):
    (found,) = re.findall(rf'<script type="application/json" id="{key}">(.*?)</script>', html)
    return json.loads(found)


def read_section(html, key):
    return html.split(f'<section id="{key}"')[1].split("</section>")[0]


def list_rows(html):
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in html.split("<tr>")]
    return [[unescape(cell) for cell in row] for row in rows if row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_comparison(tmp_path_factory.mktemp("remedies") / "result", GALLERIES)


@pytest.fixture(scope="module")
def alone(folder):
    return render_report(load_results([folder / "comparison"]))


def test_a_comparison_alone_has_its_tables_and_no_empty_chapter(alone):
    assert re.findall(r'<section id="(\w+)"', alone) == [
        *("remedies", "gallery", "definitions", "origin")
    ]
    assert "Which remedy helps this model?" in alone
    assert "Nothing to show" not in alone
    links = set(re.findall(r'href="#([\w-]+)"', alone))
    ids = set(re.findall(r'\bid="([\w-]+)"', alone))
    assert links <= ids
    assert {f"def-{key}" for key in ("edits", "high-norm-images", "price")} <= ids


def test_every_edit_has_its_sentence_and_its_numbers_before_and_after(alone):
    told = read_section(alone, "remedies").split('<div class="remedies">')[1]
    overview, *edits = told.split("<article>")
    rows = {row[0]: row for row in list_rows(overview)}
    assert list(rows) == ["edit", "made/dinov2-with-registers-s", *EDITS]
    zeroed = dict(zip(rows["edit"], rows["zero:tokens=registers"], strict=True))
    assert zeroed["patches' share"] == "+0.05 ± 0.03"
    assert zeroed["CKA(r, patches)"] == "−0.31 ± 0.03"
    assert zeroed["cos(f, f′)"] == "0.42 ± 0.01"
    assert zeroed["one-shot top-1"] == "−0.25 ± 0.03"
    assert zeroed["skill of attention"] == "+0.30 ± 0.03"
    assert len(edits) == len(EDITS)
    (found,) = [edit for edit in edits if "<h4>mean:tokens=registers</h4>" in edit]
    assert "Cleaner: high-norm patches 2.2 % → 2.2 % (0.0 ± 0.3 %); truer: " in found
    numbers = {row[0]: row[1:] for row in list_rows(found)}
    assert numbers["patches' variance share"] == ["0.31 ± 0.02", "0.43 ± 0.02", "+0.12 ± 0.03"]
    assert numbers["high-norm patches, depth 8"] == ["2.1 ± 0.2 %", "2.1 ± 0.2 %", "0.0 ± 0.3 %"]
    assert numbers["Spearman of maps"] == ["–", "0.87 ± 0.02", "–"]
    assert numbers["image verdicts changed"] == ["–", "12.5 ± 2.0 %", "–"]
    assert numbers["cos(f, f′)"] == ["–", "0.91 ± 0.01", "–"]
    lost = ["0.30 ± 0.02", "0.05 ± 0.02", "−0.25 ± 0.03"]
    assert numbers["one-shot top-1, patches alone"] == lost
    assert numbers["skill of LeGrad, best before"][0] == "0.40 ± 0.02"
    assert numbers["skill of Attention, best after"][1] == "0.50 ± 0.02"
    assert "The original alone has: Frozen trace." in found
    for told in ("20 classes, 60 images, 100 draws, chance 0.05", 'href="#def-skill"'):
        assert told in overview


def test_the_chart_has_each_number_of_each_edit(alone):
    spec = read_data(alone, "charts")["changes/0"]
    found = {(row["x"], row["number"]): row["value"] for row in spec["data"]["values"]}
    assert len(found) == 4 * len(EDITS)
    assert found["test-time-registers", "high-norm images"] == pytest.approx(-0.21)
    assert found["zero:tokens=registers", "cos(f, f′) − 1"] == pytest.approx(-0.58)
    alt.Chart.from_dict(spec, validate=True)


def test_an_image_has_the_map_of_the_original_beside_those_of_the_edits_that_have_it(alone):
    (gallery,) = read_data(alone, "images-data")["galleries"]
    assert gallery["side_by_side"]
    assert gallery["label"] == "DINOv2 with registers S, before and after"
    assert "3 of the 4 images in the original’s gallery" in gallery["note"]
    assert "5 maps are missing" in gallery["note"]
    found = {
        image["name"]: {one["title"]: one["scale"][0] for one in image["maps"].values()}
        for image in gallery["images"]
    }
    first, second, _ = EDITS
    assert found == {
        "1.png": {"original": 11, first: 21, second: 31},
        "2.png": {"original": 12, second: 32},
        "3.png": {"original": 13, first: 23},
    }
    assert {next(iter(image["maps"])) for image in gallery["images"]} == {"first"}


def test_beside_its_audits_the_maps_before_and_after_come_first(folder):
    html = render_report(load_results([folder / "original", folder / "comparison"]))
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections[:3] == ["verdict", "remedies", "sources"]
    galleries = read_data(html, "images-data")["galleries"]
    assert [one["side_by_side"] for one in galleries] == ["Attention", ""]


def test_a_comparison_without_its_audits_says_that_it_has_no_maps(folder, tmp_path, alone):
    said = "There are no maps to show: the audits are not beside the comparison"
    assert said not in alone
    (tmp_path / "moved").mkdir()
    for file in (folder / "comparison").iterdir():
        (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    moved = render_report(load_results([tmp_path / "moved"]))
    assert said in moved
    assert read_data(moved, "images-data")["galleries"] == []


def test_audits_that_the_comparison_does_not_name_are_shown_only_if_they_are_given(tmp_path):
    folder = write_comparison(tmp_path / "result", [(), (), ()], edits=["skip", "zero"])
    own = RemedyResult(folder / "comparison").summary.model.id
    for name, model_id in (("03-mean", f"{own}+mean"), ("04-mine", "mine"), ("mine", f"{own}+x")):
        audit, columns = make_audit("DINOv2 with registers", registers=4, n=40)
        audit = replace(audit, model=replace(audit.model, id=model_id))
        write_result(folder / name, audit, columns)
    found = [one.folder.name for one in load_results([folder])]
    expected = ["01-edit", "02-edit", "04-mine", "comparison", "mine", "original"]
    assert sorted(found) == expected
    found = [one.folder.name for one in load_results([folder, folder / "03-mean"])]
    assert sorted(found) == sorted([*expected, "03-mean"])


def test_beside_a_judgement_both_are_told(folder, tmp_path):
    judged = write_judgement(tmp_path / "judged", 1, maps=("attention", "traced"))
    html = render_report(load_results([folder / "comparison", judged]))
    assert re.findall(r'<section id="(\w+)"', html)[:3] == ["judged", "remedies", "gallery"]
    assert html.count("<h1>") == 1


def test_hostile_edits_are_text(tmp_path):
    edit = "</script><script>window.pwned=1</script><b>bold</b>"
    folder = write_comparison(tmp_path / "result", [(0,), (0,)], edits=[edit])
    html = render_report(load_results([folder / "comparison"]))
    assert "<script>window" not in html
    assert "<b>bold" not in html
    assert "&lt;b&gt;bold" in read_section(html, "remedies")
    (image,) = read_data(html, "images-data")["galleries"][0]["images"]
    assert [one["title"] for one in image["maps"].values()] == ["original", edit]


def test_the_overview_shows_every_edit_and_number_in_80_columns():
    console = Console(width=80, record=True, file=StringIO())
    summary = make_remedies()
    console.print(make_report(summary))
    table = console.export_text().rpartition(" edit ")[2]
    told = "".join(table.partition("First row")[0].split())
    for one in summary.remedies:
        *_, last = one.edit.split(":")
        assert last[-6:] in told
    assert told.count("1.02") == len(summary.remedies)  # time, the last column
