"""Figures whose files hold their words alone, for tests that do not look at them."""

from contextlib import contextmanager

import pytest
from matplotlib.text import Text

from vitscope.figures import draw


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
