"""Estimates as text: what is printed never says more than the quantity can be."""

import math
from dataclasses import replace

import numpy as np
import pytest

from made_numbers import distribution
from made_results import make_audit
from vitscope.metrics.jackknife import Estimate
from vitscope.metrics.one_shot import average_draws
from vitscope.results.result_text import tabulate_sources, tell_estimate


@pytest.mark.parametrize(
    ("value", "ci95", "text"),
    [
        (0.955, (0.868, 1.0), "0.955 (0.868 to 1.000)"),
        (0.955, (0.930, 0.980), "0.955 ± 0.025"),
        (0.9999, (0.9997, 1.0), "1.000 ± 0.000"),
        (0.2, None, "0.200"),
        (math.nan, None, "–"),
    ],
)
def test_an_interval_that_was_cut_is_shown_by_its_ends(value, ci95, text):
    assert tell_estimate(Estimate(value, ci95)) == text


def test_an_accuracy_stays_between_nothing_and_all():
    high = average_draws(np.array([1.0, 1.0, 0.9, 1.0]))
    assert high.ci95[1] == 1.0
    low = average_draws(np.array([0.0, 0.0, 0.1, 0.0]))
    assert low.ci95[0] == 0.0


def test_a_mean_over_fewer_images_says_over_how_many():
    summary, _ = make_audit(n=24)
    spreads = {"patches": distribution(np.ones(24)), "skip": distribution(np.ones(7))}
    last = replace(summary.last, centred_cosine={"residual": spreads})
    caption = tabulate_sources(replace(summary, layers=(last,))).caption
    told = "Centred cos of skip connection is over the 7 images where it is defined."
    assert caption.endswith(told)
    assert "of patches is over" not in caption
