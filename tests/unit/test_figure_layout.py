"""Nothing that is written on a figure is cut off, or over something else."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from blank_figures import draw_some
from made_judgements import write_judgement
from made_results import FAMILIES, hold_layers, write_all
from vitscope.figures import draw_figure, load_results
from vitscope.figures.questions import OF_ALL_MODELS, plan_figures


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Every size of six families, audited and classified."""
    return load_results([write_all(tmp_path_factory.mktemp("many"))])


def lay_out(figure):
    """Put everything in its place; the renderer that knows how wide letters are."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(300)
    figure.draw_without_rendering()
    return canvas.get_renderer()


OF_ONE_LAYER = [name for name in OF_ALL_MODELS if name != "sources_by_layer"]


@pytest.mark.parametrize("name", [*OF_ONE_LAYER, "fig7_norms", "fig8", "fig9", "fig3b"])
def test_nothing_written_is_cut_off_or_over_something_else(many, name):
    plans = plan_figures(many)
    assert_apart(next(draw for planned, draw in plans if planned.startswith(name))().figure)


@pytest.mark.parametrize("name", ["map_scores", "map_curves", "judged_maps"])
def test_nor_on_a_figure_of_many_judged_maps(tmp_path, name):
    for size in "SB":
        write_judgement(tmp_path / size, 1, size=size)
    plans = plan_figures(load_results([tmp_path]))
    assert_apart(next(draw for planned, draw in plans if planned.startswith(name))().figure)


def test_nor_on_a_figure_of_layers():
    deep = hold_layers({k: 0.95 - 0.02 * k for k in range(40)}, "DINOv2", "g", 1136.5)
    few = hold_layers({3: 0.95, 11: 0.2}, "DINOv2 with registers", registers=4)
    figure = draw_figure("sources_by_layer", [deep, few]).figure
    assert_apart(figure)
    assert_spread(figure, figure.canvas.get_renderer())


def assert_spread(figure, renderer):
    """Neither the texts of a panel nor the labels of its axis run into one another."""
    for panel in figure.axes:
        for texts in (panel.texts, panel.get_xticklabels()):
            boxes = [t.get_window_extent(renderer) for t in texts if t.get_visible()]
            boxes.sort(key=lambda box: box.x0)
            for left, right in pairwise(boxes):
                assert left.x1 <= right.x0


def assert_apart(figure):
    """Nothing is cut off, or written over something else."""
    renderer = lay_out(figure)
    whole = figure.bbox
    boxes = [legend.get_window_extent(renderer) for legend in figure.legends]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    panels = [panel.get_tightbbox(renderer) for panel in figure.axes]
    for box in (*boxes, *panels):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= whole.x1 + 1
        assert box.y1 <= whole.y1 + 1
    every = boxes + panels
    for i, first in enumerate(every):
        for second in every[i + 1 :]:
            width = min(first.x1, second.x1) - max(first.x0, second.x0)
            height = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert width <= 1 or height <= 1


def test_ticks_and_sizes_do_not_run_into_one_another(many):
    drawn = draw_some(many, ("fig3a", "fig8", "fig3b_one_shot_nearest_top1"))
    assert drawn
    for figure in drawn.values():
        assert_spread(figure, lay_out(figure))


def test_every_family_of_the_paper_is_on_the_figures_of_all_models(many):
    plans = dict(plan_figures(many))
    shown = {result.family for result in plans["variance_share"]().data.shown}
    assert shown == set(FAMILIES)
    assert {r.family for r in plans["fig6_residual_cka"]().data.shown} == {"DINOv2"}
    others = {r.family for r in plans["fig8_residual_cka"]().data.shown}
    assert others == set(FAMILIES) - {"DINOv2"}
