"""The report in a real browser, opened from disk with the network off."""

import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audits import tiny_vit
from browser_numbers import numbers_by_name
from images import write_images
from vitscope import AuditConfig, AuditResult, Explanation, audit, write_report
from vitscope.files.printable import printable_path

DESKTOP, PHONE = (1440, 900), (360, 740)
SHARE = "centred_share_patches"
PAINTED = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return Array.from({ length: data.length / 4 }, (_, k) => data[4 * k] + data[4 * k + 1]);
}"""

LEGENDS_BEYOND = """Array.from(document.querySelectorAll(".chart .role-legend"), (legend) => {
  const [inner, outer] = [legend, legend.closest("svg")].map((one) => one.getBoundingClientRect());
  return inner.left < outer.left - 1 || inner.right > outer.right + 1 ? legend.textContent : "";
}).filter(Boolean)"""


def opacity_of(locator):
    return float(locator.evaluate("element => getComputedStyle(element).opacity"))


def names_of(page):
    page.wait_for_function(
        "() => [...document.querySelectorAll('.card')].every(card => card.childElementCount)"
    )
    return page.locator(".card .card-name").all_text_contents()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_it_opens_without_complaint_or_request(revisit, size, colours):
    seen = revisit(size, colours)
    names_of(seen.page)
    assert seen.complaints == []
    assert seen.requests == []
    # Nothing sticks out to the side.
    assert seen.page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert seen.page.evaluate(LEGENDS_BEYOND) == []


def test_the_head_has_every_section_at_any_width(revisit):
    page = revisit().page
    page.set_viewport_size({"width": 760, "height": 900})
    assert page.locator(".top nav").evaluate("nav => nav.scrollWidth - nav.clientWidth") == 0
    page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})


def test_every_chart_is_drawn_and_says_what_it_is(revisit):
    page = revisit().page
    charts = page.locator(".panel:not([hidden]) .chart")
    assert charts.count() > 10
    described = page.locator(".panel:not([hidden]) .chart[role=graphics-document][aria-label]")
    assert described.count() == charts.count()


def test_what_is_hostile_is_shown_and_not_run(revisit, images):
    page = revisit().page
    options = page.locator("#gallery-model option", has_text="</script>")
    model = options.first.get_attribute("value")  # the last has several results side by side
    page.locator("#gallery-model").select_option(value=model)
    expected = {printable_path(Path(path.name)) for path in images.iterdir()}
    assert set(names_of(page)) == expected
    assert any("<img" in name for name in expected)
    page.locator(".card").first.click()
    for _ in range(24):
        page.locator("#view-next").click()
    assert "</script><script>window.pwned" in page.locator("#view-path").inner_text()
    assert "</script><script>window.pwned" in page.locator("#verdict").inner_text()
    assert page.evaluate("window.pwned") is None
    allowed = "script[type='application/json'], script[type=module]"
    assert page.locator("script").count() == page.locator(allowed).count() == 4
    assert page.locator("b, [onerror], [onload]").count() == 0


def test_images_are_sorted_by_any_number_both_ways(revisit, results):
    page = revisit().page
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg")
    for number in (SHARE, "patch_share", "covariate_entropy"):
        expected = numbers_by_name(AuditResult.load(results / "registers"), number)
        page.locator("#gallery-sort").select_option(value=number)
        for order, reverse in (("1", False), ("-1", True)):
            page.locator("#gallery-order").select_option(value=order)
            found = [expected[name] for name in names_of(page)]
            assert len(found) == 16
            assert found == sorted(found, reverse=reverse)


def test_images_are_filtered_by_number_and_name(revisit, results):
    page = revisit().page
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg")
    numbers = numbers_by_name(AuditResult.load(results / "registers"), SHARE)
    page.locator("#gallery-filter").select_option(value=SHARE)
    below, above = sorted(numbers.values())[7:9]
    middle = (below + above) / 2
    page.locator("#gallery-to").fill(f"{middle:.9f}")
    kept = {name for name, value in numbers.items() if value < middle}
    assert set(names_of(page)) == kept
    assert page.locator("#gallery-status").inner_text().startswith(f"{len(kept)} of 16 images")
    page.locator("#gallery-name").fill("nothing is called so")
    assert page.locator(".card").count() == 0
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".card").count() == 16
    page.locator("#gallery-name").fill("<IMG SRC")
    assert all("<img src" in name for name in names_of(page))


def test_the_slider_mixes_maps_with_images(revisit):
    page = revisit().page
    names_of(page)
    canvas = page.locator(".card canvas").first
    page.locator("#gallery-mix").fill("0")
    assert opacity_of(canvas) == 0
    page.locator("#gallery-mix").fill("100")
    assert opacity_of(canvas) == 1
    page.locator(".card").first.click()
    page.locator("#view-mix").fill("20")
    assert opacity_of(page.locator("#view-stage canvas")) == pytest.approx(0.2)


def test_maps_are_painted_as_they_were_measured(revisit, results):
    """The brightest patch on the canvas is the one with the most attention."""
    gallery = AuditResult.load(results / "registers").gallery
    page = revisit().page
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg")
    page.locator("#gallery-sort").select_option(value=SHARE)
    names_of(page)
    by_name = {image.path.rsplit("/", 1)[-1]: k for k, image in enumerate(gallery.images)}
    for place in (0, 5):
        card = page.locator(".card").nth(place)
        maps = gallery.read_maps(by_name[card.locator(".card-name").text_content()])
        for canvas, values in ((0, maps["attention"]), (1, maps["contribution_norm"])):
            # Cividis grows in red + green with the value.
            painted = card.locator("canvas").nth(canvas).evaluate(PAINTED)
            assert max(range(len(painted)), key=painted.__getitem__) == values.argmax()


def test_the_large_view_tells_what_a_patch_holds(revisit, results):
    gallery = AuditResult.load(results / "registers").gallery
    page = revisit().page
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg")
    names_of(page)
    name = page.locator(".card .card-name").first.text_content()
    index = next(k for k, p in enumerate(gallery.images) if p.path.rsplit("/", 1)[-1] == name)
    maps = gallery.read_maps(index)
    page.locator(".card").first.click()
    assert page.locator("#view-name").inner_text() == name
    assert "Patches together carry" in page.locator("#view-told").inner_text()
    stage = page.locator("#view-stage")
    box = stage.bounding_box()
    rows, columns = maps.grid
    stage.hover(position={"x": box["width"] * 2.5 / columns, "y": box["height"] * 1.5 / rows})
    told = page.locator("#view-token").inner_text()
    assert told.startswith("Patch in row 2, column 3: ")
    attention = float(told.split("Attention ")[1].split(" %")[0])
    # Maps are kept in 255 steps of the largest value, and told to three digits.
    step = 100 * float(maps["attention"].max()) / 255
    assert attention == pytest.approx(100 * maps["attention"][1, 2], abs=step)
    length = float(told.split("Value-weighted attention ")[1].split(";")[0])
    step = float(maps["contribution_norm"].max()) / 255
    assert length == pytest.approx(maps["contribution_norm"][1, 2], abs=step)
    page.get_by_role("button", name="Attention of head 2").click()
    assert page.locator("#view-map").input_value() == "2"
    stage.hover(position={"x": 1, "y": 1})
    told = page.locator("#view-token").inner_text()
    head = float(told.split("Attention of head 2 ")[1].split(" %")[0])
    step = 100 * float(maps.maps["attention"].heads[2].max()) / 255
    assert head == pytest.approx(100 * maps.maps["attention"].heads[2, 0, 0], abs=step)


def test_attention_of_every_layer_is_a_grid_to_choose_from(revisit, results):
    explanation = Explanation.load(results / "explained")
    page = revisit().page
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg, explained")
    names_of(page)
    page.locator(".card").first.click()
    name = page.locator("#view-name").inner_text()
    paths = [printable_path(Path(one.path).name) for one in explanation.summary.images]
    layers = explanation.read_image(paths.index(name)).heads_by_layer
    assert page.locator("#view-grid .choice").count() == 0
    page.locator("#view-layers summary").click()
    cells = page.locator("#view-grid .choice")
    cells.last.wait_for()
    assert cells.count() == layers.shape[0] * layers.shape[1]
    for place, values in zip((0, -1), (layers[0, 0], layers[-1, -1]), strict=True):
        painted = cells.nth(place).locator("canvas").evaluate(PAINTED)
        assert max(range(len(painted)), key=painted.__getitem__) == values.argmax()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Grid as PNG").click()
    assert saved.value.suggested_filename.endswith("-heads-by-layer-tiny-dinov2_reg-explained.png")
    grid = np.asarray(Image.open(saved.value.path()).convert("RGB")).astype(int)
    assert len(grid) == 104 + 70 * layers.shape[0]
    for layer, head in np.ndindex(*layers.shape[:2]):
        down, across = 104 + 70 * layer, 44 + 70 * head
        cell = grid[down : down + 64, across : across + 64].reshape(4, 16, 4, 16, 3)
        assert (np.ptp(cell, axis=(1, 3)) == 0).all()
        assert cell[:, 0, :, 0, :2].sum(axis=-1).argmax() == layers[layer, head].argmax()
    page.get_by_role("button", name="Attention of head 2 in layer 1", exact=True).click()
    assert page.locator("#view-map").input_value() == "1.2"
    page.locator("#view-stage").hover(position={"x": 1, "y": 1})
    told = page.locator("#view-token").inner_text()
    found = float(told.split("Attention of head 2 in layer 1 ")[1].split(" %")[0])
    step = 100 * float(layers[1, 2].max()) / 255
    assert found == pytest.approx(100 * layers[1, 2, 0, 0], abs=step)
    page.locator("#view-layers summary").click()


def test_any_map_is_shown_on_cards_and_in_the_large_view(revisit, results):
    gallery = AuditResult.load(results / "hostile").gallery
    page = revisit().page
    model = page.locator("#gallery-model option", has_text="</script>").first.get_attribute("value")
    page.locator("#gallery-model").select_option(value=model)
    names_of(page)
    page.locator("#gallery-map").select_option(value="traced")
    card = page.locator(".card").first
    assert card.locator(".tile-name").all_text_contents() == ["image", "Attention", "Traced"]
    by_name = {image.path.rsplit("/", 1)[-1]: k for k, image in enumerate(gallery.images)}
    maps = gallery.read_maps(by_name[card.locator(".card-name").text_content()])
    painted = card.locator("canvas").nth(1).evaluate(PAINTED)
    # White is zero; the patch of the largest value is the farthest from it.
    assert min(range(len(painted)), key=painted.__getitem__) == abs(maps["traced"]).argmax()
    card.click()
    options = page.locator("#view-map option").all_text_contents()
    assert options[: len(maps.maps)] == [one.about.title for one in maps.maps.values()]
    assert page.locator("#view-maps button").count() == len(maps.maps) == 8
    page.locator("#view-maps").get_by_role("button", name="Traced").click()
    assert page.locator("#view-map").input_value() == "traced"
    told = page.locator("#view-unit").inner_text()
    assert "target self; on patches" in told
    assert "elsewhere: [CLS] itself 0.000; together" in told
    page.locator("#view-stage").hover(position={"x": 1, "y": 1})
    assert "Distance from the centre" in page.locator("#view-token").inner_text()


def test_the_same_image_is_found_at_the_other_models(revisit):
    page = revisit().page
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg, explained")
    names_of(page)
    page.locator(".card").first.click()
    name = page.locator("#view-name").inner_text()
    others = page.locator("#view-others button")
    if others.count():
        label = others.first.inner_text()
        others.first.click()
        assert page.locator("#view-name").inner_text() == name
        assert page.locator("#gallery-model option:checked").inner_text() == label


def test_everything_can_be_done_from_the_keyboard(visit, report):
    page = visit(report).page
    names = names_of(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert (
        page.evaluate("document.activeElement.querySelector('.card-name').textContent") == names[2]
    )
    page.keyboard.press("Home")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.locator("#view").is_visible()
    assert page.locator("#view-name").inner_text() == names[-1]
    page.keyboard.press("ArrowRight")
    assert page.locator("#view-name").inner_text() == names[0]
    page.keyboard.press("ArrowLeft")
    page.locator("#view-stage").focus()
    page.keyboard.press("ArrowDown")
    first = page.locator("#view-token").inner_text()
    page.keyboard.press("ArrowDown")
    assert first.startswith("Patch in row")
    assert page.locator("#view-token").inner_text() != first
    assert page.locator("#view-name").inner_text() == names[-1]
    page.keyboard.press("Escape")
    assert not page.locator("#view").is_visible()
    # Back where it came from, and with a focus that can be seen.
    assert (
        page.evaluate("document.activeElement.querySelector('.card-name').textContent") == names[-1]
    )
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_colours_follow_the_system_and_the_switch(revisit):
    background = "getComputedStyle(document.body).backgroundColor"
    page = revisit(colours="dark").page
    dark = page.evaluate(background)
    page.get_by_text("Light", exact=True).click()
    light = page.evaluate(background)
    assert light == "rgb(255, 255, 255)" != dark
    page.get_by_text("Dark", exact=True).click()
    assert page.evaluate(background) == dark
    page.get_by_text("Auto", exact=True).click()
    assert page.evaluate(background) == dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == light


def test_it_prints_on_white_without_its_controls(revisit):
    page = revisit(colours="dark").page
    names_of(page)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#gallery-controls").is_visible()
    assert page.locator(".card-verdict").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_an_open_image_is_printed_alone_with_all_its_maps_and_numbers(revisit):
    page = revisit(colours="dark").page
    page.locator("#gallery-model").select_option(label="tiny/dinov2_reg, explained")
    names_of(page)
    page.locator(".card").first.click()
    folded = page.locator("#view details:not([open])")
    num_folded = folded.count()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown = page.locator("#view-photo img, #view-stage canvas, #view-facts dd, #view-numbers tr")
    shown = shown.or_(page.locator("#view-maps canvas, #view-heads canvas, #view-grid canvas"))
    assert shown.count() > 30
    assert shown.filter(visible=True).count() == shown.count()
    assert not page.locator("#main, .top").filter(visible=True).count()
    controls = page.locator("#view :is(button:not(.choice), select, input)")
    assert not controls.filter(visible=True).count()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.count() == num_folded
    pages = re.findall(rb"/Type /Page\b", page.pdf(format="A4"))
    assert len(pages) in {2, 3}


def test_spreads_are_shown_of_any_number(revisit, results):
    page = revisit().page
    page.locator("#distribution-number").select_option(value="covariate_entropy")
    (index,) = page.evaluate(
        "[...document.querySelectorAll('[data-told]')].filter(p => p.parentElement.textContent"
        ".includes('tiny/dinov2_reg')).map(p => p.dataset.told)"
    )
    values = AuditResult.load(results / "registers").images["covariate_entropy"].to_pylist()
    told = page.locator(f"[data-told='{index}']")
    page.wait_for_function(
        "() => /Entropy/.test(document.querySelector('[data-told]').textContent)"
    )
    mean = float(told.inner_text().split("mean ")[1].split(",")[0])
    assert mean == pytest.approx(sum(values) / len(values), rel=5e-3)
    bars = page.locator("[data-bins='0'] [aria-roledescription=bar]")
    page.wait_for_function(
        "() => document.querySelectorAll(\"[data-bins='0'] [aria-roledescription=bar]\").length > 5"
    )
    assert bars.count() <= 28 + 2  # the ends of the axis that all results share


def test_every_link_leads_somewhere(revisit):
    page = revisit().page
    broken = page.evaluate(
        "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"
        ".filter(href => !href.startsWith('#') || !document.getElementById(href.slice(1)))"
    )
    assert broken == []


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("opened", [False, True], ids=["page", "large view"])
def test_axe_finds_nothing_serious(revisit, colours, opened):
    package = pytest.importorskip("axe_playwright_python")
    axe = files(package.__name__).joinpath("axe.min.js").read_text(encoding="utf-8")
    page = revisit(colours=colours).page
    names_of(page)
    if opened:
        page.locator(".card").first.click()
    page.evaluate(axe)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    serious = [
        (one["id"], one["help"], [node["target"] for node in one["nodes"]][:3])
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]
    assert serious == []


def test_a_report_of_two_hundred_images_is_small_and_opens(visit, tmp_path):
    folder = write_images(tmp_path / "images", 200)
    audit(tiny_vit(), folder, AuditConfig(), out=tmp_path / "result")
    path = write_report([tmp_path / "result"], tmp_path / "report.html")
    assert path.stat().st_size < 3 * 2**20
    page = visit(path, wait=False).page
    page.wait_for_selector("#variance-share .chart.drawn")
    page.wait_for_selector(".card[aria-label]", state="attached")
