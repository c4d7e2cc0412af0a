"""The site builds without a warning, fetches nothing, and its generated pages are current."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import cli_page
import vitscope
from page_blocks import PAGES, ROOT

FETCHED = {
    "img": ("src", "srcset"),
    "script": ("src",),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "link": ("href",),
}
"""What a browser loads by itself, by element."""
NOT_LOADED = {"canonical", "next", "prev"}
"""Links that only tell of a page."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    home = tmp_path_factory.mktemp("site")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("zensical.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, home)
    program = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [program, "build", "--strict"], cwd=home, check=False, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "arning" not in said, said
    assert "eprecat" not in said, said
    return home / "site"


class Loads(HTMLParser):
    """Collects the addresses that a page makes a browser load."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "link" and set(values.get("rel", "").split()) & NOT_LOADED:
            return
        self.addresses += [values[name] for name in FETCHED.get(tag, ()) if values.get(name)]


def test_every_page_is_in_the_site_and_loads_from_it_alone(site):
    pages = list(site.rglob("*.html"))
    built = {page.relative_to(site).with_suffix(".md").as_posix() for page in pages}
    written = {
        page.relative_to(ROOT / "docs").as_posix()
        for page in PAGES
        if ROOT / "docs" in page.parents
    }
    assert written <= built
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.addresses
        for address in loads.addresses:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} loads {address}"


def test_every_page_can_be_reached_from_the_side_bar():
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'= "([\w/-]+\.md)"', settings))
    assert listed == {
        page.relative_to(ROOT / "docs").as_posix()
        for page in PAGES
        if ROOT / "docs" in page.parents
    }


def test_styles_load_nothing_from_elsewhere(site):
    for sheet in site.rglob("*.css"):
        loaded = re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"']+)", sheet.read_text())
        assert loaded == []


def test_every_formula_is_set_without_a_network(site, chromium):
    context = chromium.new_context(offline=True)
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for name, least in (("method", 120), ("derivation", 40)):
        page.goto((site / f"{name}.html").as_uri())
        assert wrong == []
        assert page.locator(".arithmatex .katex").count() >= least
        assert page.locator(".arithmatex:not(:has(.katex))").count() == 0
    # The fonts lie beside the pages.
    assert page.evaluate("document.fonts.load('16px KaTeX_Main').then((found) => found.length)")
    context.close()


def test_every_public_name_has_its_place_in_the_reference(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    source = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = re.findall(r"^::: vitscope\.([\w.]+)$", source, re.MULTILINE)
    assert set(described) >= {*vitscope.__all__, "testing.check_adapter"}
    for name in described:
        assert f'id="vitscope.{name}"' in page, name


def test_the_command_line_page_is_what_the_program_says():
    assert cli_page.PAGE.read_text(encoding="utf-8") == cli_page.make_page()


def test_the_citation_file_has_what_the_format_asks_for():
    """The keys that the Citation File Format 1.2.0 requires, and that ours are well formed."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] in {"software", "dataset"}
    assert cited["version"] == vitscope.__version__
    paper = cited["preferred-citation"]
    assert paper.keys() >= {"type", "title", "authors"}
    for author in [*cited["authors"], *paper["authors"]]:
        assert author.keys() in ({"name"}, {"family-names", "given-names"})
    assert paper["type"] == "conference-paper"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["title"] in readme
    assert isinstance(paper["year"], int)
