"""The report of judged maps: verdict, charts, tables, images, and no chapter without content."""

import json
import re
from html import unescape

import altair as alt
import pytest

from made_judgements import SKILLS, TITLES, write_judgement
from made_results import make_audit, write_result
from vitscope.figures.saved import load_results
from vitscope.report.page import render_report

SOME = ("attention", "centre", "rollout", "legrad", "traced")
AUDITED = ("verdict", "sources", "layers", "tokens", "images")


class Page:
    """Text, headings, tables and data of a page."""

    def __init__(self, html):
        self.html = html
        self.sections = re.findall(r'<section id="(\w+)"', html)
        found = re.findall(r'<script type="application/json" id="(.+?)">(.*?)</script>', html)
        self.data = {name: json.loads(text) for name, text in found}
        visible = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S)
        self.text = " ".join(unescape(re.sub(r"<[^>]+>", " ", visible)).split())

    def section(self, key):
        return self.html.split(f'<section id="{key}"')[1].split("</section>")[0]

    def rows_below(self, heading):
        """The rows of the table below a heading."""
        table = self.html.split(heading)[1].split("</table>")[0]
        cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>"))
        return {unescape(row[0]): row[1:] for row in cells if row}


def render(*folders):
    return Page(render_report(load_results(folders)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("judged") / "result"
    return write_judgement(made, maps=SOME, masks=True, sanity=True)


@pytest.fixture(scope="module")
def page(folder):
    return render(folder)


def test_a_report_of_judgements_alone_has_no_other_chapters(page, tmp_path):
    assert page.sections == ["judged", "gallery", "definitions", "origin"]
    assert "Which map may be published?" in page.section("judged")
    assert "attention maps be believed" not in page.text
    assert "Nothing to show" not in page.text
    links = set(re.findall(r'href="#([\w-]+)"', page.html))
    ids = set(re.findall(r'\bid="([\w-]+)"', page.html))
    assert links <= ids
    defined = {"skill", "removals", "sanity", "plausibility", "interval", "maps"}
    assert {name for name in ids if name.startswith("def-")} == {f"def-{key}" for key in defined}
    audited = render(write_result(tmp_path / "audit", *make_audit(n=40)))
    assert "judged" not in audited.sections
    assert set(AUDITED) <= set(audited.sections)


def test_beside_an_audit_both_are_told(folder, tmp_path):
    write_result(tmp_path / "audit", *make_audit(n=40))
    page = render(folder, tmp_path / "audit")
    assert page.sections[:3] == ["verdict", "judged", "sources"]
    assert page.html.count("<h1>") == 1
    assert "Can these attention maps be believed?" in page.section("verdict")


def test_the_card_says_which_map_to_publish_and_on_what_that_rests(page, tmp_path):
    card = page.section("judged").split("<article")[1].split("</article>")[0]
    assert 'class="card-verdict good"' in card
    assert "Publish Traced: skill 0.92 ± 0.13." in card
    assert "50 images, 224 x 224 px, target self, compared with 40 images (given)" in card
    assert "0.79 to 1.05" in card
    assert "skill of Attention" in card
    assert "skill of Random orders" in card  # the best of the baselines
    assert "skill of Distance from the centre" not in card
    unsure = render(write_judgement(tmp_path / "result", 0, maps=SOME, best=None))
    assert 'class="card-verdict unknown"' in unsure.section("judged")


def test_charts_hold_every_skill_and_every_curve(page):
    charts = {key: spec for key, spec in page.data["charts"].items() if key.startswith("map-")}
    assert len([key for key in charts if key.startswith("map-scores/")]) == 2
    assert len([key for key in charts if key.startswith("map-curves/")]) == 4
    rows = charts["map-scores/0"]["data"]["values"]
    assert {row["term"]: row["value"] for row in rows} == pytest.approx(
        {name: SKILLS[name] for name in SOME}
    )
    curves = charts["map-curves/0"]["data"]["values"]
    assert len(curves) == 17 * (len(SOME) + 2)
    assert {row["role"] for row in curves if row["term"] == "traced"} == {"Traced (best)"}
    assert {row["role"] for row in curves if row["term"] in {"legrad", "centre"}} == {"other maps"}
    for spec in charts.values():
        alt.Chart.from_dict(spec, validate=True)


def test_every_score_stands_in_a_table_for_each_removal(page):
    rows = page.rows_below("<h4>Removal shuffle</h4>")
    assert list(rows)[:3] == ["map", "Oracle", "Traced"]
    assert rows["Traced"][:2] == ["0.92 ± 0.13", "0.83 ± 0.13"]
    assert "better: 0.63 ± 0.02" in rows["Traced"]
    assert page.rows_below("<h4>Removal drop</h4>")["Traced"][0] == "0.46 ± 0.13"


def test_sanity_says_what_is_alarming_and_plausibility_stands_apart(page, tmp_path):
    told = {name: row[-1] for name, row in page.rows_below("Do maps depend on the model").items()}
    assert told["Attention rollout"] == "weights and target"
    assert told["Attention"] == "target"
    assert told["Traced"] == told["Distance from the centre"] == "–"
    of_masks = page.rows_below("<h4>Do maps lie on the objects of the masks?</h4>")
    assert of_masks["Traced"][0] == "0.73 ± 0.10"
    assert page.section("judged").count("This does not speak of the model") == 1
    assert "masks cover 24.0 % of the image" in page.text
    plain = render(write_judgement(tmp_path / "result", 0, maps=SOME))
    assert "Do maps depend" not in plain.text
    assert "Do maps lie" not in plain.text


def test_kept_images_have_their_maps_with_skill_the_best_first(page):
    (gallery,) = page.data["images-data"]["galleries"]
    assert gallery["label"] == "DINOv2 S, judged"
    assert gallery["sort"] == "skill_traced"
    first, second = gallery["images"]
    assert next(iter(first["maps"])) == "traced"
    assert set(first["maps"]) == set(SOME)
    assert first["scores"]["legrad"] == f"skill {SKILLS['legrad']:.2f}"
    assert second["scores"]["traced"] == "skill 0.93"
    numbers = dict(zip(gallery["columns"], second["numbers"], strict=True))
    assert numbers["skill_attention"] == pytest.approx(SKILLS["attention"] + 0.01)


def test_judgements_of_different_targets_share_no_chart_but_each_has_its_table(folder, tmp_path):
    other = write_judgement(tmp_path / "result", 0, maps=SOME, target="cosine", size="B")
    page = render(folder, other)
    scores = page.html.split('<figure id="map-scores"')[1].split("</figure>")[0]
    assert "its results differ in what their maps explain" in scores
    assert page.html.count("<h4>Removal shuffle</h4>") == 2
    assert "DINOv2 S: target self; DINOv2 B (target cosine): target cosine" in page.text


def test_all_titles_of_many_maps_are_there(tmp_path):
    page = render(write_judgement(tmp_path / "result", 1, masks=True, sanity=True))
    assert all(title in page.text for title in TITLES.values())
