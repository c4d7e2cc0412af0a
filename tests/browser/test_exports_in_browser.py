"""What is taken out of the report: charts as files, tables as CSV and for a spreadsheet."""

import csv
import io
import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert
from PIL import Image

from audits import tiny_vit
from browser_pages import DESKTOP, opened
from images import write_images
from vitscope import AuditConfig, AuditResult, audit, write_report
from vitscope.adapters.timm import make_timm_adapter
from vitscope.testing.tiny_timm import TINY_TIMM

HOSTILE_MODEL = "=1+</script><b>"
HOSTILE_IMAGE = "<img src=x onerror=\"window.pwned='name'\">.png"
PRIVATE = re.compile(r"var\(|light-dark")
LABELS = "all => all.map(one => one.getAttribute('aria-label'))"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two audits of images in two folders, one of them not readable."""
    images = tmp_path_factory.mktemp("images")
    write_images(images / "a", 6)
    write_images(images / "b", 6, start=6)
    (images / "b" / "0011.png").rename(images / "b" / HOSTILE_IMAGE)
    (images / "b" / "broken.png").write_bytes(b"no image")
    folder = tmp_path_factory.mktemp("results")
    audit(tiny_vit(), images, AuditConfig(gallery=4), out=folder / "registers")
    hostile = make_timm_adapter(TINY_TIMM["dinov2"](), model_id=HOSTILE_MODEL)
    audit(hostile, images, AuditConfig(gallery=4), out=folder / "hostile")
    return folder


@pytest.fixture(scope="module")
def report(results, tmp_path_factory, shipped_drawing):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vl_convert, "vegalite_to_svg", shipped_drawing)
        return write_report([results], tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(chromium, report):
    """The report on a dark screen."""
    with opened(chromium, report, colours="dark") as watched:
        yield watched.page
        assert watched.complaints == []
        assert watched.requests == []
        assert watched.page.evaluate("window.pwned") is None


def download(page, button):
    with page.expect_download() as found:
        button.click()
    return found.value.suggested_filename, Path(found.value.path())


def wait_for_address(page, words):
    page.wait_for_url(lambda url: words in url)


def rows_of(path):
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def test_a_chart_is_saved_as_svg_and_png_in_light_colours(page):
    panel = page.locator("#variance-share .panel")
    name, path = download(page, panel.get_by_role("button", name="SVG"))
    assert name == "variance-share-side-by-side.svg"
    text = path.read_text(encoding="utf-8")
    assert not PRIVATE.search(text)
    assert "rgb(51, 34, 136)" in text  # the first model's colour on white, though the page is dark
    drawn = "".join(ElementTree.fromstring(text).itertext())
    assert "Where does the output come from? side by side" in drawn
    assert "tiny/dinov2_reg" in drawn
    assert "patches" in drawn
    name, path = download(page, panel.get_by_role("button", name="PNG"))
    assert name == "variance-share-side-by-side.png"
    image = Image.open(path).convert("RGB")
    assert image.width == 3 * panel.locator("svg").evaluate("svg => svg.width.baseVal.value")
    colours = {colour for _, colour in image.getcolors(2**24)}
    assert {(255, 255, 255), (51, 34, 136)} <= colours


def test_every_chart_can_be_saved_whatever_its_model_is_called(page):
    panels = page.locator(".panel:not([hidden])")
    for panel in panels.filter(has_text="</script>").all()[:2]:
        name, path = download(page, panel.get_by_role("button", name="SVG"))
        assert re.fullmatch(r"[\w.-]+\.svg", name)
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert panels.get_by_role("button", name="SVG").count() == panels.count()
    assert panels.get_by_role("button", name="PNG").count() == panels.count()


def test_a_table_is_saved_with_a_cell_for_each_number(page, results):
    figure = page.locator("#variance-share")
    figure.locator("details").evaluate("details => details.open = true")
    name, path = download(page, figure.get_by_role("button", name="CSV"))
    assert name == "variance-share.csv"
    head, *rows = rows_of(path)
    assert head[:4] == ["model", "patches", "patches low", "patches high"]
    row = next(dict(zip(head, row, strict=True)) for row in rows if row[0] == "tiny/dinov2_reg")
    shares = AuditResult.load(results / "registers").summary.last.variance_share["residual"]
    told = [float(row[f"patches{part}"]) for part in ("", " low", " high")]
    assert told == pytest.approx([shares["patches"].value, *shares["patches"].ci95], rel=1e-5)
    assert {row[0] for row in rows} == {"tiny/dinov2_reg", f"'{HOSTILE_MODEL}"}


def test_marks_of_numbers_are_in_a_cell_of_their_own(page):
    figure = page.locator("#covariates")
    figure.locator("details").evaluate("details => details.open = true")
    head, *rows = rows_of(download(page, figure.get_by_role("button", name="CSV"))[1])
    assert {row[head.index("patches note")] for row in rows} <= {"●", "○", ""}
    assert all(float(row[head.index("patches")]) <= 1 for row in rows)


def test_a_table_is_copied_for_a_spreadsheet(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    figure = page.locator("#norms")
    figure.locator("details").evaluate("details => details.open = true")
    figure.get_by_role("button", name="Copy").click()
    figure.get_by_text("Copied").wait_for()
    head, *rows = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert head.startswith("model\tpatches\tpatches low\tpatches high\t")
    assert all(row.count("\t") == head.count("\t") for row in rows)


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("-0.5", "-0.5"), ('a "b", c', '"a ""b"", c"'), ("@x\ny", '"\'@x\ny"')],
)
def test_no_cell_runs_in_a_spreadsheet(page, text, cell):
    page.evaluate("text => document.querySelector('#norms tbody th').replaceChildren(text)", text)
    figure = page.locator("#norms")
    figure.locator("details").evaluate("details => details.open = true")
    _, path = download(page, figure.get_by_role("button", name="CSV"))
    assert path.read_bytes().decode().split("\r\n", 1)[1].startswith(f"{cell},")


def test_a_map_is_saved_alone_and_over_its_image(page, results):
    gallery = AuditResult.load(results / "hostile").gallery
    page.locator("#gallery-model").select_option(label=HOSTILE_MODEL)
    page.locator(".card", has_text=re.compile(r"\d{4}\.png")).first.click()
    image = page.locator("#view-name").inner_text()
    places = {one.path.rsplit("/", 1)[-1]: k for k, one in enumerate(gallery.images)}
    one = gallery.read_maps(places[image])
    page.locator("#view-map").select_option(value="contribution_norm")
    page.locator("#view-mix").fill("40")
    shown = {}
    for words, end in (("Map as PNG", ""), ("Overlay as PNG", "-overlay")):
        name, path = download(page, page.get_by_role("button", name=words))
        title = one.maps["contribution_norm"].about.title.replace(" ", "-")
        assert name == f"{image.removesuffix('.png')}-{title}{end}-1-script-b.png"
        with Image.open(path) as saved:
            shown[end] = np.asarray(saved.convert("RGB")).astype(float)
        height, width = one.image.shape[:2]
        assert shown[end].shape == (3 * height, 3 * width, 3)
    side = 3 * one.image.shape[0] // one.grid[0]
    patches = shown[""].reshape(one.grid[0], side, one.grid[1], side, 3)
    assert (np.ptp(patches, axis=(1, 3)) == 0).all()
    brightest = patches[:, 0, :, 0, :2].sum(axis=-1)  # cividis grows in red and green
    assert brightest.argmax() == one["contribution_norm"].argmax()
    large = one.image.repeat(3, axis=0).repeat(3, axis=1)
    mixed = 0.6 * large + 0.4 * shown[""]
    assert np.abs(shown["-overlay"] - mixed).mean() < 0.5 * np.abs(large - mixed).mean()
    page.keyboard.press("Escape")


def test_a_verdict_is_cited_with_its_numbers(page, results):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    card = page.locator(".card-verdict").filter(has_text="tiny/dinov2_reg")
    card.get_by_text("Cite this verdict").click()
    for name in ("Sentence", "BibTeX", "Model card"):
        button = card.get_by_role("button", name=f"Copy: {name}")
        button.click()
        button.filter(has_text="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == card.locator(f"pre[data-name^='{name}']").text_content()
        assert "12 images" in copied


def test_the_address_opens_the_same_gallery_and_image(page, results):
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg")
    page.locator("#gallery-sort").select_option(value="patch_share")
    page.locator("#gallery-order").select_option(value="-1")
    page.locator("#gallery-filter").select_option(value="patch_share")
    page.locator("#gallery-from").fill("0.01")
    page.locator("#gallery-name").fill("00")
    cards = page.locator(".card[aria-label]").evaluate_all(LABELS)
    page.locator(".card").nth(1).click()
    page.get_by_role("button", name="Attention of head 1").click()
    wait_for_address(page, "shown=1")
    address, name = page.evaluate("location.href"), page.locator("#view-name").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == address.rpartition("/")[2]
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "image=" not in url)
    page.locator("#gallery-model").select_option(index=0)
    page.locator("#gallery-order").select_option(value="1")
    page.locator("#gallery-name").fill("nothing is called so")
    page.evaluate("href => { location.href = href }", address)
    page.locator("#view-name").wait_for()
    assert page.locator("#view-name").inner_text() == name
    assert page.locator("#view-path").inner_text().endswith("tiny/dinov2_reg")
    assert page.locator("#view-map").input_value() == "1"
    page.keyboard.press("Escape")
    again = page.locator(".card[aria-label]").evaluate_all(LABELS)
    assert again == cards
    assert page.locator("#gallery-from").input_value() == "0.01"
    page.get_by_role("button", name="Clear").click()


def test_the_address_has_the_order_of_a_table(page):
    table = page.locator("table[data-name=comparison]")
    models = table.locator("tbody th")
    head = table.get_by_role("button", name="CKA(r, patches)")
    head.click()
    up = models.all_inner_texts()
    head.click()
    down = models.all_inner_texts()
    assert down == up[::-1] != up
    address = page.evaluate("location.hash")
    assert address == "#compared?table=comparison&sort=CKA%28r%2C+patches%29&order=-1"
    head.click()
    assert models.all_inner_texts() == up
    page.evaluate("hash => { location.hash = hash }", address)
    page.wait_for_function(
        "document.querySelector('[data-name=comparison] [aria-sort=descending]')"
    )
    assert models.all_inner_texts() == down
    folded = page.locator("#variance-share details")
    page.evaluate("location.hash = '#variance-share?table=variance-share&sort=patches&order=1'")
    folded.locator("[aria-sort=ascending]").wait_for()


def test_the_address_has_the_number_whose_spread_is_shown(page):
    number = page.locator("#distribution-number")
    number.select_option(value="covariate_entropy")
    wait_for_address(page, "#distribution?number=covariate_entropy")
    address = page.evaluate("location.hash")
    number.select_option(value="centred_share_patches")
    wait_for_address(page, "centred_share")
    page.evaluate("hash => { location.hash = hash }", address)
    page.locator("[data-told]", has_text="Entropy").first.wait_for()
    assert number.input_value() == "covariate_entropy"


def test_a_page_opens_at_its_address(chromium, report, page):
    page.locator("#all-images-folder").select_option(label="b")
    page.locator("#all-images-name").fill("img")
    wait_for_address(page, "name=img")
    address = page.evaluate("location.hash")
    page.locator("#all-images-name").fill("")
    page.locator("#all-images-folder").select_option(index=0)
    with opened(chromium, report, address=address, wait=False) as watched:
        rows = watched.page.locator("#all-images-rows th")
        assert rows.all_inner_texts() == [f"b/{HOSTILE_IMAGE}"]
        watched.page.wait_for_function(
            "document.getElementById('all-images').getBoundingClientRect().y < innerHeight"
        )
        assert watched.complaints == []


@pytest.mark.parametrize(
    "address",
    [
        "#gallery?model=99&sort=no&image=<b>",
        "#all-images?model=x&group=__proto__",
        "#compared?table=comparison&sort=<b>",
        "#a?table=__proto__",
        "#?",
        "#%zz?a",
    ],
)
def test_an_address_of_nothing_does_no_harm(page, address):
    page.evaluate("address => { location.hash = address }", address)
    page.wait_for_timeout(50)
    assert page.locator(".card").count() == 4
    assert page.locator("#all-images-rows tr").count() == 12


def test_all_images_are_sorted_by_any_number(page, results):
    table = AuditResult.load(results / "registers").images
    page.locator("#all-images-model").select_option(label="tiny/dinov2_reg")
    page.locator("#all-images-group").select_option(label="Centred share")
    number = dict(
        zip(table["path"].to_pylist(), table["centred_share_patches"].to_pylist(), strict=True)
    )
    heading = page.locator("#all-images-head").get_by_role("button", name="patches")
    for order, reverse in (("ascending", False), ("descending", True)):
        heading.click()
        assert page.locator(f"#all-images-head [aria-sort={order}]").count() == 1
        shown = page.locator("#all-images-rows th").all_text_contents()
        expected = sorted(number, key=number.get, reverse=reverse)
        assert [path.split("/", path.count("/") - 1)[-1] for path in expected] == shown


def test_all_images_are_filtered_and_saved(page, results):
    table = AuditResult.load(results / "registers").images
    page.locator("#all-images-model").select_option(label="tiny/dinov2_reg")
    page.locator("#all-images-folder").select_option(label="b")
    page.locator("#all-images-filter").select_option(value="patch_share")
    shares = {
        path: share
        for path, share in zip(
            table["path"].to_pylist(), table["patch_share"].to_pylist(), strict=True
        )
        if "/b/" in path
    }
    middle = sum(sorted(shares.values())[2:4]) / 2
    page.locator("#all-images-from").fill(f"{middle:.9f}")
    assert page.locator("#all-images-status").inner_text() == "3 of 12 images."
    name, path = download(page, page.get_by_role("button", name="CSV of all numbers"))
    assert name == "images-tiny-dinov2_reg.csv"
    head, *rows = rows_of(path)
    found = {row[0]: float(row[head.index("patch_share")]) for row in rows}
    above = min(shares).rpartition("/b/")[0].rpartition("/")[0]  # of which the report says nothing
    assert found == pytest.approx(
        {path.removeprefix(f"{above}/"): share for path, share in shares.items() if share > middle}
    )
    for control in ("folder", "filter"):
        page.locator(f"#all-images-{control}").select_option(index=0)


def test_the_gallery_shows_one_folder(page):
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg")
    names = page.locator(".card .card-name")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.card')].every(card => card.childElementCount)"
    )
    everything = names.all_text_contents()
    found = {}
    for folder in ("a", "b"):
        page.locator("#gallery-folder").select_option(label=folder)
        found[folder] = names.all_text_contents()
    for folder, shown in found.items():  # its cards are named with it
        assert shown
        assert shown == [name for name in everything if name.startswith(f"{folder}/")]
    page.get_by_role("button", name="Clear").click()
    assert names.all_text_contents() == everything


def test_an_image_of_the_gallery_opens_from_the_table(page):
    button = page.locator("#all-images-rows button").first
    name = button.inner_text()
    button.click()
    assert page.locator("#view-name").inner_text() == name.split("/")[-1]
    page.keyboard.press("Escape")
    assert page.locator("#all-images-rows button").count() == 4


def test_images_that_could_not_be_read_are_listed_with_the_reason(page):
    (row,) = page.locator("table[data-name='images not readable'] tbody tr").all()
    image, reason, labels = row.locator("th, td").all_inner_texts()
    assert image == "b/broken.png"
    assert reason
    assert labels == f"{HOSTILE_MODEL}, tiny/dinov2_reg"


NOTHING_LAZY = """
window.requestIdleCallback = () => {};
window.IntersectionObserver = class { observe() {} unobserve() {} disconnect() {} };
"""
X_AXIS = rb"/Alt (?:\(X-axis|<FEFF0058002D0061007800690073)"  # in Latin letters, or in hex
WATCH_PRINT = """addEventListener("beforeprint", () => {
  window.closed = document.querySelectorAll("details:not([open])").length;
})"""


def unpack(pdf):
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            yield zlib.decompress(stream)
        except zlib.error:  # not compressed so
            yield stream
    yield pdf


def test_everything_is_printed_though_nothing_was_seen(chromium, report):
    """As by chromium --print-to-pdf, which prints as soon as the page is loaded."""
    with opened(chromium, report, wait=False, before=NOTHING_LAZY) as watched:
        page = watched.page
        num_charts = page.locator(".panel:not([hidden]) .chart").count()
        assert page.locator(".chart.drawn").count() < num_charts
        num_folded = page.locator("details:not([open])").count()
        page.evaluate(WATCH_PRINT)
        pdf = b"\n".join(unpack(page.pdf(tagged=True, format="A4")))
        assert page.evaluate("closed") == 0
        assert page.locator("details:not([open])").count() == num_folded > 0
    assert len(re.findall(X_AXIS, pdf)) == num_charts
    assert len(re.findall(rb"/Subtype /Image", pdf)) >= 4
    # Small charts share a page.
    assert len(re.findall(rb"/Type /Page\b", pdf)) < 20


def test_nothing_is_cut_on_paper(page):
    paper = 688  # width of A4 without margins, in pixels of CSS
    page.set_viewport_size({"width": paper, "height": 970})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") == paper
    shown = page.locator(".card, #all-images-rows tr, [data-name$=provenance], .sentence")
    assert all(
        one.is_visible() for one in shown.all() if one.evaluate("one => !one.closest('dialog')")
    )
    assert not page.locator(".exports, .controls").filter(visible=True).count()
    told = page.locator(".paper").filter(visible=True).all_text_contents()
    assert [note.partition(":")[0] for note in told] == [
        "Of 3 results, this is tiny/dinov2_reg",
        "Of 2 results, this is tiny/dinov2_reg",
    ]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})


def test_without_scripts_charts_are_there_and_the_rest_is_said_to_be_missing(chromium, report):
    with opened(chromium, report, wait=False, script=False) as watched:
        page = watched.page
        assert page.locator("noscript .missing").is_visible()
        charts = page.locator(".chart:not([data-bins])")
        assert charts.count() > 10
        assert all(
            svg.is_visible() for svg in page.locator(".chart:not([data-bins]) svg.marks").all()
        )
        assert page.locator(".chart svg.marks").count() == charts.count()
        dot = page.locator("#variance-share svg [aria-roledescription=point]").first
        assert dot.evaluate("dot => getComputedStyle(dot).fill") == "rgb(51, 34, 136)"
        assert not page.locator(".controls").filter(visible=True).count()
        assert watched.complaints == []


ONLY_WHEN_ASKED = """
window.idle = [];
window.requestIdleCallback = (then) => window.idle.push(then);
"""
SEEN = "() => new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)))"


def test_charts_are_there_at_once_and_come_to_life_one_by_one_where_they_are_seen(chromium, report):
    with opened(chromium, report, wait=False, before=ONLY_WHEN_ASKED) as watched:
        page = watched.page
        still = page.locator("#variance-share .chart svg.marks").first
        assert still.is_visible()
        assert page.locator(".chart.drawn").count() == 0
        last = page.locator(".panel:not([hidden]) .chart").last
        last.scroll_into_view_if_needed()
        page.evaluate(SEEN)
        page.evaluate("idle.splice(0).forEach((then) => then())")
        page.wait_for_selector(".chart.drawn")
        assert page.locator(".chart.drawn").count() == 1
        top = page.locator(".chart.drawn").bounding_box()["y"]
        assert -400 <= top <= DESKTOP[1] + 400
        assert still.is_visible()
