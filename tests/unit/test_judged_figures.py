"""Figures of judged maps: skill, curves, and kept images, with what they leave out and refuse."""

import csv
import json

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from blank_figures import words
from made_judgements import SKILLS, TITLES, make_judgement, write_judgement
from made_results import MadeResult, change, hold_audit
from vitscope.errors import UsageError
from vitscope.figures import NothingToDrawError, draw_figure, draw_figures, plot
from vitscope.figures.judged import find_role
from vitscope.figures.questions import open_results
from vitscope.figures.rendering.style import FAINT, FigureStyle, drawn_in
from vitscope.figures.saved import tell_apart
from vitscope.results.judge_result import JudgeResult

SOME = ("attention", "centre", "legrad", "traced")


def judged(**settings):
    return MadeResult.of(make_judgement(**settings))


def dots(panel):
    return [one for one in panel.containers if isinstance(one, ErrorbarContainer)]


def test_skill_stands_with_its_interval_the_best_map_first():
    (shuffle, drop) = draw_figure("map_scores", [judged()]).figure.axes
    names = [label.get_text() for label in shuffle.get_yticklabels()]
    order = sorted(TITLES, key=lambda name: -SKILLS[name])
    assert names == [TITLES[name] for name in order]
    values = [bar.lines[0].get_xdata()[0] for bar in dots(shuffle)]
    assert values == pytest.approx([SKILLS[name] for name in order])
    halves = [bar.lines[0].get_xdata()[0] for bar in dots(drop)]
    assert halves == pytest.approx([SKILLS[name] / 2 for name in order])
    ends = dots(shuffle)[0].lines[2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([0.92 - 0.13, 0.92 + 0.13])
    assert [shuffle.get_title(loc="left"), drop.get_title(loc="left")] == [
        "removal shuffle",
        "removal drop",
    ]
    assert shuffle.get_xlim() == drop.get_xlim()


def test_what_is_no_map_of_the_model_is_grey():
    (panel,) = draw_figure("map_scores", [judged(removals=("shuffle",))]).figure.axes
    grey = {
        label.get_text() for label in panel.get_yticklabels() if to_hex(label.get_color()) == FAINT
    }
    assert grey == {"Distance from the centre", "Edges in the image"}
    assert {to_hex(bar.lines[0].get_color()) == FAINT for bar in dots(panel)[-2:]} == {True}
    assert to_hex(dots(panel)[0].lines[0].get_color()) != FAINT


def test_models_stand_side_by_side_in_looks_of_their_own():
    models = [judged(size="S"), judged(size="B", maps=SOME, n=80)]
    drawing = draw_figure("map_scores", models)
    panel = drawing.figure.axes[0]
    by_label = {}
    for bar in dots(panel):
        by_label.setdefault(bar.get_label(), []).append(bar.lines[0])
    assert {name: len(found) for name, found in by_label.items()} == {
        "DINOv2 S": len(TITLES),
        "DINOv2 B": len(SOME),
    }
    assert len({found[0].get_marker() for found in by_label.values()}) == 2
    assert "n = 50 to 80 images a model" in words(drawing.figure)


def test_removals_that_not_all_have_are_left_out_and_named():
    models = [judged(removals=("shuffle", "drop")), judged(size="B", removals=("drop", "mean"))]
    drawing = draw_figure("map_scores", models)
    assert list(drawing.data.panels) == ["drop"]
    assert "Left out, since not every result has it: removal mean, shuffle." in drawing.data.notes


@pytest.mark.parametrize(
    ("other", "about"),
    [
        ({"target": "cosine"}, "what their maps explain (self: DINOv2 S; cosine: DINOv2 B)"),
        ({"removals": ("mean",)}, "how patches were removed (shuffle: DINOv2 S; mean: DINOv2 B)"),
        ({"layer": 3}, "the block whose attention row maps are of"),
    ],
)
def test_results_that_differ_in_what_was_judged_share_no_chart(other, about):
    models = [
        judged(removals=("shuffle",)),
        judged(size="B", **{"removals": ("shuffle",), **other}),
    ]
    with pytest.raises(NothingToDrawError) as refused:
        draw_figure("map_scores", models)
    assert about in str(refused.value)


def test_results_that_share_a_choice_or_differ_in_their_input_say_so():
    notes = " ".join(draw_figure("map_scores", [judged(target="cosine", layer=3)]).data.notes)
    assert "What maps explain: target cosine." in notes
    assert "Maps of an attention row are of layer 3, counted from 0" in notes
    larger = judged(size="B").change((448, 448), "preprocessing", "size")
    notes = draw_figure(
        "map_scores", [judged(), larger.change(("size",), "preprocessing", "changed")]
    ).data.notes
    assert "Input size differs: 224 x 224 px: DINOv2 S; 448 x 448 px: DINOv2 B." in notes
    names = [one.label for one in tell_apart([judged(), judged(target="cosine")])]
    assert names == ["DINOv2 S", "DINOv2 S (target cosine)"]


def test_curves_of_all_maps_are_there_and_the_four_that_matter_stand_out():
    drawing = draw_figure("map_curves", [judged()])
    panels = drawing.figure.axes
    assert [panel.get_title(loc="left") for panel in panels] == [
        *("shuffle: deletion", "shuffle: insertion"),
        *("drop: deletion", "drop: insertion"),
    ]
    lines = {line.get_label(): line for line in panels[0].lines}
    assert set(lines) == {*TITLES, "oracle", "random"}
    scores = drawing.data.shown[0].judgement.removals["shuffle"]["traced"]
    assert lines["traced"].get_ydata() == pytest.approx(scores.deletion)
    assert lines["traced"].get_xdata() == pytest.approx(np.linspace(0, 100, 17))
    assert panels[1].lines[0].get_ydata()[0] == pytest.approx(0)
    colours = {name: line.get_color() for name, line in lines.items()}
    plain = {colours[name] for name in TITLES if name not in {"traced", "attention"}}
    assert len(plain) == 1
    assert len({colours[name] for name in ("traced", "attention", "oracle", "random")} | plain) == 5
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert sorted(legend) == sorted(
        ["Traced (best)", "Attention", "Oracle", "Random orders", "other maps"]
    )


def test_without_a_verdict_the_first_map_of_the_model_stands_out():
    result = judged(best=None, maps=("attention", "centre", "legrad"))
    drawing = draw_figure("map_curves", [result])
    points = drawing.data.points
    assert {point.term for point in points if find_role(point) == "best"} == {"legrad"}
    legend = {text.get_text() for text in drawing.figure.legends[0].get_texts()}
    assert legend == {"LeGrad (first)", "Attention", "Oracle", "Random orders", "other maps"}
    alone = judged(best="attention", maps=("attention", "centre"))
    roles = {p.term: find_role(p) for p in draw_figure("map_curves", [alone]).data.points}
    assert roles == {
        "attention": "best",
        "centre": "other",
        "oracle": "oracle",
        "random": "random",
    }


@pytest.mark.parametrize("figure", ["map_scores", "map_curves", "judged_maps"])
def test_other_results_have_none_of_these_figures(figure):
    with pytest.raises(NothingToDrawError, match="no result of the kind 'judgement'"):
        draw_figure(figure, [hold_audit()])


def test_undefined_skill_is_not_drawn():
    result = MadeResult.of(
        change(
            make_judgement(removals=("shuffle",)),
            float("nan"),
            *("removals", "shuffle", "legrad", "scores", "skill", "value"),
        )
    )
    assert "legrad" not in {point.term for point in draw_figure("map_scores", [result]).data.points}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judgement(tmp_path_factory.mktemp("judged") / "result", maps=SOME)


def test_a_kept_image_shows_the_skill_of_each_map_the_best_first(folder):
    result = JudgeResult(folder)
    figure = result.plot("judged_maps", image=1)
    told = words(figure)
    places = [told.index(f"skill {SKILLS[name] + 0.01:.2f}".replace("-", "−")) for name in SOME]
    assert places.index(min(places)) == SOME.index("traced")
    assert "dog 1.png" in told
    assert "Publish Traced: skill 0.92 ± 0.13." in told
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(drawn[1], result.read_maps(1)["traced"])
    with pytest.raises(UsageError, match="image 2 does not exist: expected 0 to 1"):
        plot("judged_maps", [folder], image=2)
    with pytest.raises(UsageError, match="takes no 'heads': expected image"):
        plot("judged_maps", [folder], heads=True)


def test_a_judgement_without_kept_images_says_so(tmp_path):
    empty = write_judgement(tmp_path / "result", 0, maps=SOME)
    with pytest.raises(NothingToDrawError, match="no image was kept with its maps"):
        plot("judged_maps", [empty])


def test_every_figure_of_a_judgement_is_written_with_its_numbers(folder, tmp_path):
    found = draw_figures([folder], tmp_path / "figures", formats=("svg",))
    assert {figure.name for figure in found.drawn} == {
        *("map_scores", "map_curves__DINOv2-S"),
        *("judged_maps_000__DINOv2-S", "judged_maps_001__DINOv2-S"),
    }
    with (tmp_path / "figures/map_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["panel"], row["term"]): float(row["value"]) for row in rows} == pytest.approx(
        {
            (removal, name): SKILLS[name] / part
            for removal, part in (("shuffle", 1), ("drop", 2))
            for name in SOME
        }
    )
    with (tmp_path / "figures/judged_maps_000__DINOv2-S.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(SOME) * 4 * 6
    assert rows[0]["panel"] == "traced"
    index = json.loads((tmp_path / "figures/index.json").read_text())
    assert index["figures"][0]["results"][0]["kind"] == "judgement"


def test_a_narrow_sheet_has_its_maps_below_each_other_and_its_verdict_in_the_caption(folder):
    usual = draw_figure("judged_maps", open_results([folder]))
    with drawn_in(FigureStyle(width_in=3.25, has_notes=False)):
        narrow = draw_figure("judged_maps", open_results([folder]))
    lefts, usually = (
        {round(axes.get_position().x0, 3) for axes in one.figure.axes if axes.images}
        for one in (narrow, usual)
    )
    assert (len(lefts), len(usually)) == (2, 4)  # of the image, and of columns of maps
    told = " ".join(narrow.data.notes)
    assert "Skill on one image" in told
    assert "Skill on one image" in words(usual.figure)
    assert "Skill on one image" not in words(narrow.figure)
