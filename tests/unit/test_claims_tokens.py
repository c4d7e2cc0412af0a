"""Claims on single tokens, from summaries that look clean and do not show it."""

import numpy as np
import pytest
import torch

from claims_evidence import N, find, make_models, put
from vitscope.metrics.estimates import HighNormTokens
from vitscope.metrics.sums import Batch
from vitscope.metrics.token_sums import TokenSums

AGREES = make_models(agrees=True)


@pytest.mark.parametrize(
    ("bound", "answer"), [(1.0, "cannot tell"), (25 / 400, "cannot tell"), (0.01, "agrees")]
)
def test_a_map_on_which_nothing_was_found_is_clean_only_if_that_says_so(bound, answer):
    """Of few images none found is nearly nothing known."""
    place = ("DINOv2 with registers", "g"), ("high_norm_tokens", 11)
    row = HighNormTokens(N, images_fraction_at_most=bound)
    finding = find(put(AGREES, *place[0], row, *place[1]), "clean attention map")
    assert finding.answer == answer
    assert "at most this part" in finding.measured


@pytest.mark.parametrize(("weight", "answer"), [(1.0, "disagrees"), (0.01, "agrees")])
def test_a_layer_norm_that_scales_nothing_scales_no_dimension_down(weight, answer):
    """A giant's register: two outlier dimensions, the rest small."""
    random = np.random.default_rng(0)
    hidden = random.standard_normal((40, 1, 384))
    hidden[:, :, [5, 100]] = [900.0, 500.0]
    weights = torch.ones(384, dtype=torch.float64)
    weights[[5, 100]] = weight
    states = {"hidden": torch.from_numpy(hidden)}
    states["normed"] = torch.nn.functional.layer_norm(states["hidden"], (384,), weights)
    sums = TokenSums(["register_2"])
    sums.update(Batch({}, [i % 10 for i in range(40)], states))
    found = sums.find_top_dimensions("register_2")
    path = ("anatomy", "tokens", "register_2", "top_dimensions")
    models = put(AGREES, "DINOv2 with registers", "g", found, *path)
    assert find(models, "scales that register's outlier").answer == answer
