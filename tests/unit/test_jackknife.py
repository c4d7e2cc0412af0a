"""Intervals and blocks of the jackknife against their textbook forms."""

import math

import numpy as np
import pytest

from vitscope.metrics.jackknife import NUM_BLOCKS, block_of, compute_interval, student_975


def test_interval_is_the_textbook_jackknife_for_equal_blocks():
    """For the mean of equal blocks the delete-one jackknife gives s / √K."""
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    mean = sum(values) / 5
    left_out = [(sum(values) - v) / 4 for v in values]
    low, high = compute_interval(mean, left_out, [3] * 5)
    half = 2.7764451051977987 * np.std(values, ddof=1) / math.sqrt(5)
    assert (low, high) == pytest.approx((mean - half, mean + half))


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
    low, high = compute_interval(0.95, left_out, sizes)
    assert high > 1
    assert compute_interval(0.95, left_out, sizes, at_most=1.0) == (low, 1.0)
    assert compute_interval(0.5, left_out, sizes, at_most=1e9) == compute_interval(
        0.5, left_out, sizes
    )
    # An estimate that passes the bound by its rounding is in its interval.
    above = 1 + 2**-52
    assert compute_interval(above, [above] * 3, sizes, at_most=1.0)[1] == above
