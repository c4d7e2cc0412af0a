"""The page from results of every kind: what it says, leaves out, and where it may be written."""

import json
import math
import re
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import numpy as np
import pyarrow as pa
import pytest

from audits import tiny_vit
from images import write_images
from made_results import hold_audit, make_audit, make_one_shot, write_all, write_result
from vitscope import AuditConfig, audit
from vitscope.cli import main
from vitscope.errors import ResultError, UsageError
from vitscope.figures.image_numbers import R2
from vitscope.figures.intervals import write_interval
from vitscope.figures.saved import load_results
from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import CkaEstimate as Cka
from vitscope.metrics.jackknife import Estimate
from vitscope.report import write_report
from vitscope.report.chapters import make_chapter, read_words
from vitscope.report.columns import collect_numbers, count_bins, describe_column
from vitscope.report.embedded_images import collect_images
from vitscope.report.page import rename_clips, render_report
from vitscope.results.schema_numbers import CovariateSummary, Measured

DEFINITIONS = read_words("definitions.toml")


class Page(HTMLParser):
    """Ids, links, visible text, and the data of a page."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.texts, self.data, self._inside = [], [], [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        if tag in {"script", "style"}:
            self._inside = found.get("id", tag)

    def handle_endtag(self, tag):
        if tag in {"script", "style"}:
            self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.texts.append(data)
        else:
            self.data[self._inside] = data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("made"), ["DINOv2", "DINOv2 with registers"], n=60)


@pytest.fixture(scope="module")
def page(made):
    return Page(render_report(load_results([made])))


def render(folder, summary, columns=None):
    write_result(folder, summary, columns)
    return Page(render_report(load_results([folder])))


def test_every_figure_links_to_its_definition(page):
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert {f"def-{key}" for key in DEFINITIONS} <= set(page.ids)


def test_definitions_say_what_the_numbers_do():
    assert "no such tokens are found, and the largest part" in DEFINITIONS["high-norm"]["text"]
    assert "one of the verdict's two readings" in DEFINITIONS["cka"]["text"]
    assert "divided by the attention mass that is kept" in DEFINITIONS["readouts"]["text"]


def test_definitions_are_those_of_the_method():
    """The terms that both have are called the same."""
    method = (Path(__file__).parents[2] / "docs" / "method.md").read_text()
    for term in (
        *("Variance share", "Linear CKA", "High-norm patch tokens", "Register anatomy"),
        *(
            "attention_mass",
            "patch_share",
            "contribution_norm",
            "centred_share",
            "layer_similarity",
        ),
    ):
        assert term.lower().replace("_", " ") in method.lower().replace("_", " ")
        titles = [one["title"].lower() for one in DEFINITIONS.values()]
        known = (
            term.lower().replace("_", " ").replace("contribution norm", "length of a contribution")
        )
        assert known in titles


def test_charts_hold_the_numbers_of_the_results(page, made):
    charts = json.loads(page.data["charts"])
    specs = [spec for key, spec in charts.items() if key.startswith("variance-share/")]
    rows = [row for row in _rows_of(specs) if "term" in row]
    found = {(row["model"], row["term"]): row["value"] for row in rows}
    for result in load_results([made / "audits"]):
        for term, share in result.audit.last.variance_share["residual"].items():
            assert found[result.label, term] == pytest.approx(share.value)


def test_every_number_of_a_figure_is_on_its_charts_and_in_its_table(made):
    results = load_results([made])
    chapters = ("sources", "layers", "tokens", "images")
    figures = [figure for chapter in chapters for figure in make_chapter(chapter, results)]
    for figure in (one for one in figures if one.key != "distribution"):  # drawn by the page
        shown = (
            {"norm"} if figure.key == "anatomy" else {point.panel for point in figure.data.points}
        )
        points = [p for p in figure.data.points if p.panel in shown and p.x != R2]
        rows = [row for row in _rows_of([chart.spec for chart in figure.charts]) if "told" in row]
        numbers = [
            (p.model.label, p.term, p.number.value, p.number.low, p.number.high) for p in points
        ]
        drawn = [tuple(row[k] for k in ("model", "term", "value", "low", "high")) for row in rows]
        assert Counter(drawn) == Counter(numbers), figure.key
        cells = Counter(cell for row in figure.table.sections[0] for cell in row)
        told = Counter(write_interval(p.number, percent=figure.data.percent) for p in points)
        assert all(sum(n for c, n in cells.items() if c.endswith(t)) >= n for t, n in told.items())


def _rows_of(tree):
    """Every row of data in a specification, whatever layer has it."""
    if isinstance(tree, list):
        return [row for item in tree for row in _rows_of(item)]
    if not isinstance(tree, dict):
        return []
    own = [tree] if "value" in tree and "told" in tree else []
    return own + [row for value in tree.values() for row in _rows_of(value)]


def test_charts_are_what_vega_lite_takes(page):
    charts = json.loads(page.data["charts"]).values()
    for spec in {_outline(spec | {"data": {}}): spec for spec in charts}.values():
        alt.Chart.from_dict(spec)


def _outline(tree):
    """What a specification is but for its numbers, sentences, and how many there are of each."""
    if isinstance(tree, dict):
        return frozenset((key, _outline(value)) for key, value in tree.items())
    if isinstance(tree, list):
        return frozenset(map(_outline, tree))
    return tree if isinstance(tree, str) and tree.isidentifier() else type(tree)


def test_numbers_of_one_shot_stand_beside_those_of_the_audit(page):
    assert "Do the classes survive? (nearest classifier)" in page.text
    charts = json.loads(page.data["charts"])
    rows = _rows_of([spec for key, spec in charts.items() if key.startswith("one-shot-0/")])
    assert {row["told"] for row in rows if row["term"] == "chance"} == {"1.0 %"}


def test_a_model_stands_with_its_sizes_and_alone_with_its_bars(tmp_path, page):
    several = json.loads(page.data["charts"])
    assert "parameters (millions)" in json.dumps(several["variance-share/0"])
    alone = write_result(tmp_path / "one", *make_audit())
    single = json.loads(Page(render_report(load_results([alone]))).data["charts"])
    assert "parameters" not in json.dumps(single["variance-share/0"])


def test_models_whose_number_of_parameters_is_not_known_stand_with_their_bars(tmp_path):
    summary, columns = make_audit(n=60)
    unknown = replace(summary, model=replace(summary.model, num_params=0))
    page = Page(render_report(load_results([write_result(tmp_path / "r", unknown, columns)])))
    charts = json.loads(page.data["charts"])
    assert {"variance-share/0", "attention/0", "norms/0", "cka-residual/0"} <= charts.keys()


def test_what_is_missing_is_said_in_words(tmp_path):
    summary, columns = make_audit(n=60)
    undefined = Estimate(math.nan, None)
    layer = replace(
        summary.last,
        variance_share={total: {"patches": undefined} for total in ("attention", "residual")},
        anatomy=None,
    )
    empty = CovariateSummary(distributions={}, correlations={}, regressions={})
    bare = replace(summary, layers=(layer,), layer_similarity=(), covariates=empty)
    page = render(tmp_path / "r", bare, columns)
    assert page.text.count("Nothing to show:") >= 4
    assert "its variance shares are undefined" in page.text
    assert "No images were kept with their maps" in page.text


def test_without_an_audit_what_only_audits_have_is_left_out(tmp_path):
    write_result(tmp_path / "r", make_one_shot("DINOv2", "S", 22.1))
    page = Page(render_report(load_results([tmp_path])))
    assert "Nothing to show" not in page.text
    assert "sources" in page.ids
    assert not {"layers", "tokens", "images"} & set(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "so there is no verdict" in page.text


def undefine(tree):
    """The same with no number defined that may be undefined."""
    if isinstance(tree, Distribution):
        return Distribution(*[math.nan] * 5, 0)
    if isinstance(tree, Measured):
        return tree
    if isinstance(tree, Estimate):
        return Estimate(math.nan, None)
    if isinstance(tree, Cka):
        return Cka(math.nan, math.nan, None, math.nan)
    if is_dataclass(tree):
        named = {field.name: getattr(tree, field.name) for field in fields(tree)}
        return replace(tree, **{name: undefine(value) for name, value in named.items()})
    if isinstance(tree, dict):
        return {name: undefine(value) for name, value in tree.items()}
    return tuple(map(undefine, tree)) if isinstance(tree, tuple) else tree


def test_undefined_numbers_never_reach_a_chart(tmp_path):
    summary, columns = make_audit(n=60)
    page = render(tmp_path / "r", undefine(summary), columns)
    for kind in ("charts", "images-data"):
        assert "NaN" not in page.data[kind]
        json.loads(page.data[kind], parse_constant=lambda name: pytest.fail(name))
    whole = hold_audit(n=60)
    ckas = whole.audit.last.cka["residual"]
    model = whole.change_last(
        {term: replace(cka, biased=math.nan) for term, cka in ckas.items()}, "cka", "residual"
    )
    [figure] = [one for one in make_chapter("sources", [model]) if one.key == "cka-residual"]
    rows = _rows_of([chart.spec for chart in figure.charts])
    assert {row["floor"] for row in rows} == {cka.biased_if_unrelated for cka in ckas.values()}
    assert not any("biased" in row for row in rows)


def test_hostile_text_is_shown_as_text(tmp_path):
    hostile = "</script><b>"
    summary, columns = make_audit(n=30)
    names = dict.fromkeys(("id", "recipe", "size", "dtype"), hostile)
    verdict = replace(summary.last.verdict, text=hostile)
    summary = replace(
        summary,
        model=replace(summary.model, notes=(hostile,), **names),
        layers=(replace(summary.last, verdict=verdict),),
    )
    page = render(tmp_path / "r", summary, columns)
    assert "<b>" not in page.data["charts"] + page.data["images-data"]
    assert set(page.data) == {"style", "charts", "images-data", "script"}
    assert page.text.count(hostile) == page.text.count("<b>") > 0


def test_a_result_without_table_is_refused(tmp_path):
    folder = write_result(tmp_path / "r", make_audit(n=20)[0])
    with pytest.raises(ResultError, match=r"images\.parquet cannot be read"):
        render_report(load_results([folder]))


def test_one_shot_alone_has_no_verdict(tmp_path):
    page = render(tmp_path / "r", make_one_shot())
    assert "so there is no verdict on attention maps over a set of images" in page.text
    assert "Do the classes survive?" in page.text


def test_images_that_do_not_fit_are_left_out_and_counted(tmp_path):
    folder = write_images(tmp_path / "images", 12)
    result = audit(tiny_vit(), folder, AuditConfig(gallery=10), out=tmp_path / "r")
    results = load_results([result.folder])
    whole = collect_images(results)["galleries"][0]
    assert len(whole["images"]) == 10
    assert "10 of 12 images" in whole["note"]
    few = collect_images(results, max_bytes=4000)["galleries"][0]
    assert 0 < len(few["images"]) < 10
    assert [p["id"] for p in few["images"]] == [
        p["id"] for p in whole["images"][: len(few["images"])]
    ]
    left = 10 - len(few["images"])
    assert f"{left} of them are left out" in few["note"]
    rows = {row["image_id"]: row for row in result.images.to_pylist()}
    for image in whole["images"]:
        numbers = dict(zip(whole["columns"], image["numbers"], strict=True))
        for name, value in numbers.items():
            assert value == pytest.approx(rows[image["id"]][name], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("centred_share_patches", "Centred share: patches"),
        ("centred_cosine_residual_cls", "Centred cosine with r: [CLS] itself"),
        ("contribution_norm_residual_total", "Length of contribution: residual stream (r)"),
        ("layer_similarity_07", "Layer similarity: depth 7"),
        ("covariate_edge_density", "Image: Edge density"),
        ("covariate_entropy", "Image: Entropy (bits)"),
        ("token_norm_register_2", "Norm: register 2"),
        ("patch_share", "Attention: Patch share"),
        ("something_new", "Other: something new"),
    ],
)
def test_columns_are_told_in_words(name, words):
    column = describe_column(name)
    assert f"{column.group}: {column.label}" == words
    assert bool(column.description) == (name != "something_new")


def test_numbers_that_are_the_same_for_every_image_are_left_out():
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "path": ["a", "b", "c"],
            "image_id": ["1", "2", "3"],
            "share_patches": random.normal(size=3),
            "share_skip": [math.nan, 1.0, 2.0],
            "contribution_norm_bias": [38.7, 38.7 + 1e-6, 38.7],
            "cosine_attention_cls": [math.nan] * 3,
        }
    )
    numbers = collect_numbers(table)
    assert [column.name for column in numbers.columns] == ["share_patches", "share_skip"]
    assert numbers.rows == {"1": 0, "2": 1, "3": 2}


def test_bins_count_every_defined_image_once():
    values = np.concatenate([np.random.default_rng(1).normal(size=500), [math.nan] * 7])
    bins = count_bins(values)
    assert sum(bins["counts"]) == bins["n"] == 500
    edges = bins["start"] + bins["step"] * np.arange(len(bins["counts"]) + 1)
    assert edges[0] == np.nanmin(values)
    assert edges[-1] == pytest.approx(np.nanmax(values))
    inside = (values >= edges[3]) & (values < edges[4])
    assert bins["counts"][3] == inside.sum()
    assert bins["p50"] == pytest.approx(np.nanmedian(values))


# --- where it is written -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A result whose report is soon made."""
    return write_result(tmp_path_factory.mktemp("quick") / "r", make_one_shot())


def test_a_report_is_written_whole_and_replaces_nothing_but_a_report(quick, tmp_path):
    out = write_report([quick], tmp_path / "deep" / "report.html")
    html = out.read_text(encoding="utf-8")
    assert html.endswith("</html>") or html.endswith("</html>\n")
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", html.split("<script")[0])
    with pytest.raises(UsageError, match="already there"):
        write_report([quick], out)
    with pytest.raises(UsageError, match="nothere is not a result and holds none"):
        write_report([tmp_path / "nothere"], out)
    assert write_report([quick], out, overwrite=True) == out
    out.write_text(html.replace("Can these", "MY NOTES: can these"), encoding="utf-8")
    with pytest.raises(UsageError, match="it has not been changed since"):
        write_report([quick], out, overwrite=True)
    assert "MY NOTES" in out.read_text(encoding="utf-8")
    thesis = tmp_path / "thesis.html"
    thesis.write_text("<p>mine</p>")
    with pytest.raises(UsageError, match="is not replaced"):
        write_report([quick], thesis, overwrite=True)
    assert thesis.read_text() == "<p>mine</p>"
    with pytest.raises(UsageError, match="is a folder"):
        write_report([quick], tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "thesis.html"]


def test_nothing_is_left_where_a_result_is_damaged(tmp_path):
    folder = write_result(tmp_path / "r", make_audit(n=20)[0])
    with pytest.raises(ResultError):
        write_report([folder], tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_it_and_says_where(quick, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(quick), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert main(["report", str(quick), "--out", str(out)]) == 2
    assert "already there" in capsys.readouterr().err
    assert main(["report", "--out", str(out)]) == 2
    assert "RESULTS requires an argument" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none"), "--out", str(tmp_path / "b.html")]) == 2


def test_still_charts_do_not_share_clip_paths_with_live_ones():
    """Both number them from 1, and of two elements of one id a browser takes the first."""
    drawn = '<g clip-path="url(#clip1)"/><clipPath id="clip1"/><g id="clipped by name"/>'
    renamed = rename_clips(drawn)
    assert 'url(#static-clip1)"/><clipPath id="static-clip1"/>' in renamed
    assert 'id="clip1"' not in renamed
