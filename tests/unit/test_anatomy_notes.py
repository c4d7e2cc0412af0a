"""What the figure of the token anatomy says of high-norm patches."""

import pytest

from made_results import hold_audit
from vitscope.figures import draw_figure


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (1.0, "100.0 % of the images have a high-norm patch."),
        (0.031, "3.1 % of the images have a high-norm patch; in the others the highest patch is "),
        (0.0, None),
        (None, None),
    ],
)
def test_the_note_tells_how_many_images_have_a_high_norm_patch(part, expected):
    model = hold_audit()
    depth = model.audit.layer  # a block's input is what the one before it left
    model = model.change(part, "high_norm_tokens", depth, "images_fraction")
    figure = draw_figure("anatomy", [model]).figure
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    words = " ".join(" ".join(texts).split())
    assert (expected or "") in words
    assert ("high-norm patch" in words) == (expected is not None)
