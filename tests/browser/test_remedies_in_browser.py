"""Reports of compared remedies and results in a browser: maps side by side, names as text."""

import csv
import io
from dataclasses import replace

import numpy as np

from made_remedies import write_comparison, write_gallery
from made_results import make_audit, write_result
from vitscope import write_report
from vitscope.results.gallery import read_gallery
from vitscope.results.image_maps import ImageMaps, write_maps

HOSTILE = "</script><img src=x onerror=\"window.pwned='edit'\">"
HOSTILE_RUN = "</script><img src=x onerror=\"window.pwned='run'\">"


def test_an_image_shows_its_map_before_and_after_every_edit(visit, tmp_path):
    made = write_comparison(tmp_path / "result", [(0, 1), (0, 1), (1,)], edits=["skip", HOSTILE])
    watched = visit(write_report([made / "comparison"], tmp_path / "report.html"))
    page = watched.page
    page.locator("#changes .chart.drawn").wait_for()
    page.locator(".card").filter(has_text="1.png").wait_for()
    # Cards below the fold are not rendered, and have no inner text.
    tiles = {
        card.locator(".card-name").text_content(): card.locator(".tile-name").all_text_contents()
        for card in page.locator(".card").all()
    }
    assert tiles == {
        "0.png": ["image", "original", "skip"],
        "1.png": ["image", "original", "skip", HOSTILE],
    }
    choice = page.locator("#gallery-map")
    assert choice.is_disabled()
    assert choice.locator("option").all_inner_texts() == ["Attention"]  # and no name of an edit
    page.locator(".card").first.click()
    assert page.locator("#view-maps button").first.inner_text() == "original"
    assert page.evaluate("window.pwned") is None
    assert watched.complaints == []
    assert watched.requests == []


def write_runs(folder):
    """Two runs of one model, of which the second saw more of the image, and a larger model."""
    for number, (size, params, name) in enumerate(
        (("S", 22.1, HOSTILE_RUN), ("S", 22.1, "dogs"), ("L", 304.4, "dogs"))
    ):
        summary, columns = make_audit("DINOv2", size, params, registers=4, n=40)
        place = write_result(folder / str(number), summary, columns, name=name)
        write_gallery(place, columns["image_id"], (1, 2), value=number + 1)
    gallery = read_gallery(folder / "1")
    one = gallery.read_maps(0).maps["attention"]
    (folder / "1" / gallery.images[0].file).unlink()
    wider = replace(one, values=np.eye(3, 4, dtype=np.float32))
    maps = ImageMaps(image=np.full((24, 32, 3), 200, np.uint8), maps={"attention": wider})
    write_maps(folder / "1" / gallery.images[0].file, maps)
    return folder


def read_names(page):
    return page.locator("[data-name=comparison] tbody th").all_text_contents()


def test_a_table_is_sorted_by_a_click_and_images_stand_side_by_side(visit, tmp_path):
    watched = visit(write_report([write_runs(tmp_path / "results")], tmp_path / "report.html"))
    page = watched.page
    hostile, dogs, large = read_names(page)
    assert (dogs, large) == ("DINOv2 S (dogs)", "DINOv2 L")
    table = page.locator("[data-name=comparison]")
    params = table.locator("th").filter(has_text="params")
    params.get_by_role("button").click()
    assert params.get_attribute("aria-sort") == "ascending"
    assert read_names(page) == [hostile, dogs, large]
    params.get_by_role("button").click()
    assert params.get_attribute("aria-sort") == "descending"
    assert read_names(page) == [large, hostile, dogs]  # as numbers: 304 before 22
    table.get_by_role("button", name="run").click()
    assert params.get_attribute("aria-sort") is None
    assert read_names(page) == [hostile, large, dogs]
    table.get_by_role("button", name="patches' share").click()
    assert read_names(page)[0] == large
    with page.expect_download() as found:
        page.get_by_role("button", name="CSV: comparison").click()
    rows = list(csv.DictReader(io.StringIO(found.value.path().read_text(encoding="utf-8"))))
    assert [row["model"] for row in rows] == read_names(page)
    assert float(rows[0]["params"]) == 304_400_000
    assert {"patches' share", "patches' share low", "patches' share high"} <= rows[0].keys()

    choice = page.locator("#gallery-model")
    choice.select_option(index=choice.locator("option").count() - 1)
    card = page.locator(".card").filter(has_text="1.png")
    card.locator(".tile-name").last.wait_for(state="attached")
    assert card.locator(".tile-name").all_text_contents() == ["image", hostile, dogs, large]
    shapes = [
        card.locator(".tile").nth(number).evaluate("tile => tile.style.aspectRatio")
        for number in range(4)
    ]
    assert shapes == ["24 / 16", "24 / 16", "32 / 24", "24 / 16"]
    card.click()
    page.locator("#view-maps button").nth(1).click()
    assert page.locator("#view-stage").evaluate("stage => stage.style.aspectRatio") == "32 / 24"
    page.locator("#view-stage").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    told = page.locator("#view-token").inner_text()
    assert told.startswith("Patch in row 3, column 4: DINOv2 S (dogs) ")
    assert "DINOv2 L" not in told  # whose patches are others
    page.locator("#view-maps button").nth(2).click()
    page.locator("#view-stage").focus()
    page.keyboard.press("ArrowRight")
    assert "DINOv2 L" in page.locator("#view-token").inner_text()
    assert page.evaluate("window.pwned") is None
    assert watched.complaints == []
    assert watched.requests == []
