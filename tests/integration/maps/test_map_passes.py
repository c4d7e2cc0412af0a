"""What maps cost in forward and backward passes, counted at the model's blocks."""

from collections import Counter

import pytest

from map_inputs import make_input, wrap
from vitscope.maps.registry import METHODS

OF_OWN_RUN = ("attention", "contribution_norm", "share", "rollout", "rollout_norm")
BASELINES = ("centre", "edges", "random")


@pytest.fixture
def counted():
    """A model's input, and how often its first block was run, and passed back through."""
    given = make_input(wrap("timm/dinov2_reg"), references=2)
    assert len(given.references.traced[1]) > 0  # once for all images
    count = Counter()

    def count_forward(_, __, output):
        count["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda _: count.update(["backward"]))

    given.vit.encoder_blocks[0].register_forward_hook(count_forward)
    return given, count


@pytest.mark.parametrize(
    ("methods", "forward", "backward"),
    [
        (BASELINES, 0, 0),
        (OF_OWN_RUN, 1, 0),
        (OF_OWN_RUN[::-1], 1, 0),
        # Beside the model's own run there is one with gradients.
        (("traced", "traced_mean"), 2, 2),
        (("chefer", "gradient_input"), 2, 1),
        (("gradcam", "cdam"), 2, 0),
        ((*OF_OWN_RUN, "traced", "cdam", "traced_mean", "gradcam"), 3, 2),
    ],
)
def test_what_several_maps_need_is_computed_once(counted, methods, forward, backward):
    given, count = counted
    for method in methods:
        METHODS[method].compute(given)
    assert (count["forward"], count["backward"]) == (forward, backward)
