"""Readings and three-valued comparisons against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vitscope.metrics.distribution import Distribution
from vitscope.reproduction.comparisons import (
    Check,
    above,
    all_of,
    below,
    between,
    falls,
    has_no_order,
    in_order,
    rises,
)
from vitscope.reproduction.evidence import MIN_IMAGES, Measured, Quantity, Reading, UntoldError
from vitscope.reproduction.quantities import divide, read_mean, read_proportion
from vitscope.results.verdict import MIN_IMAGES_TO_JUDGE

QUANTITY = Quantity("height", "height", lambda _: Reading(0.0))


def spread(mean, std, n=100):
    return Distribution(mean, std, mean, mean, mean, n)


def measured(low, high, size="S"):
    reading = Reading((low + high) / 2, low, high)
    return Measured(size, QUANTITY, reading, 100, "")


def unknown(gap="nobody looked"):
    return Measured("S", QUANTITY, None, 0, gap)


def test_few_images_means_the_same_as_for_the_verdict():
    assert MIN_IMAGES == MIN_IMAGES_TO_JUDGE


def test_intervals_end_at_what_the_number_can_be():
    assert read_mean(spread(0.99, 0.09), at_most=1.0).high == 1.0
    assert read_mean(spread(0.99, 0.09)).high > 1.0
    for count in (1, 20, 35, 100, 1000):
        assert read_proportion(0.0, count).low == 0.0
        assert read_proportion(1.0, count).high == 1.0


@given(st.integers(0, 10_000), st.integers(20, 400))
def test_the_interval_of_a_mean_is_students(seed, n):
    values = np.random.default_rng(seed).normal(3, 2, n)
    reading = read_mean(spread(values.mean(), values.std(), n))
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    # Two ways to the same number in float64.
    assert (reading.low, reading.high) == pytest.approx((low, high), rel=1e-12)


@given(st.integers(1, 500), st.data())
def test_the_interval_of_a_proportion_is_wilsons(n, data):
    k = data.draw(st.integers(0, n))
    reading = read_proportion(k / n, n)
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (reading.low, reading.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("part", [-0.1, 1.1])
def test_what_is_no_part_is_not_read(part):
    with pytest.raises(UntoldError):
        read_proportion(part, 100)


@given(*[st.floats(0.1, 10)] * 4, st.floats(0, 1), st.floats(0, 1))
def test_a_ratio_spans_every_ratio_of_its_intervals(a, b, c, d, x, y):
    top, bottom = sorted((a, b)), sorted((c, d))
    found = divide(Reading(sum(top) / 2, *top), Reading(sum(bottom) / 2, *bottom))
    above_, below_ = np.interp(x, (0, 1), top), np.interp(y, (0, 1), bottom)
    slack = 1e-9
    assert found.low - slack <= above_ / below_ <= found.high + slack
    assert found.value == pytest.approx(sum(top) / sum(bottom))


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_what_is_divided_by_nearly_nothing_has_no_upper_end(low):
    found = divide(Reading(1.0, 0.9, 1.1), Reading(1.0, low, 2.0))
    assert (found.value, found.low, found.high) == (1.0, 0.45, math.inf)


def test_nothing_is_divided_by_zero():
    with pytest.raises(UntoldError, match="zero"):
        divide(Reading(1.0, 0.9, 1.1), Reading(0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("low", "high", "is_above", "is_below"),
    [
        (0.6, 0.7, "agrees", "disagrees"),
        (0.3, 0.4, "disagrees", "agrees"),
        (0.4, 0.6, "cannot tell", "cannot tell"),
        (0.5, 0.6, "cannot tell", "cannot tell"),
        (0.4, 0.5, "cannot tell", "cannot tell"),
        (0.5, 0.5, "cannot tell", "cannot tell"),
    ],
)
def test_a_line_is_crossed_by_the_whole_interval_or_not_at_all(low, high, is_above, is_below):
    assert above(measured(low, high), 0.5).answer == is_above
    assert below(measured(low, high), 0.5).answer == is_below


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.3, 0.4, "agrees"),
        (0.0, 0.1, "disagrees"),
        (0.8, 0.9, "disagrees"),
        (0.1, 0.3, "cannot tell"),
        (0.1, 0.9, "cannot tell"),
    ],
)
def test_between_two_lines(low, high, answer):
    assert between(measured(low, high), 0.2, 0.5).answer == answer


def test_a_gap_is_the_reason_of_every_comparison():
    known, gap = measured(0.1, 0.2), unknown()
    checks = [above(gap, 0), below(gap, 0), between(gap, 0, 1), in_order(gap, known)]
    checks += [in_order(known, gap), rises([known, gap]), falls([gap, known])]
    checks += [has_no_order([known, gap, known])]
    assert all(c.answer == "cannot tell" and c.reasons == ("nobody looked",) for c in checks)


def test_less_than_a_trend_and_less_than_an_order():
    assert rises([measured(0, 1)]).reasons == ("a trend takes two sizes or more",)
    assert has_no_order([measured(0, 1), measured(2, 3)]).answer == "cannot tell"


@given(st.lists(st.integers(0, 6), min_size=2, max_size=5))
def test_falling_is_rising_backwards(values):
    numbers = [measured(v - 0.4, v + 0.4) for v in values]
    assert rises(numbers).answer == falls(numbers[::-1]).answer
    mirrored = [measured(-v - 0.4, -v + 0.4) for v in values]
    assert rises(numbers).answer == falls(mirrored).answer


@given(st.lists(st.integers(0, 6), min_size=2, max_size=5))
def test_a_trend_is_its_ends_and_most_of_its_pairs(values):
    n = len(values)
    signs = [np.sign(values[j] - values[i]) for i in range(n) for j in range(i + 1, n)]
    ends, total = np.sign(values[-1] - values[0]), sum(signs)
    expected = "agrees"
    if ends < 0 or (total <= 0 and any(signs)):
        expected = "disagrees"
    elif ends == 0:
        expected = "cannot tell"
    if ends == 0 and not any(signs):
        expected = "cannot tell"
    assert rises([measured(v - 0.4, v + 0.4) for v in values]).answer == expected


@pytest.mark.parametrize(
    ("values", "half", "answer"),
    [
        ((1, 3, 2), 0.1, "agrees"),
        ((1, 2, 3), 0.1, "disagrees"),
        ((3, 2, 1), 0.1, "disagrees"),
        ((1, 2, 2.1), 0.1, "cannot tell"),
        ((1, 2, 3), 5, "cannot tell"),
    ],
)
def test_no_order_takes_a_rise_and_a_fall(values, half, answer):
    assert has_no_order([measured(v - half, v + half) for v in values]).answer == answer


ANSWERS = st.sampled_from(["agrees", "disagrees", "cannot tell"])


@given(st.lists(ANSWERS, min_size=1, max_size=5))
def test_criteria_combine_by_kleenes_logic(answers):
    # The strong conjunction is the minimum, with "cannot tell" between the two.
    worth = {"disagrees": 0.0, "cannot tell": 0.5, "agrees": 1.0}
    checks = [Check(a, () if a == "agrees" else (f"{a} {i}",), ()) for i, a in enumerate(answers)]
    found = all_of(checks)
    assert worth[found.answer] == min(worth[answer] for answer in answers)
    assert all(reason.startswith(found.answer) for reason in found.reasons)
    assert bool(found.reasons) == (found.answer != "agrees")


def test_undefined_numbers_are_no_mean():
    for found in (None, spread(math.nan, math.nan, 0)):
        with pytest.raises(UntoldError):
            read_mean(found)
    assert read_mean(spread(1.0, math.nan)).low is None
