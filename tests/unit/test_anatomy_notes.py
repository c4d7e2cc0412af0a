"""What the figure of the token anatomy says of high-norm patches."""

from pathlib import Path

import pytest
from vitscope.figures.anatomy import plot_anatomy

from made_results import make_audit
from vitscope.figures.saved import ModelResult


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (1.0, "100.0% of the images have a high-norm patch."),
        (0.031, "3.1% of the images have a high-norm patch; in the others the highest patch is "),
        (0.0, None),
        (None, None),
    ],
)
def test_the_note_tells_how_many_images_have_a_high_norm_patch(part, expected):
    summary, _ = make_audit()
    summary["anatomy"]["images_fraction"] = part
    figure = plot_anatomy(ModelResult(Path("/nowhere"), "audit", summary)).figure
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    words = " ".join(" ".join(texts).split())
    assert (expected or "") in words
    assert ("high-norm patch" in words) == (expected is not None)
