"""Figures whose files are empty, for tests that do not look at them."""

from contextlib import contextmanager

import pytest

from vitscope.figures import draw


@contextmanager
def blank_figures():
    """Plot every figure, but render none: that takes longer than all else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(draw, "_fix_layout", lambda _: None)
        patched.setattr(draw, "save_figure", lambda _, path: path.touch())
        yield
