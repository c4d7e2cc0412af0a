"""Mean, spread and quantiles against numpy, whatever the order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscope.metrics.distribution import compute_distribution

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(NUMBERS)
def test_equals_numpy(values):
    found = compute_distribution(np.array(values))
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-9)
    assert found.std == pytest.approx(np.std(values), rel=1e-9, abs=1e-9)
    assert (found.p05, found.p50, found.p95) == pytest.approx(
        np.quantile(values, [0.05, 0.5, 0.95])
    )


@given(NUMBERS, st.randoms())
def test_order_changes_nothing_at_all(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert compute_distribution(np.array(values)) == compute_distribution(np.array(shuffled))


def test_undefined_values_are_left_out():
    found = compute_distribution(np.array([1.0, np.nan, 3.0]))
    assert (found.mean, found.p50, found.n) == (2.0, 2.0, 2)
    for values in ([np.nan], []):
        undefined = compute_distribution(np.array(values))
        assert undefined.n == 0
        assert np.isnan([undefined.mean, undefined.std, undefined.p05, undefined.p95]).all()
