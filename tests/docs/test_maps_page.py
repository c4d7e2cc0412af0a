"""The page of maps lists the methods that there are."""

from maps_page import PAGE, make_page, make_table


def test_the_table_is_that_of_the_registry():
    page = PAGE.read_text(encoding="utf-8")
    assert make_table() in page
    assert make_page() == page, "python tests/maps_page.py"
