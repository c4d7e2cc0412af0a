"""Spearman's rho against its definition, its interval by simulation, Holm's correction by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vitscope.metrics.rank_correlation import (
    RankCorrelation,
    adjust_holm,
    correlate_ranks,
    correlate_several,
)

# Few values, so that there are ties.
PAIRS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=4, max_size=40)


def split(pairs) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.array(pairs, dtype=np.float64).T
    assume(np.ptp(first) > 0 and np.ptp(second) > 0)
    return first, second


def reference_ranks(values: np.ndarray) -> np.ndarray:
    return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])


def reference_rho(first: np.ndarray, second: np.ndarray) -> float:
    a, b = (reference_ranks(values) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / np.sqrt((a @ a) * (b @ b)))


@given(PAIRS)
@settings(deadline=None)  # The first example waits for an import.
def test_rho_is_the_correlation_of_the_ranks(pairs):
    first, second = split(pairs)
    found = correlate_ranks(first, second)
    assert found.n == len(pairs)
    assert found.rho == pytest.approx(reference_rho(first, second), abs=1e-12)


@given(PAIRS, st.randoms())
@settings(deadline=None)
def test_order_changes_nothing_at_all(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert correlate_ranks(*split(pairs)) == correlate_ranks(*split(shuffled))


@given(PAIRS)
@settings(deadline=None)
def test_only_ranks_count(pairs):
    first, second = split(pairs)
    found = correlate_ranks(first, second)
    assert correlate_ranks(np.exp(first), second**3 + 5) == found
    mirrored = correlate_ranks(-first, second)
    assert mirrored.rho == pytest.approx(-found.rho, abs=1e-12)
    assert correlate_ranks(second, first).rho == pytest.approx(found.rho, abs=1e-12)


def test_the_example_of_bonetts_own_program():
    """`ci.spear` of the R package statpsych: 0.8699639, 0.5840951 to 0.9638297."""
    y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
    x = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]
    found = correlate_ranks(np.array(x, dtype=float), np.array(y, dtype=float))
    assert found.rho == pytest.approx(0.8699639, abs=1e-7)
    assert found.ci95 == pytest.approx((0.5840951, 0.9638297), abs=1e-7)


def test_p_is_near_that_of_all_permutations():
    first = np.arange(8.0)
    second = np.array([2.0, 0.0, 1.0, 5.0, 3.0, 7.0, 4.0, 6.0])
    found = correlate_ranks(first, second)
    rhos = np.array(list(permutations(second - 3.5))) @ (first - 3.5) / 42
    exact = np.mean(np.abs(rhos) >= abs(found.rho) - 1e-12)
    # 0.028 and 0.037: with 8 pairs Student's t is a rough approximation.
    assert found.p == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize("n", [4, 5, 20])
def test_perfect_order_has_no_interval_and_no_p_of_zero(n):
    values = np.arange(n, dtype=np.float64)
    found = correlate_ranks(values, -values)
    assert found.rho == pytest.approx(-1)
    assert found.ci95 is None
    assert found.p == pytest.approx(2 / math.factorial(n))


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.8])
def test_the_interval_covers_the_truth_95_times_of_100(rho):
    """For normal numbers of correlation r, Spearman's ρ is 6/π arcsin(r/2)."""
    r = 2 * np.sin(np.pi * rho / 6)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        first, noise = rng.standard_normal((2, 50))
        low, high = correlate_ranks(first, r * first + np.sqrt(1 - r**2) * noise).ci95
        covered += low <= rho <= high
    # 95 % of 300, give or take 3.2 standard deviations of that binomial count.
    assert 0.91 <= covered / 300 <= 0.99


def test_independent_numbers_are_rarely_called_related():
    rng = np.random.default_rng(1)
    p = [correlate_ranks(*rng.standard_normal((2, 30))).p for _ in range(400)]
    # Uniform p values: each share has a standard deviation of at most 0.025.
    for level in (0.05, 0.25, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.08)


# Undefined


def test_pairs_of_which_one_is_undefined_do_not_count():
    first = np.array([1, np.nan, 2, 4, 3, 9, np.inf])
    second = np.array([5, 1, 6, 8, 7, np.nan, 1])
    found = correlate_ranks(first, second)
    assert found == correlate_ranks(np.array([1.0, 2, 4, 3]), np.array([5.0, 6, 8, 7]))
    assert found.n == 4


@pytest.mark.parametrize(
    ("first", "second", "n"),
    [
        ([], [], 0),
        ([1, 2, 3], [1, 3, 2], 3),
        ([1, 2, 3, np.nan], [1, 3, 2, 4], 3),
        ([5, 5, 5, 5, 5], [1, 2, 3, 4, 5], 5),
        ([1, 2, 3, 4], [0, 0, 0, 0], 4),
        ([np.nan] * 9, range(9), 0),
    ],
)
def test_too_few_pairs_or_a_constant_are_undefined(first, second, n):
    found = correlate_ranks(np.array(first, dtype=float), np.array(second, dtype=float))
    assert math.isnan(found.rho)
    assert math.isnan(found.p)
    assert found.ci95 is None
    assert found.n == n


def test_the_fields_are_those_of_the_saved_result():
    assert tuple(vars(RankCorrelation(0.0, None, 1.0, 4))) == ("rho", "ci95", "p", "n")


# Holm


def test_holm_by_hand():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    expected = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    assert adjust_holm(p) == pytest.approx(expected)
    assert list(adjust_holm(p)) == list(p)


def test_undefined_p_values_do_not_count_as_tests():
    found = adjust_holm({"a": 0.02, "b": math.nan, "c": 0.5})
    assert found == pytest.approx({"a": 0.04, "b": math.nan, "c": 0.5}, nan_ok=True)
    assert adjust_holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_rejects_what_stepping_down_rejects(values):
    adjusted = adjust_holm({str(i): p for i, p in enumerate(values)})
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[i] * (len(values) - rank) > level:
                break
            rejected.add(str(i))
        assert {name for name, p in adjusted.items() if p <= level} == rejected


def test_p_values_of_several_are_corrected_for_their_number():
    random = np.random.default_rng(0)
    target = random.normal(size=40)
    covariates = {name: random.normal(size=40) + 0.3 * target for name in "abc"}
    found = correlate_several(covariates, target)
    assert list(found) == ["a", "b", "c"]
    assert found["a"].rho == correlate_ranks(covariates["a"], target).rho
    corrected = adjust_holm({name: one.p for name, one in found.items()})
    assert {name: one.p_holm for name, one in found.items()} == corrected
    assert any(one.p_holm > one.p for one in found.values())
    assert math.isnan(correlate_several(covariates, np.ones(40))["a"].p_holm)
