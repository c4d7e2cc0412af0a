"""The figure of compared remedies: every difference with its interval, on one axis."""

import csv

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from made_remedies import EDITS, make_remedies, write_comparison
from made_results import MadeResult, change, hold_audit
from vitscope.figures import NothingToDrawError, draw_figure, draw_figures
from vitscope.figures.differences import CHANGES
from vitscope.results.remedy_result import RemedyResult

MM_PER_IN = 25.4


def compared(*edits, **settings):
    return MadeResult.of(make_remedies(edits or tuple(EDITS), **settings))


def read_dots(panel):
    """(number, row's name) to value and ends, as drawn."""
    names = [label.get_text().replace("\n", "") for label in panel.get_yticklabels()]
    found = {}
    for bar in panel.containers:
        assert isinstance(bar, ErrorbarContainer)
        line, _, (ends,) = bar.lines
        for x, y, ((low, _), (high, _)) in zip(*line.get_data(), ends.get_segments(), strict=True):
            found[bar.get_label(), names[round(y)].replace(" ", "")] = (x, low, high)
    return found


def test_every_difference_stands_in_its_row_with_its_interval():
    (panel,) = draw_figure("remedies", [compared()]).figure.axes
    dots = read_dots(panel)
    expected = {}
    for edit, (*differences, cosine) in EDITS.items():
        for name, value in zip(CHANGES, differences, strict=False):
            expected[name, edit] = (value, value - 0.03, value + 0.03)
        high = min(1, cosine + 0.01)
        expected["moved", edit] = (cosine - 1, cosine - 0.01 - 1, high - 1)
    assert dots.keys() == expected.keys()
    for key, values in expected.items():
        assert dots[key] == pytest.approx(values), key
    bottom, top = panel.get_ylim()  # the first edit is at the top
    assert top < 0 < len(EDITS) - 1 < bottom
    low, high = panel.get_xlim()
    assert low < min(ends[1] for ends in expected.values())
    assert high > max(ends[2] for ends in expected.values())


def test_one_model_fits_a_column_and_models_share_an_axis():
    figure = draw_figure("remedies", [compared()]).figure
    assert figure.get_figwidth() * MM_PER_IN < 90
    models = [compared(), compared("skip", size="B")]
    first, second = draw_figure("remedies", models).figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert {panel.get_title(loc="left") for panel in (first, second)} == {
        "DINOv2 with registers S",
        "DINOv2 with registers B",
    }
    assert {len(panel.get_yticks()) for panel in (first, second)} == {3, 1}


def test_what_a_comparison_does_not_have_is_not_drawn():
    made = make_remedies(("skip",))
    changes = dict(made.remedies[0].changes)
    del changes["high_norm_images"]
    made = change(made, changes, "remedies", 0, "changes")
    made = change(
        made, float("nan"), "remedies", 0, "changes", "cka_patches", "difference", "value"
    )
    data = draw_figure("remedies", [MadeResult.of(made)]).data
    assert {point.term for point in data.points} == {"variance_share_patches", "moved"}
    with pytest.raises(NothingToDrawError, match="no result of the kind 'remedies'"):
        draw_figure("remedies", [hold_audit()])


def test_a_hostile_edit_is_drawn_as_it_is_written():
    edit = "$x_{1}$ </text>\u202e" + "long" * 40
    figure = draw_figure("remedies", [compared(edit)]).figure
    figure.canvas.draw()
    (name,) = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "\u202e" not in name
    assert max(map(len, name.splitlines())) <= 26  # two dollar signs are escaped


def test_it_is_written_beside_the_figures_of_the_audits(tmp_path):
    folder = write_comparison(tmp_path / "result", [(), (), ()], edits=[*EDITS][:2])
    figure = RemedyResult.load(folder / "comparison").plot("remedies")
    assert len(figure.axes) == 1
    found = draw_figures([folder / "comparison"], tmp_path / "figures", formats=("svg",))
    assert [one.name for one in found.drawn] == ["remedies"]
    with found.drawn[0].table.open() as file:
        rows = {(row["term"], row["x"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows["high_norm_images", "test-time-registers"] == pytest.approx(-0.21)
    assert rows["moved", "zero:tokens=registers"] == pytest.approx(-0.58)
    assert np.isfinite([*rows.values()]).all()
