"""Intervals and blocks of the jackknife against their textbook forms."""

import math

import numpy as np
import pytest

from reference_jackknife import busing_interval
from vitscope.metrics.jackknife import NUM_BLOCKS, block_of, make_estimate, student_975


def test_interval_is_the_textbook_jackknife_for_equal_blocks():
    """For the mean of equal blocks the delete-one jackknife gives s / √K."""
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    mean = sum(values) / 5
    left_out = [(sum(values) - v) / 4 for v in values]
    low, high = make_estimate(mean, left_out, [3] * 5).ci95
    half = 2.7764451051977987 * np.std(values, ddof=1) / math.sqrt(5)
    assert (low, high) == pytest.approx((mean - half, mean + half))


UNEVEN = np.repeat([0, 1, 2, 3, 4], [2, 3, 5, 9, 21])


def interval_by_blocks(statistic, rows, blocks):
    left_out = [statistic(rows[blocks != block]) for block in np.unique(blocks)]
    return make_estimate(statistic(rows), left_out, np.bincount(blocks).tolist()).ci95


def test_interval_of_a_mean_of_uneven_blocks_is_that_of_its_block_means():
    """There pseudo-values are block means: the variance is Σ (ȳ_j − ȳ)² m_j / (n − m_j) / g."""
    rows = np.random.default_rng(0).gamma(2, size=len(UNEVEN)) + UNEVEN
    sizes = np.bincount(UNEVEN)
    means = np.bincount(UNEVEN, rows) / sizes
    variance = np.mean((means - rows.mean()) ** 2 * sizes / (len(rows) - sizes))
    half = 2.7764451051977987 * math.sqrt(variance)
    expected = pytest.approx((rows.mean() - half, rows.mean() + half), rel=1e-12)
    assert interval_by_blocks(np.mean, rows, UNEVEN) == expected
    assert busing_interval(np.mean, rows, UNEVEN) == expected


@pytest.mark.parametrize("statistic", [np.var, lambda x: np.mean(x**3) / np.mean(x**2)])
def test_interval_is_the_delete_m_j_jackknife_for_uneven_blocks(statistic):
    """Of statistics that are no means, whose jackknifed value is not their value."""
    rows = np.random.default_rng(1).gamma(2, size=len(UNEVEN))
    expected = busing_interval(statistic, rows, UNEVEN)
    assert interval_by_blocks(statistic, rows, UNEVEN) == pytest.approx(expected, rel=1e-12)


def test_student_quantiles_are_right():
    """Each t leaves 2.5 % above it, by integrating the density."""
    for df in range(1, NUM_BLOCKS):
        theta = np.linspace(0, math.atan(student_975(float(df)) / math.sqrt(df)), 20001)
        area = np.trapezoid(np.cos(theta) ** (df - 1), theta)
        whole = math.sqrt(math.pi) * math.gamma(df / 2) / (2 * math.gamma((df + 1) / 2))
        assert area / whole == pytest.approx(0.95, abs=1e-8)


def test_blocks_are_even():
    import hashlib

    ids = [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(5000)]
    counts = np.bincount([block_of(i) for i in ids], minlength=NUM_BLOCKS)
    assert len(counts) == NUM_BLOCKS
    assert counts.min() > 400


def test_an_interval_ends_at_what_the_quantity_cannot_exceed():
    left_out, sizes = [0.99, 0.9, 0.97], [2, 2, 2]
    low, high = make_estimate(0.95, left_out, sizes).ci95
    assert high > 1
    assert make_estimate(0.95, left_out, sizes, at_most=1.0).ci95 == (low, 1.0)
    assert make_estimate(0.5, left_out, sizes, at_most=1e9) == make_estimate(0.5, left_out, sizes)
    # An estimate that passes the bound by its rounding is in its interval.
    above = 1 + 2**-52
    assert make_estimate(above, [above] * 3, sizes, at_most=1.0).ci95[1] == above
