"""Results show themselves: as HTML that says the summary's numbers and nothing else, as figures."""

import json
import shutil
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image

from audits import tiny_vit
from images import write_classes
from vitscope import AuditResult, Explanation, OneShotConfig, explain, one_shot
from vitscope.errors import UsageError
from vitscope.figures import FIGURES, NothingToDrawError
from vitscope.results.vocabulary import name_term

HOSTILE = "<img src=x onerror=alert(1)>&amp;\"'</td><script>alert(2)</script>"
ALLOWED = {"div", "p", "strong", "span", "table", "thead", "tbody", "tr", "th", "td"}


class Page(HTMLParser):
    """What a browser would make of a piece of HTML: tags, attributes, text, cells of tables."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows = set(), set(), "", []
        self.open = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def explanation(images):
    return explain(tiny_vit(), sorted(images.iterdir())[:2])


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory):
    folder = write_classes(tmp_path_factory.mktemp("classes"), 4)
    return one_shot(tiny_vit(), folder, OneShotConfig(draws=5, classifier="both"))


def changed(result, folder, change):
    """A copy of a result whose summary was changed."""
    shutil.copytree(result.folder, folder)
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))
    return type(result).load(folder)


def test_an_audit_shows_its_verdict_and_its_sources_with_intervals(result):
    page, summary = Page(result._repr_html_()), result.summary
    assert summary.last.verdict.text in page.text
    assert f"{summary.last.verdict.status} {summary.last.verdict.text}" not in page.text
    assert f"{summary.data.num_images} images" in page.text
    shares = summary.last.variance_share["residual"]
    terms = {name_term(term): term for term in shares}
    assert {row[0] for row in page.rows[1:]} == set(terms)
    for row in page.rows[1:]:
        term = terms[row[0]]
        told = dict(zip(page.rows[0], row, strict=True))
        low, high = shares[term].ci95
        value, half = map(float, told["variance share"].split(" ± "))
        assert value == pytest.approx(shares[term].value, abs=5e-4)
        assert half == pytest.approx((high - low) / 2, abs=5e-4)
        cka = summary.last.cka["residual"][term].unbiased
        assert float(told["CKA with r"].split(" ± ")[0]) == pytest.approx(cka, abs=5e-4)
    (skip,) = (row for row in page.rows if row[0] == "skip connection")
    assert skip[page.rows[0].index("attention")] == "–"


def test_one_shot_classification_shows_its_accuracies(accuracies):
    page, summary = Page(accuracies._repr_html_()), accuracies.summary
    patches = next(row for row in page.rows if row[1] == "patches")
    told = dict(zip(page.rows[0], patches, strict=True))
    for classifier in ("nearest", "logistic"):
        top1 = summary.accuracy[classifier]["attention"]["patches"].top1.value
        shown = told[f"top-1 {classifier}"].split()[0]
        assert float(shown) == pytest.approx(100 * top1, abs=0.05)
    assert page.rows[-1][0] == "chance"
    assert "over 5 draws" in page.text


def test_an_explanation_shows_the_verdict_on_each_image(explanation):
    page = Page(explanation._repr_html_())
    for number, (row, image) in enumerate(
        zip(page.rows[1:], explanation.summary.images, strict=True)
    ):
        assert row[:2] == [str(number), image.path]
        assert row[2].startswith(image.verdict.text)


def test_undefined_numbers_are_dashes(result, tmp_path):
    def undefine(summary):
        layer = summary["layers"][-1]
        layer["variance_share"]["residual"]["patches"] = {"value": None, "ci95": None}
        layer["cka"]["residual"]["patches"] |= {"unbiased": None, "ci95": None, "biased": None}
        undefined = dict.fromkeys(("mean", "std", "p05", "p50", "p95")) | {"n": 0}
        layer["centred_cosine"]["residual"]["patches"] = undefined

    page = Page(changed(result, tmp_path / "undefined", undefine)._repr_html_())
    patches = next(row for row in page.rows if row[0] == "patches")
    assert patches[3:] == ["–", "–", "–"]
    assert "nan" not in page.text.lower()
    assert "None" not in page.text


def test_hostile_text_is_shown_and_not_executed(result, accuracies, explanation, tmp_path):
    def poison(summary):
        summary["model"] |= {"id": HOSTILE, "notes": [HOSTILE], "dtype": HOSTILE}
        for layer in summary.get("layers", []):
            layer["verdict"]["text"] = HOSTILE
        if "dropped_classes" in summary["data"]:
            summary["data"]["dropped_classes"] = [HOSTILE]
        for image in summary.get("images", []):
            image["path"] = image["verdict"]["text"] = image["verdict"]["basis"] = HOSTILE

    for number, given in enumerate((result, accuracies, explanation)):
        page = Page(changed(given, tmp_path / str(number), poison)._repr_html_())
        assert page.tags <= ALLOWED
        assert page.attributes <= {"style", "scope"}
        assert page.text.count(HOSTILE) >= 3


def test_every_figure_of_a_result_is_drawn_or_says_what_is_missing(result, accuracies, explanation):
    drawn, missing = {}, {}
    for given in (result, accuracies, explanation):
        for name in (*FIGURES, "maps"):
            try:
                drawn[name] = given.plot(name)
            except NothingToDrawError as reason:
                missing[given.summary.KIND, name] = str(reason)
    assert len(drawn) == 16
    # A tiny random model has no high-norm tokens.
    assert "no high-norm patch tokens" in missing["audit", "high_norm_grid"]
    assert all(isinstance(figure, Figure) for figure in drawn.values())


def test_a_figure_shows_the_number_of_its_result(result):
    shares = result.summary.last.variance_share["residual"]
    stacked, _ = result.plot("variance_share").axes
    widths = {bars.get_label(): bars.patches[0].get_width() for bars in stacked.containers}
    assert widths.keys() == shares.keys()
    for term, width in widths.items():
        assert width == pytest.approx(100 * shares[term].value)


def test_a_figure_shows_itself_in_a_notebook_without_pyplot(explanation, tmp_path):
    png, size = explanation.plot("maps", image=1, heads=True)._repr_png_()
    path = tmp_path / "maps.png"
    path.write_bytes(png)
    with Image.open(path) as image:
        assert image.size == pytest.approx((2 * size["width"], 2 * size["height"]), abs=2)
        assert len(image.convert("RGB").getcolors(2**24)) > 100


def test_images_and_classifiers_that_are_not_there_are_refused(explanation, accuracies):
    with pytest.raises(UsageError, match="image 7 does not exist: expected 0 to 1"):
        explanation.plot("maps", image=7)
    with pytest.raises(NothingToDrawError):
        accuracies.plot("one_shot", classifier="nonsense")


def test_a_loaded_result_draws_as_the_one_it_was_saved_from(result, explanation, tmp_path):
    loaded = AuditResult.load(result.save(tmp_path / "audit").folder)
    assert (
        loaded.plot("layer_similarity")._repr_png_() == result.plot("layer_similarity")._repr_png_()
    )
    reopened = Explanation.load(explanation.save(tmp_path / "explanation").folder)
    assert reopened._repr_html_() == explanation._repr_html_()
