"""The verdict at, across and between its lines."""

import math

import pytest

from vitscope.metrics.pair_estimates import CkaEstimate
from vitscope.results.verdict import judge


def cka(value, low, high):
    return CkaEstimate(value, value, None if low is None else (low, high), 0.1)


SHARES = {"patches": 0.5, "registers": 0.3, "skip": 0.15, "cls": 0.05}


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "status"),
    [
        (0.95, 0.92, 0.98, 200, "holds"),
        (0.95, 0.90, 1.00, 200, "holds"),
        (0.70, 0.60, 0.80, 200, "weakened"),
        (0.70, 0.50, 0.89, 200, "weakened"),
        (0.20, 0.10, 0.49, 200, "broken"),
        (-0.01, -0.03, 0.01, 200, "broken"),
        (0.89, 0.85, 0.93, 200, "borderline"),
        (0.52, 0.45, 0.60, 200, "borderline"),
        (0.70, 0.40, 0.95, 200, "not enough images"),
        (0.95, 0.92, 0.98, 19, "not enough images"),
        (0.95, None, None, 200, "not enough images"),
        (math.nan, None, None, 3, "not enough images"),
    ],
)
def test_status_follows_the_interval(value, low, high, n, status):
    verdict = judge(cka(value, low, high), n, SHARES)
    assert verdict.status == status
    assert f"n = {n}" in verdict.text


def test_door_is_the_largest_share_that_is_not_patches():
    verdict = judge(cka(0.2, 0.1, 0.3), 100, SHARES)
    assert verdict.door == "registers"
    assert "through the register tokens (30% of the output's variance)" in verdict.text


def test_no_door_where_there_is_nothing_but_patches():
    verdict = judge(cka(1.0, 1.0, 1.0), 100, {"patches": 1.0})
    assert verdict.door is None
    assert verdict.status == "holds"


def test_undefined_shares_are_no_door():
    assert judge(cka(0.9, 0.8, 1.0), 100, {"patches": 1.0, "skip": math.nan}).door is None


def test_borderline_says_between_what():
    assert "between holds and weakened" in judge(cka(0.89, 0.85, 0.93), 100, SHARES).text
    assert "between weakened and broken" in judge(cka(0.52, 0.45, 0.6), 100, SHARES).text


@pytest.mark.parametrize(
    ("constant", "n", "status", "words"),
    [
        ("output", 200, "no variation", "the output is the same for every picture"),
        ("patches", 200, "no variation", "what patches wrote is the same for every picture"),
        ("output", 2, "no variation", "the output is the same for every picture"),
        ("output", 1, "not enough images", "not enough images to tell"),
        (None, 200, "not enough images", "audit more pictures"),
    ],
)
def test_what_does_not_vary_is_not_put_down_to_too_few_images(constant, n, status, words):
    shares = {"patches": math.nan, "skip": math.nan} if constant == "output" else SHARES
    verdict = judge(cka(math.nan, None, None), n, shares, constant)
    assert verdict.status == status
    assert words in verdict.text
    assert ("audit more" in verdict.text) == (status == "not enough images")
    assert f"CKA(r, patches) = undefined, n = {n}" in verdict.text
