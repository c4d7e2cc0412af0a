"""A report of judged maps in a browser: its gallery shows the skill of each map."""

from made_judgements import write_judgement
from vitscope import write_report

SOME = ("attention", "centre", "legrad", "traced")


def test_judged_images_show_the_skill_of_each_map(visit, tmp_path):
    judged = write_judgement(tmp_path / "result", maps=SOME)
    watched = visit(write_report([judged], tmp_path / "report.html"))
    page = watched.page
    page.locator("#map-scores .chart.drawn").first.wait_for()
    page.get_by_text("Traced, skill 0.92").first.wait_for()
    assert page.get_by_text("Attention, skill").count() == page.locator(".card").count()
    sorts = page.locator("#gallery-sort option").all_inner_texts()
    assert "Skill: Traced" in sorts
    page.locator(".card").first.click()
    assert page.locator("#view-maps button").count() == len(SOME)
    assert page.locator("#view-unit").inner_text().startswith("skill 0.92")
    assert page.locator(".shares").count() == 0
    assert watched.complaints == []
    assert watched.requests == []
