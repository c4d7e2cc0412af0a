"""A report of compared remedies in a browser: maps before and after side by side, names as text."""

from made_remedies import write_comparison
from vitscope import write_report

HOSTILE = "</script><img src=x onerror=\"window.pwned='edit'\">"


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
