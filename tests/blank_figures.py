"""Figures for tests: of some results, or with files that hold their words alone."""

from contextlib import contextmanager

import pytest
from matplotlib.text import Text

from vitscope.errors import ResultError
from vitscope.figures import NothingToDrawError, draw
from vitscope.figures.questions import plan_figures


def words(figure):
    """All that is written on a figure."""
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


@contextmanager
def blank_figures():
    """Plot every figure, but render none: that takes longer than all else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(draw, "_fix_layout", lambda _: None)
        patched.setattr(draw, "save_figure", lambda figure, path: path.write_text(words(figure)))
        yield


def draw_some(results, names=""):
    """Every figure of the results that can be drawn, of those whose names begin so."""
    figures = {}
    for name, plan in plan_figures(results):
        if not name.startswith(names):
            continue
        try:
            figures[name] = plan().figure
        except (NothingToDrawError, ResultError):
            continue
    return figures
