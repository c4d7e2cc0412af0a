"""Patch norms after the last block, which runs for patches in some batches only."""

from dataclasses import fields

import pytest

from blank_figures import words
from made_results import hold_audit
from vitscope.figures import draw_figure
from vitscope.metrics.estimates import HighNormTokens
from vitscope.report.chapters import make_chapter

WORDS = "After the last block, patch norms are known for 21 images only, those in which"


def make_result(**last):
    """A made audit with other numbers in the row of the last depth."""
    result = hold_audit()
    for key, value in last.items():
        result = result.change(value, "high_norm_tokens", -1, key)
    return result


@pytest.fixture
def unknown():
    """An audit that knows no image at the last depth."""
    names = {field.name for field in fields(HighNormTokens)} - {"num_images"}
    return make_result(num_images=0, **dict.fromkeys(names))


def report(result):
    (figure,) = [one for one in make_chapter("layers", [result]) if one.key == "high-norm"]
    return figure


def test_figures_and_report_say_of_how_many_images_the_last_depth_is():
    whole, partial = make_result(), make_result(num_images=21)
    for result, told in ((whole, False), (partial, True)):
        assert (WORDS in words(draw_figure("high_norm_layers", [result]).figure)) == told
        assert (WORDS in words(draw_figure("high_norm_fraction", [result]).figure)) == told
        assert any(WORDS in note for note in report(result).data.remarks) == told


def test_no_note_stands_twice():
    result = hold_audit().change((48, 48), "preprocessing", "size")
    result = result.change(("size",), "preprocessing", "changed")
    notes = draw_figure("high_norm_layers", [result]).data.notes
    assert len(notes) == len(set(notes))


def test_a_depth_without_images_is_left_out(unknown):
    last = len(unknown.audit.high_norm_tokens) - 1
    norms, fractions = draw_figure("high_norm_layers", [unknown]).figure.axes
    for line in (*norms.lines, *fractions.lines):
        assert max(line.get_xdata()) < last
    (panel,) = draw_figure("high_norm_fraction", [unknown]).figure.axes
    assert max(panel.lines[0].get_xdata()) == pytest.approx((last - 1) / last)
    assert len(report(unknown).table.sections[0][0]) == last + 1


def test_a_bound_is_shaded_from_zero_where_no_token_is_found():
    (panel,) = draw_figure("high_norm_fraction", [make_result()]).figure.axes
    (shade,) = panel.collections
    heights = shade.get_paths()[0].vertices[:, 1]
    assert heights.min() == 0
    assert heights.max() == pytest.approx(panel.lines[0].get_ydata().max())
    assert heights.max() > 0
