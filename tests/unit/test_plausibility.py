"""Scores of maps against masks, by hand."""

import numpy as np
import pytest

from vitscope.metrics.plausibility import (
    compute_average_precision,
    compute_mass_in_mask,
    compute_pointing,
)

SHARES = np.array([1.0, 0.5, 0.4, 0.0])


def test_pointing_asks_for_the_largest_value():
    assert compute_pointing(np.array([0.0, 9.0, 1.0, 1.0]), SHARES) == 1
    assert compute_pointing(np.array([0.0, 0.0, 9.0, 1.0]), SHARES) == 0
    # Of three largest values two are on the object: nobody is favoured by the raster's order.
    assert compute_pointing(np.array([9.0, 9.0, 9.0, 1.0]), SHARES) == pytest.approx(2 / 3)


def test_mass_counts_positive_values_by_the_covered_area():
    values = np.array([2.0, 4.0, 1.0, -5.0])
    assert compute_mass_in_mask(values, SHARES) == pytest.approx((2 + 2 + 0.4) / 7)
    assert compute_mass_in_mask(np.ones(4), SHARES) == pytest.approx(SHARES.mean())
    assert np.isnan(compute_mass_in_mask(-np.ones(4), SHARES))


def average_precision_by_hand(values, shares):
    on_object = shares >= 0.5
    total = recall = 0.0
    for threshold in sorted(set(values), reverse=True):
        chosen = values >= threshold
        found = (chosen & on_object).sum()
        total += (found / on_object.sum() - recall) * found / chosen.sum()
        recall = found / on_object.sum()
    return total


def test_average_precision_over_all_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, shares = rng.integers(0, 6, 30).astype(float), rng.random(30)
        expected = average_precision_by_hand(values, shares)
        assert compute_average_precision(values, shares) == pytest.approx(expected, abs=1e-12)
    assert compute_average_precision(SHARES, SHARES) == 1
    assert compute_average_precision(np.ones(4), SHARES) == pytest.approx(0.5)
    assert np.isnan(compute_average_precision(SHARES, np.zeros(4)))
